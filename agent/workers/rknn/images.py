"""Images as clients send them: data URLs (OpenAI) and base64 (Ollama), told apart and bounded before anybody decodes one.

In: text of a request. Out: a `Picture`, whose bytes an encoder takes. Called by whatever reads requests, and by the encoder's process
before it decodes. It needs no imaging library: format and size stand in the first bytes of a file, so a file that would fill the
memory is refused in microseconds. A board fetches nothing for clients: http URLs are refused.

Sources: PNG (https://www.w3.org/TR/png-3/, IHDR first), JPEG (ITU-T T.81, B.1.1.4 markers and B.2.2 frame header), WebP
(https://developers.google.com/speed/webp/docs/riff_container and RFC 9649, VP8, VP8L and VP8X chunks).
"""

from __future__ import annotations

import base64
import binascii
import struct
from typing import Final, Literal

import msgspec

from rkfleet.errors import BadRequest

__all__ = ["IMAGES_MAX", "IMAGE_BYTES_MAX", "PIXELS_MAX", "Format", "Picture", "inspect", "parse_base64", "parse_data_url"]

Format = Literal["png", "jpeg", "webp"]

# A photo of a phone is 3 to 12 MB. In base64 this is 21 MiB of a request.
IMAGE_BYTES_MAX: Final = 16 << 20
# 24 megapixels of a camera fit; decoded they take 75 MB of a board's memory, which has 4 GB and more.
PIXELS_MAX: Final = 25_000_000
SIDE_MAX: Final = 16_384
# Of one request. Each takes hundreds of the context's tokens and seconds of the NPU.
IMAGES_MAX: Final = 8

# Of segments before a JPEG says its size; metadata of cameras takes a dozen.
_JPEG_SEGMENTS_MAX: Final = 256
_SHOWN_CHARACTERS: Final = 40

_MIMES: Final[dict[str, Format]] = {"image/png": "png", "image/jpeg": "jpeg", "image/jpg": "jpeg", "image/webp": "webp"}


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """One image file within the limits: its bytes, what they are, and its size in pixels."""

    data: bytes
    format: Format
    width: int
    height: int


def parse_data_url(url: str, field: str = "image_url") -> Picture:
    """Return the image of a `data:` URL.

    Args:
        url: As in OpenAI's `image_url.url`: `data:image/png;base64,...`.
        field: Where it stood in the request, for messages.

    Raises:
        BadRequest: Another kind of URL, another type than PNG, JPEG and WebP, no base64, or an image beyond the limits.
    """
    scheme, _, rest = url.partition(":")
    if scheme.lower() != "data":
        shown = url[:_SHOWN_CHARACTERS]
        raise BadRequest(f"{field}: {shown!r} is no data: URL, and a board fetches nothing for clients; send data:image/png;base64,...")
    head, comma, text = rest.partition(",")
    mime, *parameters = [part.strip().lower() for part in head[:200].split(";")]
    if not comma or "base64" not in parameters:
        raise BadRequest(f"{field}: a data: URL of an image is written data:image/png;base64,...")
    wanted = _MIMES.get(mime)
    if wanted is None:
        raise BadRequest(f"{field}: type {mime or 'none'} is not read; send image/png, image/jpeg or image/webp")
    picture = parse_base64(text, field)
    if picture.format != wanted:
        raise BadRequest(f"{field}: says {mime} and holds a {picture.format.upper()} file")
    return picture


def parse_base64(text: str, field: str = "images") -> Picture:
    """Return the image that base64 text holds, as Ollama's `images` do; line breaks in it are allowed.

    Raises:
        BadRequest: No base64, no PNG, JPEG or WebP, or beyond the limits.
    """
    if len(text) > IMAGE_BYTES_MAX * 3 // 2:  # a third more than the bytes, and line breaks
        raise BadRequest(f"{field}: {len(text)} characters of base64 are more than the {IMAGE_BYTES_MAX} bytes that an image may have")
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"{field}: {text[:_SHOWN_CHARACTERS]!r} is no base64: {error}") from error
    return inspect(data, field)


def inspect(data: bytes, field: str = "image") -> Picture:
    """Return what an image file is, from its first bytes.

    Raises:
        BadRequest: No PNG, JPEG or WebP, or beyond the limits of bytes or pixels.
    """
    if len(data) > IMAGE_BYTES_MAX:
        raise BadRequest(f"{field}: {len(data)} bytes are more than the {IMAGE_BYTES_MAX} that an image may have")
    format = _sniff(data)
    if format is None:
        raise BadRequest(f"{field}: {len(data)} bytes are neither a PNG nor a JPEG nor a WebP file")
    try:
        width, height = _SIZES[format](data)
    except (struct.error, IndexError, ValueError) as error:
        raise BadRequest(f"{field}: the {format.upper()} file is cut off or damaged: its size cannot be read") from error
    if width < 1 or height < 1:
        raise BadRequest(f"{field}: the {format.upper()} file has {width} x {height} pixels")
    if width > SIDE_MAX or height > SIDE_MAX or width * height > PIXELS_MAX:
        raise BadRequest(f"{field}: {width} x {height} pixels are more than {PIXELS_MAX} in all or {SIDE_MAX} on a side")
    return Picture(data=data, format=format, width=width, height=height)


def _sniff(data: bytes) -> Format | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return None


def _png_size(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR":
        raise ValueError("no IHDR")
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


# Start of frame: all of 0xC0 to 0xCF but tables (C4), extension (C8) and arithmetic conditioning (CC).
_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers that stand alone, without a length.
_JPEG_ALONE: Final = frozenset({0x01, *range(0xD0, 0xD8)})


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    for _ in range(_JPEG_SEGMENTS_MAX):
        if data[at] != 0xFF:
            raise ValueError("no marker")
        marker = data[at + 1]
        if marker == 0xFF or marker in _JPEG_ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        (length,) = struct.unpack_from(">H", data, at + 2)
        at += 2 + max(2, length)
    raise ValueError("no frame header")


def _webp_size(data: bytes) -> tuple[int, int]:
    chunk = data[12:16]
    if chunk == b"VP8 ":
        if data[23:26] != b"\x9d\x01\x2a":
            raise ValueError("no start code")
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if chunk == b"VP8L":
        if data[20] != 0x2F:
            raise ValueError("no signature")
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    if chunk == b"VP8X":
        if len(data) < 30:
            raise ValueError("cut off")
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    raise ValueError("no picture")


_SIZES: Final = {"png": _png_size, "jpeg": _jpeg_size, "webp": _webp_size}
