"""The Range header of blob reads, pure: text and length in, first byte and count out.

Source: RFC 9110, sections 14.1 and 14.2. One range is served; several, or another unit, are ignored, which the RFC allows.
"""

from __future__ import annotations

import re
from typing import Final

from rkfleet.errors import Invalid

__all__ = ["parse_content_range", "parse_range"]

_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_CONTENT_RANGE: Final = re.compile(r"(?:bytes[ =])?(\d{1,18})-(\d{1,18})(?:/(?:\d{1,18}|\*))?")


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Return (first byte, count) of the one range that is asked for, or None when the whole is to be sent.

    Raises:
        Invalid: No byte of the range exists; its details carry status 416.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:  # the last n bytes
        count = min(int(last), size)
        start = size - count
    else:
        start = int(first)
        if last and int(last) < start:
            return None  # not a valid range: ignored
        count = min(int(last), size - 1) - start + 1 if last else size - start
    if count <= 0:
        raise Invalid(f"range {header!r} is outside the {size} bytes of this blob", status=416, code="RANGE_INVALID")
    return start, count


def parse_content_range(header: str) -> tuple[int, int]:
    """Return (first byte, count) of an upload's chunk.

    The distribution spec writes `<first>-<last>`, RFC 9110 `bytes <first>-<last>/<size>`.

    Raises:
        Invalid: It is neither.
    """
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None or int(match.group(2)) < int(match.group(1)):
        raise Invalid(f"Content-Range {header[:80]!r} must be <first>-<last>", code="BLOB_UPLOAD_INVALID")
    return int(match.group(1)), int(match.group(2)) - int(match.group(1)) + 1
