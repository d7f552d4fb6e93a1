"""A vocabulary in the form of a GGUF file, wherever it came from: pieces, kinds, scores, merges, and the ids that mean something.

In: the metadata of a GGUF file (`from_metadata`), or what the readers of Hugging Face's files make. Out: one frozen `Vocabulary`, of which
tokenizers are built (`toolkit.tokens.gguf`), and the metadata for a GGUF file (`to_metadata`).

Source of keys and kinds: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "Tokenizer".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from rkfleet.errors import Invalid, NotFound

__all__ = ["BYTE", "CONTROL", "END_NAMES", "NORMAL", "UNKNOWN", "UNUSED", "USER_DEFINED", "Vocabulary", "from_metadata"]

NORMAL: Final = 1
UNKNOWN: Final = 2
CONTROL: Final = 3
USER_DEFINED: Final = 4
UNUSED: Final = 5
BYTE: Final = 6

PIECES_MAX: Final = 1 << 21  # The largest vocabulary in use, Gemma's, has 2^18.
MODELS: Final = ("gpt2", "llama")

# Tokens that end an answer whatever a file declares, if they are control tokens: files that declare only one of several ends are common,
# and llama.cpp looks for these names as well (llama-vocab.cpp, special_eog_ids).
END_NAMES: Final = frozenset(
    {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<EOT>",
        "</s>",
        "<|end_of_text|>",
        "<eos>",
        "<_end>",
    }
)


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """What a tokenizer is made of.

    Attributes:
        model: `gpt2` is byte-level BPE with merges; `llama` joins the neighbours with the best score, as SentencePiece's BPE.
        pre: Name of the splitting into words (`pretokenizers.py`), for gpt2.
        pieces: By id. Those of gpt2 are in the alphabet of printable bytes; those of llama have U+2581 for a space.
        kinds: One of the constants above for each piece.
        scores: For llama, one for each piece.
        merges: For gpt2, pairs in their order.
        beginning: Id that begins a text, where the model has one; `add_beginning`: it is put before every text.
        ends: Ids that end an answer; the first one is the declared end.
        space_prefix: For llama, a space is put before a text.
    """

    model: str
    pre: str = ""
    pieces: tuple[str, ...]
    kinds: tuple[int, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[tuple[str, str], ...] = ()
    beginning: int | None = None
    ends: tuple[int, ...] = ()
    unknown: int | None = None
    padding: int | None = None
    add_beginning: bool = False
    add_end: bool = False
    space_prefix: bool = False

    def to_metadata(self, rows: int) -> dict[str, Any]:
        """Return the keys of a GGUF file whose embeddings have that many rows; rows without a piece get unused ones.

        Raises:
            Invalid: There are more pieces than rows.
        """
        if len(self.pieces) > rows:
            raise Invalid(f"the tokenizer has {len(self.pieces)} pieces, the embeddings {rows} rows; the files are of two models")
        padding = range(len(self.pieces), rows)
        keys: dict[str, Any] = {"tokenizer.ggml.model": self.model}
        if self.model == "gpt2":
            keys["tokenizer.ggml.pre"] = self.pre
        keys["tokenizer.ggml.tokens"] = [*self.pieces, *(f"[PAD{at}]" for at in padding)]
        if self.scores:
            keys["tokenizer.ggml.scores"] = [*self.scores, *(-1000.0 for _ in padding)]
        keys["tokenizer.ggml.token_type"] = [*self.kinds, *(UNUSED for _ in padding)]
        if self.model == "gpt2":
            keys["tokenizer.ggml.merges"] = [f"{left} {right}" for left, right in self.merges]
        named = {"bos": self.beginning, "eos": self.ends[0] if self.ends else None, "unknown": self.unknown, "padding": self.padding}
        keys |= {f"tokenizer.ggml.{name}_token_id": at for name, at in named.items() if at is not None}
        if len(self.ends) > 1:
            keys["tokenizer.ggml.eot_token_id"] = self.ends[1]
        keys["tokenizer.ggml.add_bos_token"] = self.add_beginning
        keys["tokenizer.ggml.add_eos_token"] = self.add_end
        keys["tokenizer.ggml.add_space_prefix"] = self.space_prefix
        return keys


def from_metadata(metadata: Mapping[str, Any]) -> Vocabulary:
    """Return the vocabulary of a GGUF file.

    Raises:
        NotFound: The file has none.
        Invalid: A key is missing, of another type, or its length is not that of the others; or the tokenizer is of an unknown model.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model is None:
        raise NotFound("the GGUF file has no tokenizer (no key tokenizer.ggml.model); take the original model's directory")
    if model not in MODELS:
        raise Invalid(f"GGUF key tokenizer.ggml.model is {model!r}; known are {', '.join(MODELS)}")
    pieces = _list(metadata, "tokens", str)
    kinds = _list(metadata, "token_type", int) if "tokenizer.ggml.token_type" in metadata else [NORMAL] * len(pieces)
    scores = _list(metadata, "scores", float) if model == "llama" else []
    if not 0 < len(pieces) <= PIECES_MAX:
        raise Invalid(f"GGUF key tokenizer.ggml.tokens has {len(pieces)} pieces; from 1 to {PIECES_MAX} are taken")
    for name, values in (("token_type", kinds), ("scores", scores or pieces)):
        if len(values) != len(pieces):
            raise Invalid(f"GGUF key tokenizer.ggml.{name} has {len(values)} values, tokenizer.ggml.tokens {len(pieces)}")

    def token(name: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise Invalid(f"GGUF key tokenizer.ggml.{name}_token_id is {value!r}, not an id")
        return value if 0 <= value < len(pieces) else None  # Old files say 2^32 - 1 for none.

    def flag(name: str, default: bool) -> bool:
        value = metadata.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, bool):
            raise Invalid(f"GGUF key tokenizer.ggml.{name} is {value!r}, not true or false")
        return value

    declared = [at for at in (token("eos"), token("eot"), token("eom")) if at is not None]
    named = [at for at, piece in enumerate(pieces) if kinds[at] == CONTROL and piece in END_NAMES]
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(pre, str):
        raise Invalid(f"GGUF key tokenizer.ggml.pre is {pre!r}, not a name")
    return Vocabulary(
        model=model,
        pre=pre if model == "gpt2" else "",
        pieces=tuple(pieces),
        kinds=tuple(kinds),
        scores=tuple(scores),
        merges=_merges(metadata) if model == "gpt2" else (),
        beginning=token("bos"),
        ends=tuple(dict.fromkeys([*declared, *named])),
        unknown=token("unknown"),
        padding=token("padding"),
        # As llama.cpp has it where a file does not say: SentencePiece's models begin with a token, GPT-2's do not, Llama 3's does.
        add_beginning=flag("add_bos_token", model == "llama" or pre in ("llama-bpe", "llama3", "llama-v3")),
        add_end=flag("add_eos_token", False),
        space_prefix=flag("add_space_prefix", model == "llama"),
    )


def _merges(metadata: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for line in _list(metadata, "merges", str):
        at = line.find(" ", 1)  # A piece may begin with the separator, but none is empty.
        if at < 0:
            raise Invalid(f"GGUF key tokenizer.ggml.merges has {line!r}, which is no pair")
        pairs.append((line[:at], line[at + 1 :]))
    return tuple(pairs)


def _list(metadata: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    values = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise Invalid(f"GGUF key tokenizer.ggml.{name} is missing or no array")
    if not all(isinstance(value, kind) for value in values):
        raise Invalid(f"GGUF key tokenizer.ggml.{name} has values that are no {kind.__name__}")
    return list(values)
