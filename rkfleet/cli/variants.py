"""What a person writes about variants on the command line, and what becomes of a Model's variants when some are pushed. Pure.

In: `--variant` words and the files that belong to them. Out: entries of `Model.spec.variants`, checked by the kind itself, and the new
list of a Model that may exist already. `rkfleet model push` is the only caller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from rkfleet.errors import Conflict, Invalid
from rkfleet.kinds.model import ArtifactFile, Variant
from rkfleet.packaging import default_memory_bytes
from rkfleet.quantity import format_bytes, parse_bytes

__all__ = ["FurtherFile", "Json", "VariantWords", "merge_variants", "parse_variant", "variant_of"]

Json = dict[str, Any]

_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "name": ("name",),
    "soc": ("soc",),
    "dtype": ("dtype",),
    "runtime": ("runtime",),
    "context": ("contextTokens",),
    "memory": ("requires", "memory"),
    "npuCores": ("requires", "npuCores"),
    "runtimeVersion": ("requires", "runtimeVersion"),
    "driverVersion": ("requires", "driverVersion"),
    "reference": ("reference", "model"),
    "sdkVersion": ("reference", "sdkVersion"),
}
"""What may stand in `--variant`, and the field of the variant that it sets."""

_ROLES: Final = ("adapter", "encoder", "template", "tokenizer", "config", "doc")
"""Further files of a variant, by role: `role=FILE`. Each adapter has its weight: `adapter=FILE@PERCENT`."""

_SEVERAL: Final = ("adapter", "tokenizer", "config", "doc")
"""Roles that several files of a variant may have."""

_SCALE: Final = re.compile(r"(.+)@([0-9]{1,4})")

_NUMBERS: Final = ("context", "npuCores")
_REQUIRED: Final = ("name", "soc", "dtype", "runtime")
_IN_MEMORY: Final = ("weight", "adapter", "encoder")  # Roles of files that a loaded model holds.
_CHANGEABLE: Final = ("requires", "reference")  # As the CEL rule of the Model kind says.
_KEY_WORD: Final = re.compile(r"[A-Za-z]+=")


class FurtherFile(msgspec.Struct, frozen=True):
    """A file that belongs to a variant besides its weights; `scale_percent` is an adapter's weight in the joint inference."""

    role: str
    path: str
    scale_percent: int = 100


class VariantWords(msgspec.Struct, frozen=True):
    """One `--variant`: the fields that were written, as a variant without its artifact, and the files that were named.

    Attributes:
        recipe: Digest of the recipe that the weights were made by, or empty.
    """

    fields: Json
    files: tuple[FurtherFile, ...] = ()
    recipe: str = ""

    @property
    def name(self) -> str:
        """Name of the variant."""
        return str(self.fields["name"])


def parse_variant(text: str) -> VariantWords:
    """Read `name=…,soc=…,dtype=…,runtime=…[,context=…][,adapter=FILE]…`; a part without `key=` belongs to the value before it.

    Raises:
        Invalid: A key is unknown, missing or twice there, or a number is none.
    """
    words: dict[str, str] = {}
    files: list[tuple[str, str]] = []
    last = ""
    for part in text.split(","):
        if _KEY_WORD.match(part):
            last, _, value = part.partition("=")
            if last not in _KEYS and last not in _ROLES:
                raise Invalid(f"--variant {text!r}: key {last!r} is unknown; known are {', '.join((*_KEYS, *_ROLES))}")
            if last in words or (last not in _SEVERAL and any(role == last for role, _ in files)):
                raise Invalid(f"--variant {text!r}: {last} is there twice")
            if last in _ROLES:
                files.append((last, value))
            else:
                words[last] = value
        elif last in _ROLES:
            files[-1] = (last, f"{files[-1][1]},{part}")
        elif last:
            words[last] += f",{part}"  # runtimeVersion=>=1.1.0,<1.4
        else:
            raise Invalid(f"--variant {text!r}: {part!r} is not key=value")
    if missing := [key for key in _REQUIRED if not words.get(key)]:
        raise Invalid(f"--variant {text!r}: {', '.join(missing)} is missing")
    fields: Json = {}
    for key, value in words.items():
        *parents, field = _KEYS[key]
        target = fields
        for parent in parents:
            target = target.setdefault(parent, {})
        target[field] = _number(text, key, value) if key in _NUMBERS else value
    if "reference" in fields and "model" not in fields["reference"]:
        raise Invalid(f"--variant {text!r}: sdkVersion needs reference")
    return VariantWords(fields, tuple(_further(text, role, value) for role, value in files))


def _further(text: str, role: str, value: str) -> FurtherFile:
    scaled = _SCALE.fullmatch(value) if role == "adapter" else None
    path = scaled.group(1) if scaled else value
    if not path:
        raise Invalid(f"--variant {text!r}: {role} names no file")
    return FurtherFile(role, path, int(scaled.group(2)) if scaled else 100)


def variant_of(words: VariantWords, files: Sequence[ArtifactFile], manifest_digest: str) -> Json:
    """Return the variant as JSON; what was not written has its default, the memory that of `default_memory_bytes`.

    Args:
        words: What was written about it.
        files: Its files, the weights first.
        manifest_digest: Of its artifact.

    Raises:
        Invalid: The Model kind does not take a value, or two files would have the same name on the board.
    """
    names = [file.path for file in files]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise Invalid(f"variant {words.name!r} has two files named {twice!r}; requests and boards tell files by their names")
    variant = {**words.fields, "artifact": {"manifestDigest": manifest_digest, "files": [msgspec.to_builtins(file) for file in files]}}
    try:
        read = msgspec.convert(variant, Variant)
        parse_bytes(read.requires.memory)
    except ValueError as error:  # msgspec.ValidationError is one
        raise Invalid(f"variant {words.name!r}: {error}") from error
    loaded = sum(file.size_bytes for file in files if file.role in _IN_MEMORY)
    memory = format_bytes(default_memory_bytes(loaded, read.context_tokens))
    return {**variant, "contextTokens": read.context_tokens, "requires": {"memory": memory, **words.fields.get("requires", {})}}


def merge_variants(model: str, stored: Sequence[Json], pushed: Sequence[tuple[VariantWords, Json]]) -> list[Json]:
    """Return the variants of the Model after a push: stored ones in their order, new ones after them.

    Of a stored variant only what was written of `requires` and `reference` changes.

    Raises:
        Conflict: A pushed variant would change another field of a stored one.
    """
    merged = {variant["name"]: variant for variant in stored}
    for words, variant in pushed:
        old = merged.get(words.name)
        if old is None:
            merged[words.name] = variant
            continue
        for (field, before), (_, after) in zip(_fixed(old), _fixed(variant), strict=True):
            if before != after and (field != "context" or "contextTokens" in words.fields):
                raise Conflict(
                    f"Model {model!r} has variant {words.name!r} with {field} {before}, pushed is {after}; variants are never changed: "
                    "push it under another variant name, or as another Model"
                )
        written: Json = {field: {**old.get(field, {}), **words.fields[field]} for field in _CHANGEABLE if field in words.fields}
        merged[words.name] = {**old, **written}
    return list(merged.values())


def _fixed(variant: Json) -> tuple[tuple[str, Any], ...]:
    """Return what may never change, as (word, value)."""
    read = msgspec.convert(variant, Variant)
    files = ", ".join(_file_words(file) for file in read.artifact.files)
    return ("soc", read.soc), ("dtype", read.dtype), ("runtime", read.runtime), ("context", read.context_tokens), ("file", files)


def _file_words(file: ArtifactFile) -> str:
    role = "" if file.role == "weight" else f" as {file.role}"
    scale = f" at {file.scale_percent}%" if file.role == "adapter" else ""
    return f"{file.path} {file.digest}{role}{scale}"


def _number(text: str, key: str, value: str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise Invalid(f"--variant {text!r}: {key} must be a whole number, is {value!r}") from error
