"""The tokenizer of a directory of a Hugging Face model.

In: a directory with tokenizer.json (by the `tokenizers` library) or tokenizer.model (by SentencePiece), and the small files beside them.
Out: a `Tokenizer`, and a `Vocabulary` for a GGUF file. Code that such a directory may bring is never run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import tokenizers

from rkfleet.errors import Invalid, NotFound
from toolkit.checkpoint.json_file import read_json
from toolkit.tokens.base import Tokenizer
from toolkit.tokens.pretokenizers import name_of
from toolkit.tokens.sentencepiece import SentencePieceTokenizer, vocabulary_from_model
from toolkit.tokens.settings import Settings, read_settings
from toolkit.tokens.spm import SPACE
from toolkit.tokens.vocabulary import BYTE, CONTROL, END_NAMES, NORMAL, PIECES_MAX, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

__all__ = ["HuggingFaceTokenizer", "tokenizer_from_directory", "vocabulary_from_directory"]

TOKENIZER_BYTES_MAX: Final = 128 << 20  # Gemma 3's, the largest in use, has 33 MB.
_PROBE: Final = "a"


class HuggingFaceTokenizer:
    """A tokenizer.json."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self._tokenizer: Final = _load(path)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._ends: Final = frozenset(_ends(self._tokenizer, settings))
        self._beginning: Final = _beginning(self._tokenizer, settings)
        self._adds: Final = _adds_beginning(self._tokenizer, settings)

    @property
    def size(self) -> int:
        """Number of ids."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def beginning(self) -> int | None:
        """Id that begins a text."""
        return self._beginning

    @property
    def ends(self) -> frozenset[int]:
        """Ids at which generation stops."""
        return self._ends

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of a text; see `Tokenizer`."""
        self._tokenizer.encode_special_tokens = not special
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if special and self._adds and self._beginning is not None and ids[:1] != [self._beginning]:
            ids.insert(0, self._beginning)
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ids, special ones left out."""
        size = self.size
        text: str = self._tokenizer.decode([at for at in tokens if 0 <= at < size], skip_special_tokens=True)
        return text


def tokenizer_from_directory(directory: Path) -> Tokenizer:
    """Return the tokenizer of a directory.

    Raises:
        NotFound: It has none.
        Invalid: A file is damaged or names what is unknown.
    """
    settings = read_settings(directory)
    if (directory / "tokenizer.json").is_file():
        return HuggingFaceTokenizer(directory / "tokenizer.json", settings)
    if (directory / "tokenizer.model").is_file():
        return SentencePieceTokenizer(directory / "tokenizer.model", settings)
    raise NotFound(f"directory {str(directory)!r} has neither tokenizer.json nor tokenizer.model; add the one of the original model")


def vocabulary_from_directory(directory: Path) -> Vocabulary:
    """Return the tokenizer of a directory in the form of a GGUF file.

    Raises:
        NotFound: It has none.
        Invalid: A file is damaged, or GGUF has no form for this kind of tokenizer.
    """
    settings = read_settings(directory)
    if (directory / "tokenizer.model").is_file():  # It has the scores that a tokenizer.json made of it has lost.
        return vocabulary_from_model(directory / "tokenizer.model", settings)
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise NotFound(f"directory {str(directory)!r} has neither tokenizer.json nor tokenizer.model; add the one of the original model")
    return _vocabulary(path, settings)


def _load(path: Path) -> Any:
    if path.stat().st_size > TOKENIZER_BYTES_MAX:
        raise Invalid(f"tokenizer {str(path)!r} has more than {TOKENIZER_BYTES_MAX} bytes")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # (a panic of the library is no Exception)
        raise Invalid(f"tokenizer {str(path)!r} cannot be read: {error}") from error


def _beginning(tokenizer: Any, settings: Settings) -> int | None:
    text = settings.tokens.get("bos_token")
    found = None if text is None else tokenizer.token_to_id(text)
    return _prefix(tokenizer) if found is None else int(found)


def _adds_beginning(tokenizer: Any, settings: Settings) -> bool:
    """Whether the model wants its beginning: as the settings say, or as the file itself puts it before a text."""
    if settings.add_beginning is not None:
        return settings.add_beginning
    found = _prefix(tokenizer)
    return found is not None and found == _beginning(tokenizer, settings)


def _prefix(tokenizer: Any) -> int | None:
    """Return the token that the file's post-processor puts before a text."""
    plain = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    whole = tokenizer.encode(_PROBE, add_special_tokens=True).ids
    return int(whole[0]) if len(whole) > len(plain) and whole[1 : 1 + len(plain)] == plain else None


def _ends(tokenizer: Any, settings: Settings) -> list[int]:
    """Return ids that end an answer, the declared end first."""
    found = []
    text = settings.tokens.get("eos_token")
    if text is not None and tokenizer.token_to_id(text) is not None:
        found.append(int(tokenizer.token_to_id(text)))
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    found += [at for at in settings.end_ids if at < size]
    found += [at for at, one in sorted(tokenizer.get_added_tokens_decoder().items()) if one.special and one.content in END_NAMES]
    return list(dict.fromkeys(found))


def _vocabulary(path: Path, settings: Settings) -> Vocabulary:
    tokenizer = _load(path)  # The library has checked the file when this returns.
    file = read_json(path, TOKENIZER_BYTES_MAX)
    model = file["model"]
    kind = model.get("type", "BPE")
    steps = [step.get("type") for step in _steps(file.get("pre_tokenizer"))] + [step.get("type") for step in _steps(file.get("decoder"))]
    byte_level = "ByteLevel" in steps
    if kind != "BPE" or not (byte_level or model.get("byte_fallback")):
        raise Invalid(f"tokenizer {str(path)!r} is of kind {kind} without bytes for what has no piece; GGUF has no form for it here")
    pieces, kinds = _pieces(path, file, byte_level=byte_level)
    merges = [tuple(one) if isinstance(one, list) else tuple(one.split(" ", 1)) for one in model.get("merges", [])]
    unknown = model.get("unk_token")
    ids = model["vocab"]
    if unknown in ids and not byte_level:
        kinds[ids[unknown]] = UNKNOWN
    padding = settings.tokens.get("pad_token")
    beginning = _beginning(tokenizer, settings)
    return Vocabulary(
        model="gpt2" if byte_level else "llama",
        pre=name_of(file.get("pre_tokenizer"), ignore_merges=bool(model.get("ignore_merges"))) if byte_level else "",
        pieces=tuple(pieces),
        kinds=tuple(kinds),
        scores=() if byte_level else _scores(pieces, merges),
        merges=tuple(merges) if byte_level else (),
        beginning=beginning,
        ends=tuple(_ends(tokenizer, settings)),
        unknown=ids.get(unknown),
        padding=None if padding is None else tokenizer.token_to_id(padding),
        add_beginning=_adds_beginning(tokenizer, settings) and beginning is not None,
        add_end=settings.add_end,
        space_prefix=not byte_level and tokenizer.encode(_PROBE, add_special_tokens=False).tokens[:1] in ([SPACE + _PROBE], [SPACE]),
    )


def _pieces(path: Path, file: Mapping[str, Any], *, byte_level: bool) -> tuple[list[str], list[int]]:
    """Return pieces and kinds by id; ids that the file leaves out are unused."""
    found: dict[int, tuple[str, int]] = {}
    for piece, at in file["model"]["vocab"].items():
        byte = not byte_level and len(piece) == 6 and piece.startswith("<0x")
        found[at] = piece, BYTE if byte else NORMAL
    for one in file.get("added_tokens") or ():
        found[one["id"]] = one["content"], CONTROL if one["special"] else USER_DEFINED
    size = max(found, default=-1) + 1
    if not 0 < size <= PIECES_MAX:
        raise Invalid(f"tokenizer {str(path)!r} has ids up to {size - 1}; from 1 to {PIECES_MAX} pieces are taken")
    values = [found.get(at, (f"[PAD{at}]", UNUSED)) for at in range(size)]
    return [piece for piece, _ in values], [kind for _, kind in values]


def _scores(pieces: Sequence[str], merges: Sequence[tuple[str, ...]]) -> tuple[float, ...]:
    """Return scores that join in the order of the merges: the earlier a piece is first made, the better it scores."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return tuple(-float(ranks.get(piece, len(merges))) for piece in pieces)


def _steps(value: Any) -> list[Mapping[str, Any]]:
    if not isinstance(value, Mapping):
        return []
    inner = value.get("pretokenizers") or value.get("decoders")
    return [value, *(step for one in inner for step in _steps(one))] if isinstance(inner, list) else [value]
