"""What the small files beside a tokenizer say: which tokens begin and end a text, which were added.

In: a directory of a Hugging Face model: tokenizer_config.json, special_tokens_map.json, added_tokens.json, generation_config.json and
config.json, each of which may be missing. Out: `Settings`. Where files differ, the more special one wins, as in `transformers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from rkfleet.errors import Invalid
from toolkit.checkpoint.json_file import read_json

__all__ = ["Added", "Settings", "read_settings"]

ADDED_MAX = 1 << 16  # Tokens added to a vocabulary; Gemma 3 has 6,415.
_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json", "config.json")


class Added(msgspec.Struct, frozen=True):
    """A token that was added to a vocabulary."""

    id: int
    content: str
    special: bool


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What was said.

    Attributes:
        tokens: Text of `bos_token`, `eos_token`, `unk_token`, `pad_token`, where they are said.
        end_ids: Of generation_config.json and config.json.
        add_beginning: `add_bos_token`; None where nothing says.
    """

    tokens: Mapping[str, str]
    added: tuple[Added, ...]
    end_ids: tuple[int, ...]
    add_beginning: bool | None
    add_end: bool
    tokenizer_class: str


def read_settings(directory: Path) -> Settings:
    """Read what is there.

    Raises:
        Invalid: A file is no JSON, or a field is of another type than it should be.
    """
    files = {name: read_json(directory / name) if (directory / name).is_file() else {} for name in _FILES}
    config, map_ = files["tokenizer_config.json"], files["special_tokens_map.json"]
    tokens = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        text = _text(config.get(name) if name in config else map_.get(name))
        if text is not None:
            tokens[name] = text
    return Settings(
        tokens=tokens,
        added=_added(config, files["added_tokens.json"]),
        end_ids=tuple(dict.fromkeys([*_ids(files, "generation_config.json"), *_ids(files, "config.json")])),
        add_beginning=_flag(config, "add_bos_token"),
        add_end=bool(_flag(config, "add_eos_token")),
        tokenizer_class=str(config.get("tokenizer_class", "")),
    )


def _text(value: Any) -> str | None:
    """Return a token that is written as text, or as an object with its content."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _flag(config: Mapping[str, Any], name: str) -> bool | None:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise Invalid(f"tokenizer_config.json: {name} is {value!r}, not true or false")
    return value


def _ids(files: Mapping[str, Mapping[str, Any]], name: str) -> list[int]:
    value = files[name].get("eos_token_id")
    values = value if isinstance(value, list) else [] if value is None else [value]
    for one in values:
        if isinstance(one, bool) or not isinstance(one, int) or one < 0:
            raise Invalid(f"{name}: eos_token_id is {value!r}, no token id")
    return values


def _added(config: Mapping[str, Any], file: Mapping[str, Any]) -> tuple[Added, ...]:
    found: dict[int, Added] = {}
    for content, at in file.items():
        if isinstance(at, bool) or not isinstance(at, int) or not 0 <= at < 1 << 31:
            raise Invalid(f"added_tokens.json: the id of {content!r} is {at!r}, no token id")
        found[at] = Added(at, content, content.startswith("<") and content.endswith(">"))
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, Mapping):
        raise Invalid("tokenizer_config.json: added_tokens_decoder is no object")
    for key, value in decoder.items():
        text = _text(value)
        if not key.isascii() or not key.isdigit() or len(key) > 10 or text is None:
            raise Invalid(f"tokenizer_config.json: added_tokens_decoder has {key!r}: {value!r}, which is no token")
        found[int(key)] = Added(int(key), text, isinstance(value, Mapping) and value.get("special") is True)
    if len(found) > ADDED_MAX:
        raise Invalid(f"{len(found)} tokens are added to the vocabulary; at most {ADDED_MAX} are taken")
    return tuple(found[at] for at in sorted(found))
