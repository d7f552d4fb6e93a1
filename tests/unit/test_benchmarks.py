"""The vendor's table as code: every row, the two protocols apart, exact look-ups, and misses that name what there is."""

from __future__ import annotations

from collections import Counter

import pytest

from rkfleet.benchmarks import PROTOCOLS, load_table
from rkfleet.errors import NotFound

TABLE = load_table()


def test_every_row_of_both_releases_is_there() -> None:
    """32 rows of the README of 1.1.x and 87 of benchmark.md of 1.3.0, by release and chip."""
    counts = Counter((row.sdk_version, row.soc) for row in TABLE.rows)
    assert counts == {
        ("1.1.0", "rk3588"): 16, ("1.1.0", "rk3576"): 16,
        ("1.3.0", "rk3588"): 19, ("1.3.0", "rk3576"): 52, ("1.3.0", "rk3562"): 4, ("1.3.0", "rv1126b"): 12,
    }  # fmt: skip
    keys = {(row.sdk_version, row.model.lower(), row.dtype, row.soc) for row in TABLE.rows}
    assert len(keys) == len(TABLE.rows) == 119


def test_the_two_protocols_stay_apart() -> None:
    """A row carries the conditions of its release; the releases differ in prompt and output length."""
    assert {(one.prompt_tokens, one.new_tokens) for one in PROTOCOLS.values()} == {(64, 256), (128, 64)}
    assert TABLE.get("TinyLLAMA-1.1B", "w8a8", "rk3588", "1.1.0").protocol == PROTOCOLS["1.1.0"]
    assert TABLE.get("TinyLLAMA-1.1B", "w8a8", "rk3588", "1.3.0").protocol == PROTOCOLS["1.3.0"]


def test_a_row_has_the_figures_of_its_source() -> None:
    """Seconds and bytes inside; memory of the older release, which prints G, is taken as GiB."""
    row = TABLE.get("Qwen2-1.5B", "w8a8", "rk3588")
    assert (row.time_to_first_token_seconds, row.tokens_per_second, row.max_context_tokens) == (0.206, 16.46, 320)
    assert row.memory_bytes == round(2.47 * (1 << 30))
    assert TABLE.get("qwen2-1.5b", "W4A16", "RK3576") == TABLE.get("Qwen2-1.5B", "w4a16", "rk3576", "1.1.0")


def test_without_a_release_the_newest_that_has_the_row_is_meant() -> None:
    """1.3.0 has no Qwen2-1.5B, so that of 1.1.0 is found; it has TinyLLAMA, so its own is."""
    assert TABLE.get("Qwen2-1.5B", "w8a8", "rk3588").sdk_version == "1.1.0"
    assert TABLE.get("TinyLLAMA-1.1B", "w8a8", "rk3588").sdk_version == "1.3.0"
    best = TABLE.best("TinyLLAMA-1.1B", "rk3576")
    assert best is not None
    assert (best.sdk_version, best.dtype) == ("1.3.0", "w4a16")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("Qwen2-1.5B", "w4a16", "rk3588"), "of this model it has w4a16 on rk3576 (1.1.0)"),
        (("Qwen2-1.5", "w8a8", "rk3588"), "it does not know the model; similar names are"),
        (("Qwen2-1.5", "w8a8", "rk3588"), "Qwen2-1.5B"),
        (("xyz", "w8a8", "rk3588"), "it knows ChatGLM3-6B, "),
        (("Qwen2-1.5B", "w8a8", "rk3588", "9.9"), "of release 9.9: its releases are 1.1.0, 1.3.0"),
    ],
)
def test_a_miss_names_what_there_is(words: tuple[str, ...], said: str) -> None:
    """The sentence is what people read in conditions and on the command line."""
    with pytest.raises(NotFound) as caught:
        TABLE.get(*words)
    assert said in caught.value.message
    assert TABLE.find(*words) is None


def test_rows_are_selected_by_any_of_their_words() -> None:
    """As `rkfleet bench table` asks."""
    assert len(TABLE.select()) == 119
    assert {row.soc for row in TABLE.select(soc="RK3588")} == {"rk3588"}
    assert len(TABLE.select(soc="rk3588", sdk_version="1.3.0")) == 19
    assert {row.dtype for row in TABLE.select(model="Qwen2-1.5B", soc="rk3576")} == {"w4a16", "w4a16_g128"}
