"""`rkfleet model push --simulated`: which variants, which bytes, which names."""

from __future__ import annotations

import re

import pytest

from rkfleet.benchmarks import load_table
from rkfleet.cli.placeholders import family_of, object_name, parameters_of, plan_placeholders
from rkfleet.errors import NotFound
from rkfleet.meta import check_name
from rkfleet.simulated import CHIPS, MAGIC

TABLE = load_table()


def test_each_chip_has_the_fastest_row_as_its_variant() -> None:
    """w8a8 on RK3588 and w4a16 on RK3576, with memory, cores and reference of the row."""
    placed = [one.words.fields for one in plan_placeholders(TABLE, "qwen2-1.5b")]
    assert [(one["name"], one["soc"], one["dtype"], one["runtime"], one["requires"], one["reference"]) for one in placed] == [
        ("rk3588-w8a8", "rk3588", "w8a8", "rkllm", {"memory": "2530Mi", "npuCores": 3}, {"model": "Qwen2-1.5B", "sdkVersion": "1.1.0"}),
        ("rk3576-w4a16", "rk3576", "w4a16", "rkllm", {"memory": "1792Mi", "npuCores": 2}, {"model": "Qwen2-1.5B", "sdkVersion": "1.1.0"}),
    ]


def test_the_bytes_follow_from_the_row_alone() -> None:
    """Twice the same, begin with the magic, and no two variants share them: a digest is one variant's."""
    once, again = (plan_placeholders(TABLE, "Qwen2-1.5B") for _ in range(2))
    assert [one.body for one in once] == [one.body for one in again]
    assert all(one.body.startswith(MAGIC) for one in once)
    assert len({one.body for one in once}) == 2


def test_every_model_of_the_table_that_a_chip_has_can_be_pushed() -> None:
    """Names are allowed for objects, files and variants."""
    for model in {row.model for row in TABLE.rows if row.soc in CHIPS}:
        assert check_name(object_name(model)) == ""
        for one in plan_placeholders(TABLE, model):
            assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", one.file_name)
            assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?", one.words.name)


def test_names_are_read_apart_into_family_and_size() -> None:
    """As the vendor builds them."""
    names = ("Qwen2-1.5B", "DeepSeekOCR-3B(A570M)", "Gemma4-E2B", "Qwen3-VL-2B")
    assert [(family_of(name), parameters_of(name)) for name in names] == [
        ("qwen2", "1.5B"), ("deepseekocr", "3B"), ("gemma4", "E2B"), ("qwen3-vl", "2B"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "sdk", "said"), [("Qwen2-1.5B", "1.3.0", "of release 1.3.0"), ("Llama-9B", "", "does not know the model")]
)
def test_a_model_without_rows_is_refused_with_what_there_is(model: str, sdk: str, said: str) -> None:
    """And with the command that lists the table."""
    with pytest.raises(NotFound, match=said) as caught:
        plan_placeholders(TABLE, model, sdk)
    assert caught.value.message.endswith("Try: rkfleet bench table")
