"""Range headers: for every header, what is served is a part of the blob, or the whole, or a refusal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.registry.ranges import parse_content_range, parse_range
from rkfleet.errors import Invalid


@pytest.mark.parametrize(
    ("header", "size", "expected"),
    [
        ("bytes=0-0", 10, (0, 1)),
        ("bytes=4-", 10, (4, 6)),
        ("bytes=-3", 10, (7, 3)),
        ("bytes=-30", 10, (0, 10)),
        ("bytes=8-100", 10, (8, 2)),
        ("bytes=5-4", 10, None),
        ("bytes=0-1,3-4", 10, None),
        ("items=0-1", 10, None),
        ("", 10, None),
        ("bytes=-", 10, None),
    ],
)
def test_a_range_is_read_as_the_rfc_says(header: str, size: int, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, size) == expected


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=11-12", 10), ("bytes=-0", 10), ("bytes=0-", 0)])
def test_a_range_without_a_byte_is_refused(header: str, size: int) -> None:
    with pytest.raises(Invalid) as caught:
        parse_range(header, size)
    assert caught.value.details["status"] == 416


@given(st.one_of(st.text(max_size=20), st.from_regex(r"bytes=\d{0,3}-\d{0,3}", fullmatch=True)), st.integers(0, 300))
def test_no_header_reaches_beyond_the_blob(header: str, size: int) -> None:
    try:
        span = parse_range(header, size)
    except Invalid:
        return
    if span is not None:
        start, count = span
        assert 0 <= start < start + count <= size


def test_both_ways_to_write_a_content_range_are_read() -> None:
    assert parse_content_range("0-9") == parse_content_range("bytes 0-9/100") == parse_content_range("bytes 0-9/*") == (0, 10)
    for wrong in ("9-0", "x", "0-"):
        with pytest.raises(Invalid):
            parse_content_range(wrong)
