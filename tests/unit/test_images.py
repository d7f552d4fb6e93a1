"""Images of requests, told apart and bounded before anybody decodes one."""

from __future__ import annotations

import base64
import io
import struct
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from agent.workers.rknn.images import IMAGE_BYTES_MAX, inspect, parse_base64, parse_data_url
from rkfleet.errors import BadRequest


def picture(format: str = "PNG", size: tuple[int, int] = (40, 30), colour: str = "red", **more: object) -> bytes:
    """Return a real file."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format, **more)  # type: ignore[arg-type]
    return file.getvalue()


def data_url(data: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def png_of(width: int, height: int) -> bytes:
    """Return a PNG whose header says this size, with little in it: what a bomb looks like."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("format", "more", "wanted"),
    [
        ("PNG", {}, "png"),
        ("JPEG", {}, "jpeg"),
        ("JPEG", {"progressive": True, "comment": b"x" * 3000}, "jpeg"),
        ("WEBP", {}, "webp"),
        ("WEBP", {"lossless": True}, "webp"),
        ("WEBP", {"exif": b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x00"}, "webp"),
    ],
)
def test_format_and_size_stand_in_the_first_bytes(format: str, more: dict[str, object], wanted: str) -> None:
    """They are those that the real library wrote."""
    data = picture(format, (301, 17), **more)
    found = parse_data_url(data_url(data, f"image/{wanted}"))
    assert (found.format, found.width, found.height, found.data) == (wanted, 301, 17, data)
    assert parse_base64(base64.encodebytes(data).decode()) == found


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://example.com/cat.png", "fetches nothing"),
        ("https://example.com/cat.png", "fetches nothing"),
        ("file:///etc/passwd", "fetches nothing"),
        ("", "fetches nothing"),
        ("data:image/png,abc", "base64"),
        ("data:image/png;base64", "base64"),
        ("data:image/gif;base64,R0lGODlhAQABAAAAACw=", "image/gif is not read"),
        ("data:;base64,AAAA", "type none"),
        ("data:image/png;base64,AA*A", "no base64"),
        ("data:image/png;base64,AAA", "no base64"),
        ("data:image/png;base64,AAAA", "neither a PNG"),
        ("data:image/svg+xml;base64,PHN2Zz4=", "not read"),
    ],
)
def test_what_is_no_image_of_ours_is_refused_with_a_sentence(url: str, words: str) -> None:
    """The field and the value are named."""
    with pytest.raises(BadRequest) as refused:
        parse_data_url(url, "messages[0].content[1].image_url")
    assert refused.value.message.startswith("messages[0].content[1].image_url: ")
    assert words in refused.value.message


def test_a_type_that_is_not_what_the_file_is_is_refused() -> None:
    """Somebody mixed something up."""
    with pytest.raises(BadRequest, match=r"says image/jpeg and holds a PNG file"):
        parse_data_url(data_url(picture(), "image/jpeg"))


@pytest.mark.parametrize("size", [(60_000, 60_000), (16_385, 1), (6_000, 6_000), (0, 5)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    """In a few bytes it says more pixels than the board's memory holds; nobody tries."""
    bomb = png_of(*size)
    began = time.process_time()
    with pytest.raises(BadRequest, match="pixels"):
        parse_data_url(data_url(bomb))
    assert time.process_time() - began < 0.1


def test_too_many_bytes_are_refused_before_they_are_decoded() -> None:
    """Also as base64."""
    with pytest.raises(BadRequest, match="more than"):
        inspect(bytes(IMAGE_BYTES_MAX + 1))
    with pytest.raises(BadRequest, match="characters of base64"):
        parse_base64("A" * (IMAGE_BYTES_MAX * 2))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("cut", [3, 9, 14, 20, 23])
def test_a_file_that_is_cut_off_in_its_head_is_refused(format: str, cut: int) -> None:
    """There is no size to trust."""
    with pytest.raises(BadRequest):
        inspect(picture(format)[:cut])


magics = st.sampled_from(
    [b"", b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR", b"\xff\xd8\xff", b"RIFF\x00\x00\x00\x00WEBPVP8X", b"RIFF1234WEBPVP8L/"]
)


@given(magic=magics, rest=st.binary(max_size=200))
def test_any_bytes_are_an_image_within_the_limits_or_refused(magic: bytes, rest: bytes) -> None:
    """Nothing else is ever raised."""
    try:
        found = inspect(magic + rest)
    except BadRequest:
        return
    assert 0 < found.width * found.height <= 25_000_000


@given(text=st.text(max_size=120))
def test_any_text_is_an_image_or_refused(text: str) -> None:
    """As a URL, as base64, and behind the head of a data URL."""
    for parse, given_text in ((parse_data_url, text), (parse_base64, text), (parse_data_url, f"data:image/png;base64,{text}")):
        with pytest.raises(BadRequest):
            parse(given_text)
