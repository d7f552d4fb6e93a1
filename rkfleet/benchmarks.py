"""The vendor's benchmark table of RKLLM, as code: every row of both releases, typed, with their conditions.

In: `data/rkllm_benchmarks.csv`, which is package data. Out: a `Table` of frozen rows and exact look-ups. Used by simulated boards, whose
speed a row is, by `rkfleet bench table`, and by `rkfleet model push --simulated`. It stands apart from all of them because these are facts
of somebody else: the vendor measured them, on its own boards, with CPU and NPU at their highest clocks.

Two protocols are in it and never mixed: a time to the first token after 64 prompt tokens says nothing about one after 128.

Sources: airockchip/rknn-llm, `README.md` at release 1.1.0..1.1.3 (32 rows) and `benchmark.md` at release 1.3.0 (87 rows). The first prints
memory in G, taken here as GiB; the second in MB, taken as MiB: what is reserved by it is rather too much than too little.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Final

import msgspec

from rkfleet.errors import NotFound

__all__ = ["CONDITIONS", "MEBIBYTE", "PROTOCOLS", "Protocol", "Row", "Table", "load_table"]

MEBIBYTE: Final = 1 << 20


class Protocol(msgspec.Struct, frozen=True, gc=False):
    """How the rows of one release were measured.

    Attributes:
        sdk_version: Release of the RKLLM SDK.
        prompt_tokens: Tokens of the prompt (the source calls it seqlen); the time to the first token is that of such a prompt.
        new_tokens: Tokens that were decoded; tokens per second is their average.
        source: Where it is published.
    """

    sdk_version: str
    prompt_tokens: int
    new_tokens: int
    source: str


PROTOCOLS: Final[Mapping[str, Protocol]] = {
    "1.1.0": Protocol("1.1.0", 64, 256, "airockchip/rknn-llm README.md, releases 1.1.0 to 1.1.3"),
    "1.3.0": Protocol("1.3.0", 128, 64, "airockchip/rknn-llm benchmark.md, release 1.3.0"),
}
CONDITIONS: Final = "vendor's figures, measured on its boards with CPU and NPU at their highest clocks"


class Row(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One line of the table.

    Attributes:
        sdk_version: Release of the RKLLM SDK, a key of `PROTOCOLS`.
        model: Name as the vendor writes it, with the size: `Qwen2-1.5B`.
        parameters_billions: The number before the B.
        soc: Chip in lower case: rk3588, rk3576, rk3562 or rv1126b.
        max_context_tokens: Context that was loaded; None where the source does not say.
        time_to_first_token_seconds: For a prompt of `protocol.prompt_tokens`.
        tokens_per_second: Decode speed.
        memory_bytes: Memory of the process at its highest.
    """

    sdk_version: str
    model: str
    parameters_billions: float
    dtype: str
    soc: str
    max_context_tokens: int | None
    time_to_first_token_seconds: float
    tokens_per_second: float
    memory_bytes: int

    @property
    def protocol(self) -> Protocol:
        """How the row was measured."""
        return PROTOCOLS[self.sdk_version]


class Table(msgspec.Struct, frozen=True):
    """All rows, in the order of the source."""

    rows: tuple[Row, ...]

    def find(self, model: str, dtype: str, soc: str, sdk_version: str = "") -> Row | None:
        """Return the row of a model, a quantization and a chip, or None; without a release, that of the newest which has one.

        Letter case does not matter: the vendor itself is not consistent in it.
        """
        found = [row for row in self._of(model, sdk_version) if row.dtype == dtype.lower() and row.soc == soc.lower()]
        return max(found, key=lambda row: _version(row.sdk_version), default=None)

    def get(self, model: str, dtype: str, soc: str, sdk_version: str = "") -> Row:
        """Return the row, as `find`.

        Raises:
            NotFound: There is none; the message names what there is instead.
        """
        row = self.find(model, dtype, soc, sdk_version)
        if row is None:
            raise NotFound(self.why_missing(model, dtype, soc, sdk_version))
        return row

    def why_missing(self, model: str, dtype: str, soc: str, sdk_version: str = "") -> str:
        """Return the sentence that says which row is not there and which are, nearest first."""
        asked = f"the benchmark table has no row for {model!r} {dtype} on {soc}{_of_release(sdk_version)}"
        known = sorted({row.sdk_version for row in self.rows})
        if sdk_version and sdk_version not in known:
            return f"{asked}: its releases are {', '.join(known)}"
        if not self._of(model, ""):
            names = sorted({row.model for row in self.rows})
            close = difflib.get_close_matches(model.lower(), [name.lower() for name in names], n=4, cutoff=0.4)
            near = [name for name in names if name.lower() in close] or names
            return f"{asked}: it does not know the model; {'similar names are' if close else 'it knows'} {', '.join(near)}"
        others = [f"{row.dtype} on {row.soc} ({row.sdk_version})" for row in self._of(model, "")]
        return f"{asked}: of this model it has {', '.join(others)}"

    def best(self, model: str, soc: str, sdk_version: str = "") -> Row | None:
        """Return the row with the most tokens per second of a model on a chip, or None.

        Without a release, among the rows of the newest which has any for that chip.
        """
        found = [row for row in self._of(model, sdk_version) if row.soc == soc.lower()]
        newest = max((_version(row.sdk_version) for row in found), default=())
        return max((row for row in found if _version(row.sdk_version) == newest), key=lambda row: row.tokens_per_second, default=None)

    def select(self, model: str = "", soc: str = "", sdk_version: str = "") -> tuple[Row, ...]:
        """Return the rows that match; an empty word matches all."""
        rows = self._of(model, sdk_version) if model else [row for row in self.rows if not sdk_version or row.sdk_version == sdk_version]
        return tuple(row for row in rows if not soc or row.soc == soc.lower())

    def _of(self, model: str, sdk_version: str) -> list[Row]:
        wanted = model.lower()
        return [row for row in self.rows if row.model.lower() == wanted and (not sdk_version or row.sdk_version == sdk_version)]


@cache
def load_table() -> Table:
    """Read the table; it is the same for the life of the program."""
    text = (resources.files("rkfleet") / "data" / "rkllm_benchmarks.csv").read_text()
    return Table(tuple(_row(line) for line in csv.DictReader(text.splitlines())))


def _row(line: Mapping[str, str]) -> Row:
    row = Row(
        sdk_version=line["sdk_version"],
        model=line["model"],
        parameters_billions=float(line["params_b"]),
        dtype=line["dtype"],
        soc=line["platform"].lower(),
        max_context_tokens=int(line["max_context"]) if line["max_context"] else None,
        time_to_first_token_seconds=float(line["ttft_ms"]) / 1000,
        tokens_per_second=float(line["tokens_per_s"]),
        memory_bytes=round(float(line["memory_mb"]) * MEBIBYTE),
    )
    assert (int(line["seqlen"]), int(line["new_tokens"])) == (row.protocol.prompt_tokens, row.protocol.new_tokens)
    return row


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _of_release(sdk_version: str) -> str:
    return f" of release {sdk_version}" if sdk_version else ""
