"""How byte-level BPE splits a text into words before it merges: the patterns by their GGUF names.

In: `tokenizer.ggml.pre` of a GGUF file, or the `pre_tokenizer` of a tokenizer.json. Out: patterns for the `tokenizers` library, or the
name. Each pattern splits the pieces that the one before left: what matches stands alone, and so does what lies between.

Source: the published tokenizer.json of GPT-2, StarCoder, SmolLM, Llama 3 and Qwen2; names as in llama.cpp, `llama-vocab.cpp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rkfleet.errors import Invalid

__all__ = ["PATTERNS", "ignores_merges", "name_of", "patterns_of"]

_DIGIT: Final = r"\p{N}"
_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3: Final = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2: Final = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_DEFAULT: Final = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")

PATTERNS: Final[Mapping[str, tuple[str, ...]]] = {
    "default": _DEFAULT,
    "gpt-2": (_GPT2,),
    "phi-2": (_GPT2,),
    "mpt": (_GPT2,),
    "olmo": (_GPT2,),
    "smollm": (_DIGIT, _GPT2),
    "starcoder": (_DIGIT, _GPT2),
    "refact": (_DIGIT, _GPT2),
    "command-r": (_DIGIT, _GPT2),
    "codeshell": (_DIGIT, _GPT2),
    "exaone": (_DIGIT, _GPT2),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "falcon3": (_LLAMA3,),
    "smaug-bpe": (_LLAMA3,),
    "dbrx": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
    "megrez": (_QWEN2,),
}
_WHOLE_WORDS: Final = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3"})
_WRITTEN: Final = ("gpt-2", "smollm", "llama-bpe", "qwen2")  # Names to choose from for a tokenizer.json; the others mean the same.


def patterns_of(name: str) -> tuple[str, ...]:
    """Return the patterns of a GGUF name.

    Raises:
        Invalid: It is unknown; splitting by another's patterns would give other tokens in silence.
    """
    try:
        return PATTERNS[name]
    except KeyError as error:
        known = ", ".join(PATTERNS)
        raise Invalid(
            f"GGUF key tokenizer.ggml.pre is {name!r}, a splitting into words that is unknown; known are {known}. "
            "Take the model's Hugging Face directory: its tokenizer.json says how it splits"
        ) from error


def ignores_merges(name: str) -> bool:
    """Whether a word that is a piece as a whole is that piece, whatever the merges would make of it."""
    return name in _WHOLE_WORDS


def name_of(pre_tokenizer: Any, *, ignore_merges: bool) -> str:
    """Return the GGUF name of the `pre_tokenizer` of a tokenizer.json with byte-level BPE.

    Raises:
        Invalid: No known name splits like it.
    """
    patterns = tuple(_patterns(pre_tokenizer))
    for name in _WRITTEN:
        if PATTERNS[name] == patterns:
            return "smaug-bpe" if name == "llama-bpe" and not ignore_merges else name
    raise Invalid(
        f"tokenizer.json: pre_tokenizer splits by {list(patterns)}, which has no name in GGUF; "
        f"known are the splittings of {', '.join(_WRITTEN)}"
    )


def _patterns(step: Any) -> list[str]:
    if not isinstance(step, Mapping):
        return []
    kind = step.get("type")
    if kind == "Sequence":
        inner = step.get("pretokenizers")
        return [pattern for one in (inner if isinstance(inner, list) else []) for pattern in _patterns(one)]
    if kind == "ByteLevel":
        return [_GPT2] if step.get("use_regex", True) and not step.get("add_prefix_space") else []
    if kind == "Digits" and step.get("individual_digits"):
        return [_DIGIT]
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        pattern = step.get("pattern")
        if isinstance(pattern, Mapping) and isinstance(pattern.get("Regex"), str):
            return [_canonical(pattern["Regex"])]
    return [f"{kind} {dict(step)}"]


def _canonical(pattern: str) -> str:
    """Write the two published spellings of contractions in one way."""
    return pattern.replace("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _CONTRACTIONS)
