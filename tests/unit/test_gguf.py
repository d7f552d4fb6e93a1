"""The head of a GGUF file: how its vectors are pooled, and files that are not what they say."""

import struct
from pathlib import Path

import pytest

from agent.workers.gguf import declared_pooling


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def head(*pairs: tuple[str, int, bytes]) -> bytes:
    body = b"".join(text(key) + struct.pack("<I", kind) + value for key, kind, value in pairs)
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + body


NAME = ("general.name", 8, text("x"))
TAGS = ("general.tags", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b"))
NUMBERS = ("bert.numbers", 9, struct.pack("<IQ", 4, 3) + bytes(12))
FLAG = ("bert.attention.causal", 7, b"\0")
POOLING = ("bert.pooling_type", 4, struct.pack("<I", 2))
TOKENS = ("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 1) + text("a"))


@pytest.mark.parametrize(
    ("content", "pooling"),
    [
        (head(NAME, TAGS, NUMBERS, FLAG, POOLING, TOKENS), 2),
        (head(NAME, TOKENS, POOLING), None),
        (head(NAME), None),
        (head(NAME, POOLING)[:-6], None),
        (head(("general.odd", 99, b""), POOLING), None),
        (head(("general.lists", 9, struct.pack("<IQ", 9, 1)), POOLING), None),
        (head(("general.long", 8, struct.pack("<Q", 1 << 60)), POOLING), None),
        (b"GGUF", None),
        (b"", None),
    ],
)
def test_the_pooling_of_a_file_is_what_it_declares(tmp_path: Path, content: bytes, pooling: int | None) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert declared_pooling(path) == pooling


def test_a_file_that_is_not_there_declares_nothing(tmp_path: Path) -> None:
    assert declared_pooling(tmp_path / "none") is None
