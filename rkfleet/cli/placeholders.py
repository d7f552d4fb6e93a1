"""Models for boards that do not exist: rows of the benchmark table become placeholder files and the words of their variants. Pure.

In: a model of the table, perhaps a release. Out: one `Placeholder` per chip, the fastest row of each. `rkfleet model push --simulated`
writes the files and pushes them like any others, so that registry, placement and boards do what they do for real ones. The bytes follow
from the row alone: the same push again is "unchanged".
"""

from __future__ import annotations

import hashlib
import math
import re
from typing import Final

import msgspec

from rkfleet.benchmarks import MEBIBYTE, Row, Table
from rkfleet.cli.variants import VariantWords
from rkfleet.errors import NotFound
from rkfleet.simulated import CHIPS, MAGIC

__all__ = ["Placeholder", "family_of", "object_name", "parameters_of", "placeholder_of", "plan_placeholders"]

# Large enough that a download is one, with ranges, progress and verification; small enough for a hundred boards on one disk.
PLACEHOLDER_BYTES: Final = 1 << 20

# What the vendor's converter builds by default. The contexts in the table (320 in one release) are those of its measurement.
CONTEXT_TOKENS: Final = 4096

_SIZE: Final = re.compile(r"-(E?\d+(?:\.\d+)?B)(?:\(.*\))?$")


class Placeholder(msgspec.Struct, frozen=True):
    """One file to push: its name, its bytes, and the words of the variant that it is the artifact of."""

    file_name: str
    body: bytes
    words: VariantWords


def plan_placeholders(table: Table, model: str, sdk_version: str = "") -> tuple[Placeholder, ...]:
    """Return a placeholder for each chip that can be simulated and has rows of the model.

    Args:
        table: The benchmark table.
        model: Name in the table; letter case does not matter.
        sdk_version: Release of the rows; empty takes for each chip the newest that has some.

    Raises:
        NotFound: No chip that can be simulated has a row; the message names what there is.
    """
    rows = [row for soc in CHIPS if (row := table.best(model, soc, sdk_version)) is not None]
    if not rows:
        chips = " or ".join(CHIPS)
        raise NotFound(f"{table.why_missing(model, 'any dtype', chips, sdk_version)}. Try: rkfleet bench table")
    return tuple(placeholder_of(row) for row in rows)


def object_name(model: str) -> str:
    """Return a model's name as an object may be called: `Qwen2-1.5B` is `qwen2-1.5b`."""
    return re.sub(r"[^a-z0-9.-]+", "-", model.lower()).strip("-.")


def family_of(model: str) -> str:
    """Return the family: what stands before the size."""
    return _SIZE.sub("", model).lower()


def parameters_of(model: str) -> str:
    """Return the size as the vendor writes it, empty if the name has none."""
    found = _SIZE.search(model)
    return found.group(1) if found else ""


def placeholder_of(row: Row) -> Placeholder:
    """Return the placeholder of one row of a chip that can be simulated."""
    name = f"{row.soc}-{row.dtype.replace('_', '-')}"
    about = {
        "model": row.model,
        "soc": row.soc,
        "dtype": row.dtype,
        "sdkVersion": row.sdk_version,
        # The figures, for the simulated runtime library (simulation/runtime), which does not know the table.
        "ttftMs": f"{row.time_to_first_token_seconds * 1000:g}",
        "tokensPerS": f"{row.tokens_per_second:g}",
        "memoryMb": f"{row.memory_bytes / MEBIBYTE:g}",
        "seqlen": str(row.protocol.prompt_tokens),
    }
    head = MAGIC + "".join(f"{key}: {value}\n" for key, value in about.items()).encode() + b"\n"
    filling = hashlib.shake_256(head).digest(PLACEHOLDER_BYTES - len(head))
    words = VariantWords(
        {
            "name": name,
            "soc": row.soc,
            "dtype": row.dtype,
            "runtime": "rkllm",
            "contextTokens": CONTEXT_TOKENS,
            "requires": {"memory": f"{math.ceil(row.memory_bytes / MEBIBYTE)}Mi", "npuCores": CHIPS[row.soc].npu_cores},
            "reference": {"model": row.model, "sdkVersion": row.sdk_version},
        }
    )
    return Placeholder(f"{object_name(row.model)}-{name}.rkllm", head + filling, words)
