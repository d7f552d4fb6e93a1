"""The benchmark model: vendor's figures where there are any, predictions from its rows elsewhere, and what is said of each."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from rkfleet.benchmarks import Table, load_table
from rkfleet.errors import Invalid, NotFound
from toolkit.performance.facts import Facts
from toolkit.performance.fit import COVERAGE, ROWS_MIN, fit, misses
from toolkit.performance.model import EXTRAPOLATION_MAX, Usage, lines_of, predict, row_of, rows_used

QWEN = Facts(name="Qwen2 1.5B Instruct", parameters=1_543_714_304, cache_bytes_per_token=28_672, attention_width=28 * 1536)
OTHER = msgspec.structs.replace(QWEN, name="Somebody's model", parameters=2_500_000_000)
AS_MEASURED = Usage(prompt_tokens=64, new_tokens=256, context_tokens=320, sdk_version="1.1.0")


def test_a_model_of_the_table_has_the_vendors_own_figures() -> None:
    figures = predict(QWEN, "rk3588", "w8a8", AS_MEASURED)
    row = load_table().get("Qwen2-1.5B", "w8a8", "rk3588", "1.1.0")
    assert figures is not None
    assert figures.tokens_per_second.value == row.tokens_per_second
    assert figures.first_token_seconds.value == row.time_to_first_token_seconds
    assert figures.memory_bytes.value == row.memory_bytes
    assert {figures.tokens_per_second.origin, figures.first_token_seconds.origin, figures.memory_bytes.origin} == {"vendor"}
    assert figures.basis == "vendor's row Qwen2-1.5B w8a8 on RK3588, SDK 1.1.0"


def test_a_reference_names_the_row_and_an_unknown_one_is_refused() -> None:
    assert predict(OTHER, "rk3588", "w8a8", AS_MEASURED, reference="llama3-8B").tokens_per_second.value == 3.79  # type: ignore[union-attr]
    with pytest.raises(NotFound, match="GPT-5"):
        predict(OTHER, "rk3588", "w8a8", AS_MEASURED, reference="GPT-5")


@pytest.mark.parametrize(
    ("name", "billions", "row"),
    [
        ("Qwen2 1.5B Instruct", 1.54, "Qwen2-1.5B"),
        ("Qwen2.5 1.5B Instruct", 1.54, "Qwen2.5-1.5B"),
        ("Qwen3 0.6B", 0.6, "Qwen3-0.6B"),
        ("Qwen3.5 0.8B", 0.8, "Qwen3.5-0.8B"),
        ("MiniCPM3 4B", 4.07, "MiniCPM3-4B"),
        ("Qwen2 1.5B", 7.0, None),
        ("", 1.5, None),
    ],
)
def test_a_row_is_that_of_the_very_model(name: str, billions: float, row: str | None) -> None:
    facts = msgspec.structs.replace(QWEN, name=name, parameters=int(billions * 1e9))
    found = [one for release in ("1.1.0", "1.3.0") if (one := row_of(load_table(), facts, "rk3588", "w8a8", sdk_version=release))]
    assert {one.model for one in found} == ({row} if row else set())


def test_a_longer_prompt_and_a_longer_context_are_called_what_they_are() -> None:
    figures = predict(QWEN, "rk3588", "w8a8", msgspec.structs.replace(AS_MEASURED, prompt_tokens=512, context_tokens=4096))
    assert figures is not None
    assert (figures.tokens_per_second.origin, figures.first_token_seconds.origin, figures.memory_bytes.origin) == (
        "vendor", "predicted", "predicted",
    )  # fmt: skip
    assert 8 < figures.first_token_seconds.value / 0.206 < 10
    assert figures.memory_bytes.value > 2.47 * (1 << 30)


def test_another_model_is_predicted_from_rows_of_its_chip_and_dtype() -> None:
    figures = predict(OTHER, "rk3576", "w4a16", Usage())
    assert figures is not None
    assert figures.tokens_per_second.origin == "predicted"
    assert 0 < figures.tokens_per_second.low < figures.tokens_per_second.value < figures.tokens_per_second.high
    assert "of the vendor's rows, RK3576 w4a16, SDK 1.3.0" in figures.basis


def test_releases_are_never_mixed_and_the_newest_with_rows_is_taken() -> None:
    grouped = predict(OTHER, "rk3588", "w8a8_g512", Usage())
    assert grouped is not None
    assert "SDK 1.1.0" in grouped.basis
    assert predict(OTHER, "rk3588", "w8a8_g512", Usage(sdk_version="1.3.0")) is None
    assert predict(OTHER, "rk3588", "w8a8_g256", Usage()) is None


def test_beyond_the_rows_a_figure_is_extrapolated_and_far_beyond_there_is_none() -> None:
    lines = lines_of(load_table(), "rk3588", "w8a8", "1.3.0")
    assert lines is not None
    edge = lines.token_seconds.smallest
    near = predict(msgspec.structs.replace(OTHER, parameters=int(edge / 2)), "rk3588", "w8a8", Usage())
    assert near is not None
    assert near.tokens_per_second.origin == "extrapolated"
    assert "outside" in near.basis
    assert (
        predict(msgspec.structs.replace(OTHER, parameters=int(edge / EXTRAPOLATION_MAX / 2)), "rk3588", "w8a8", Usage(sdk_version="1.3.0"))
        is None
    )


def test_the_share_of_rows_within_the_interval_is_the_one_that_is_told() -> None:
    """Each row is foretold from the others of its chip and dtype."""
    within, total = 0, 0
    for soc, dtype, release in {(row.soc, row.dtype, row.sdk_version) for row in load_table().rows}:
        rows = rows_used(load_table(), soc, dtype, release)
        if len(rows) < ROWS_MIN:
            continue
        sizes = np.array([row.parameters_billions for row in rows])
        for figures in ([1 / row.tokens_per_second for row in rows], [row.time_to_first_token_seconds for row in rows]):
            line = fit(list(sizes), figures)
            assert line is not None
            missed = misses(sizes, np.array(figures))
            within += sum(one <= math.log(line.spread) + 1e-12 for one in missed)
            total += len(missed)
    assert total > 150
    assert within / total >= COVERAGE


def test_predictions_come_from_the_rows_and_nothing_else() -> None:
    """Twice as fast a table predicts twice the speed."""
    table = load_table()
    faster = Table(tuple(msgspec.structs.replace(row, tokens_per_second=2 * row.tokens_per_second) for row in table.rows))
    for soc, dtype in (("rk3588", "w8a8"), ("rk3576", "w4a16_g128")):
        plain, double = predict(OTHER, soc, dtype, Usage(), table=table), predict(OTHER, soc, dtype, Usage(), table=faster)
        assert plain is not None
        assert double is not None
        assert double.tokens_per_second.value == pytest.approx(2 * plain.tokens_per_second.value)
        assert double.first_token_seconds == plain.first_token_seconds


@pytest.mark.parametrize(("field", "value"), [("prompt_tokens", 0), ("new_tokens", -1), ("context_tokens", 0), ("sdk_version", "9.9")])
def test_a_usage_that_is_none_is_refused_by_its_field(field: str, value: object) -> None:
    with pytest.raises(Invalid, match=r"9\.9" if field == "sdk_version" else field.replace("_", " ")):
        predict(OTHER, "rk3588", "w8a8", msgspec.structs.replace(Usage(), **{field: value}))
