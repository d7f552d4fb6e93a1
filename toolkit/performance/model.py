"""The benchmark model: time to the first token, tokens per second and memory of a model on a chip.

In: `Facts` of a model, a chip, a dtype, and how it is to be used. Out: `Figures`, each an `Estimate` with its origin: the vendor's own
figure where its table has a row of the very model, else a prediction from the rows of that chip and dtype, with the interval in which
COVERAGE of those rows would have fallen; beyond the sizes of the rows it is called extrapolated.

The formulas are those of a machine that reads every weight for a token and multiplies with every weight for a prompt:

    seconds per token        = a + b * parameters
    seconds to first token   = c + d * operations,  operations = 2 * parameters * prompt + 2 * attention width * prompt^2
    bytes                    = e + f * parameters + cache bytes per token * context

a to f are fitted to the rows when they are asked for. The two releases of the table measured differently and are never mixed: the newest
that has enough rows is taken. Rows of
networks that do not work like this (mixtures of experts, recurrent ones, embeddings by layer) are left out: see DIFFERENT.

Sources: the table is airockchip/rknn-llm's (`rkfleet.benchmarks`); that decoding is bound by reading weights: arXiv:2211.05102.
"""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from rkfleet.benchmarks import PROTOCOLS, Row, Table, load_table
from rkfleet.errors import Invalid, NotFound
from toolkit.performance.facts import Facts
from toolkit.performance.fit import Line, fit

__all__ = ["DIFFERENT", "Estimate", "Figures", "Lines", "Origin", "Usage", "lines_of", "predict", "row_of", "rows_used"]

Origin = Literal["vendor", "predicted", "extrapolated"]

BILLION: Final = 1e9
SIZE_TOLERANCE: Final = 0.3  # Vendor's names round: its Gemma2-2B has 2.6 billion parameters.
EXTRAPOLATION_MAX: Final = 4.0  # Times beyond the rows' sizes; further out the fitted base decides, which a few rows do not tell.
DIFFERENT: Final = ("rwkv", "deepseekocr", "gemma3n", "gemma-3n", "gemma4", "qwen3.5")
"""Beginnings of names of networks that are recurrent, mixtures of experts, or count only some parameters in their names."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is to be used.

    Attributes:
        sdk_version: Release of the table; empty for the newest that knows the chip with the dtype.
    """

    prompt_tokens: int = 128
    new_tokens: int = 256
    context_tokens: int = 4096
    sdk_version: str = ""

    def check(self) -> Usage:
        """Return itself.

        Raises:
            Invalid: A number is not positive, or the table has no such release.
        """
        for field in ("prompt_tokens", "new_tokens", "context_tokens"):
            value = getattr(self, field)
            if value < 1:
                raise Invalid(f"{field.replace('_', ' ')} is {value}; it must be 1 or more")
        if self.sdk_version and self.sdk_version not in PROTOCOLS:
            raise Invalid(f"the benchmark table has no release {self.sdk_version!r}; it has {', '.join(PROTOCOLS)}")
        return self

    def releases(self) -> tuple[str, ...]:
        """Return the releases to ask, first first."""
        return (self.sdk_version,) if self.sdk_version else tuple(sorted(PROTOCOLS, reverse=True))


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """One figure; low and high are the interval, both the value where the vendor measured it."""

    value: float
    low: float
    high: float
    origin: Origin


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What to expect on one chip with one dtype.

    Attributes:
        basis: Sentence that says what the figures rest on.
    """

    soc: str
    dtype: str
    first_token_seconds: Estimate
    tokens_per_second: Estimate
    memory_bytes: Estimate
    basis: str


class Lines(msgspec.Struct, frozen=True, kw_only=True):
    """What was fitted to the rows of one release, chip and dtype."""

    token_seconds: Line
    prompt_seconds: Line
    memory_bytes: Line


def rows_used(table: Table, soc: str, dtype: str, sdk_version: str) -> list[Row]:
    """Return the rows that a prediction rests on."""
    rows = table.select(soc=soc, sdk_version=sdk_version)
    return [row for row in rows if row.dtype == dtype and not row.model.lower().startswith(DIFFERENT)]


def lines_of(table: Table, soc: str, dtype: str, sdk_version: str) -> Lines | None:
    """Return the lines through the rows of a release, chip and dtype, or None if they are too few."""
    rows = rows_used(table, soc, dtype, sdk_version)
    parameters = [row.parameters_billions * BILLION for row in rows]
    operations = [_operations(one, row.protocol.prompt_tokens, 0) for one, row in zip(parameters, rows, strict=True)]
    token = fit(parameters, [1 / row.tokens_per_second for row in rows])
    prompt = fit(operations, [row.time_to_first_token_seconds for row in rows])
    memory = fit(parameters, [float(row.memory_bytes) for row in rows])
    if token is None or prompt is None or memory is None:
        return None
    return Lines(token_seconds=token, prompt_seconds=prompt, memory_bytes=memory)


def row_of(table: Table, facts: Facts, soc: str, dtype: str, *, sdk_version: str = "", reference: str = "") -> Row | None:
    """Return the vendor's row of the very model: of the name that was given, or the one that its files' name and size match."""
    if reference:
        return table.find(reference, dtype, soc, sdk_version)
    own = _plain(facts.name)
    rows = [row for row in table.select(soc=soc, sdk_version=sdk_version) if row.dtype == dtype and own and _plain(row.model) in own]
    near = [row for row in rows if abs(row.parameters_billions * BILLION / max(facts.parameters, 1) - 1) <= SIZE_TOLERANCE]
    return max(near, key=lambda row: len(_plain(row.model)), default=None)  # The longest name says most.


def predict(facts: Facts, soc: str, dtype: str, usage: Usage, *, reference: str = "", table: Table | None = None) -> Figures | None:
    """Return what to expect, or None if the table has too few rows of the chip with that dtype, or none near the model's size.

    Raises:
        NotFound: A reference was given, and the table has no such row.
        Invalid: The usage is none.
    """
    usage.check()
    table = table or load_table()
    for release in usage.releases():
        row = row_of(table, facts, soc, dtype, sdk_version=release, reference=reference)
        if row is not None:
            return _of_row(row, facts, usage)
    if reference and not table.select(reference):
        raise NotFound(table.why_missing(reference, dtype, soc, usage.sdk_version))
    for release in usage.releases():
        lines = lines_of(table, soc, dtype, release)
        if lines is not None and lines.token_seconds.near(facts.parameters, EXTRAPOLATION_MAX):
            return _of_lines(lines, facts, (soc, dtype, release), usage)
    return None


def _of_lines(lines: Lines, facts: Facts, place: tuple[str, str, str], usage: Usage) -> Figures:
    """Return figures by the lines through the rows of a chip, dtype and release."""
    soc, dtype, release = place
    operations = _operations(facts.parameters, usage.prompt_tokens, facts.attention_width)
    token = _estimate(lines.token_seconds, facts.parameters)
    cache = float(facts.cache_bytes_per_token * usage.context_tokens)
    memory = _estimate(lines.memory_bytes, facts.parameters)
    origin = token.origin
    sizes = f"{lines.token_seconds.smallest / BILLION:g} to {lines.token_seconds.largest / BILLION:g} billion parameters"
    told = f"{lines.token_seconds.rows} of the vendor's rows, {soc.upper()} {dtype}, SDK {release}, {sizes}"
    return Figures(
        soc=soc,
        dtype=dtype,
        first_token_seconds=_with_origin(_estimate(lines.prompt_seconds, operations), origin),
        tokens_per_second=Estimate(value=1 / token.value, low=1 / token.high, high=1 / token.low, origin=origin),
        memory_bytes=Estimate(value=memory.value + cache, low=memory.low + cache, high=memory.high + cache, origin=origin),
        basis=told + ("; this model is outside, so take it as a direction" if origin == "extrapolated" else ""),
    )


def _of_row(row: Row, facts: Facts, usage: Usage) -> Figures:
    """Return the vendor's figures; a longer prompt takes proportionally longer, a longer context the cache on top."""
    asked = _operations(facts.parameters, usage.prompt_tokens, facts.attention_width)
    measured = _operations(facts.parameters, row.protocol.prompt_tokens, facts.attention_width)
    same_prompt = usage.prompt_tokens == row.protocol.prompt_tokens
    first = row.time_to_first_token_seconds * (1.0 if same_prompt else asked / measured)
    further = max(usage.context_tokens - (row.max_context_tokens or 0), 0) * facts.cache_bytes_per_token
    memory = float(row.memory_bytes + further)
    speed = row.tokens_per_second
    told = [f"vendor's row {row.model} {row.dtype} on {row.soc.upper()}, SDK {row.sdk_version}"]
    told += [] if same_prompt else [f"time to the first token scaled from {row.protocol.prompt_tokens} prompt tokens"]
    told += [f"cache of {usage.context_tokens} tokens added to its memory"] if further else []
    return Figures(
        soc=row.soc,
        dtype=row.dtype,
        first_token_seconds=Estimate(value=first, low=first, high=first, origin="vendor" if same_prompt else "predicted"),
        tokens_per_second=Estimate(value=speed, low=speed, high=speed, origin="vendor"),
        memory_bytes=Estimate(value=memory, low=memory, high=memory, origin="predicted" if further else "vendor"),
        basis="; ".join(told),
    )


def _estimate(line: Line, size: float) -> Estimate:
    value = line.at(size)
    inside = line.smallest <= size <= line.largest
    return Estimate(value=value, low=value / line.spread, high=value * line.spread, origin="predicted" if inside else "extrapolated")


def _with_origin(estimate: Estimate, origin: Origin) -> Estimate:
    return msgspec.structs.replace(estimate, origin=origin)


def _operations(parameters: float, prompt_tokens: int, attention_width: int) -> float:
    return 2.0 * parameters * prompt_tokens + 2.0 * attention_width * prompt_tokens**2


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())
