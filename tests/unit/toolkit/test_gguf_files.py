"""GGUF files are read and written bit by bit, and hostile ones are refused at once."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rkfleet.errors import FailedPrecondition, FleetError, Invalid, NotFound
from toolkit.checkpoint.gguf import GgufCheckpoint
from toolkit.checkpoint.gguf_fields import FieldType, field_of
from toolkit.checkpoint.gguf_writer import planned, write_gguf_file

DECODABLE = sorted(kind.name for kind in gguf.GGMLQuantizationType if kind in gguf.quants._type_traits or kind.name in ("F32", "F16"))
VALUES: dict[str, np.ndarray[Any, Any]] = {
    "a.weight": np.arange(64, dtype=np.float32).reshape(2, 32),
    "b.weight": np.arange(3, dtype=np.float32),
}


def small(path: Path) -> Path:
    """Write a file with the gguf package: every type of key, two tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 1)
    writer.add_int8("i8", -1)
    writer.add_uint16("u16", 2)
    writer.add_int16("i16", -2)
    writer.add_uint32("u32", 3)
    writer.add_int32("i32", -3)
    writer.add_uint64("u64", 1 << 63)
    writer.add_int64("i64", -4)
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_array("words", ["a", "", "ß"])
    writer.add_array("numbers", [1, -2])
    writer.add_array("parts", [0.5, 1.5])
    writer.add_array("flags", [True, False])
    for name, value in VALUES.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def copy(source: GgufCheckpoint, path: Path) -> None:
    plan = [planned(one.name, one.shape, one.dtype) for one in source.tensors.values()]
    write_gguf_file(path, source.fields, plan, source.read_raw, version=source.version)


def test_keys_and_tensors_are_those_that_the_gguf_package_reads(tmp_path: Path) -> None:
    checkpoint = GgufCheckpoint(small(tmp_path / "x.gguf"))
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    wanted = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert dict(checkpoint.metadata) == wanted
    assert list(checkpoint.metadata) == list(wanted)
    for name, value in VALUES.items():
        assert np.array_equal(checkpoint.read(name), value)
    with pytest.raises(NotFound, match="has no tensor 'c'"):
        checkpoint.read("c")


@pytest.mark.parametrize("version", [2, 3])
def test_what_is_read_is_written_again_bit_by_bit(tmp_path: Path, version: int) -> None:
    content = bytearray(small(tmp_path / "x.gguf").read_bytes())
    content[4] = version
    (tmp_path / "x.gguf").write_bytes(content)
    copy(GgufCheckpoint(tmp_path / "x.gguf"), tmp_path / "y.gguf")
    assert (tmp_path / "y.gguf").read_bytes() == content


@pytest.mark.parametrize("kind", DECODABLE)
def test_every_type_becomes_what_the_gguf_package_makes_of_it(tmp_path: Path, kind: str) -> None:
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    raw = np.random.default_rng(1).integers(0, 256, (3, 2 * size), np.uint8)
    if kind in ("F32", "F16", "BF16"):
        raw &= 0x3F  # Numbers only: what is none has more than one form.
    write_gguf_file(tmp_path / "x.gguf", {}, [planned("t", (3, 2 * block), kind)], lambda _: raw)
    with np.errstate(all="ignore"):
        wanted = np.asarray(gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]))
    read = GgufCheckpoint(tmp_path / "x.gguf").read("t")
    assert read.shape == (3, 2 * block)
    assert np.array_equal(read, wanted.reshape(read.shape), equal_nan=True)


def test_parts_of_a_split_model_are_one(tmp_path: Path) -> None:
    for number, (name, value) in enumerate(VALUES.items()):
        keys = {"split.no": number, "split.count": 2, "split.tensors.count": 2}
        fields = {key: field_of(key, one, FieldType.INT32 if "tensors" in key else FieldType.UINT16) for key, one in keys.items()}
        path = tmp_path / f"m-{number + 1:05}-of-00002.gguf"
        write_gguf_file(path, fields, [planned(name, value.shape, "F32")], VALUES.__getitem__)
    checkpoint = GgufCheckpoint(tmp_path / "m-00002-of-00002.gguf")
    assert list(checkpoint.tensors) == list(VALUES)
    assert np.array_equal(checkpoint.read("b.weight"), VALUES["b.weight"])
    (tmp_path / "m-00001-of-00002.gguf").rename(tmp_path / "m-00002-of-00003.gguf")
    with pytest.raises(NotFound, match=r"lacks 'm-00001-of-00002.gguf', 1 of 2 parts"):
        GgufCheckpoint(tmp_path / "m-00002-of-00002.gguf")


def test_where_writing_fails_nothing_is_left(tmp_path: Path) -> None:
    def fail(_: str) -> np.ndarray[Any, Any]:
        raise NotFound("gone")

    (tmp_path / "x.gguf").write_text("before")
    plan = [planned("t", (2,), "F32")]
    with pytest.raises(NotFound, match="gone"):
        write_gguf_file(tmp_path / "x.gguf", {}, plan, fail)
    with pytest.raises(Invalid, match="has 8 contiguous bytes, was given 12"):
        write_gguf_file(tmp_path / "x.gguf", {}, plan, lambda _: np.zeros(3, np.float32))
    with pytest.raises(Invalid, match="tensor t is planned twice"):
        write_gguf_file(tmp_path / "x.gguf", {}, plan * 2, fail)
    with pytest.raises(FailedPrecondition, match="cannot be written"):
        write_gguf_file(tmp_path / "none" / "x.gguf", {}, plan, fail)
    assert [one.name for one in tmp_path.iterdir()] == ["x.gguf"]
    assert (tmp_path / "x.gguf").read_text() == "before"


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def head(tensors: int = 0, keys: int = 0, body: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + body + bytes(64)


def tensor(name: bytes = b"t", shape: tuple[int, ...] = (2,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has 0 bytes"),
        (b"X" * 100, "begins with b'XXXX'"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64), "is big-endian"),
        (head(version=1), "version 1"),
        (head(tensors=1 << 62), "4611686018427387904 tensors"),
        (head(keys=1 << 62), "4611686018427387904 keys"),
        (head(keys=1, body=struct.pack("<Q", 1 << 62)), "name of a key has"),
        (head(keys=1, body=text(b"k") + struct.pack("<I", 13)), "type 13"),
        (head(keys=1, body=text(b"k") + struct.pack("<IQ", 8, 1 << 40)), "a text of"),
        (head(keys=1, body=text(b"k") + struct.pack("<IIQ", 9, 9, 1)), "array of arrays"),
        (head(keys=1, body=text(b"k") + struct.pack("<IIQ", 9, 4, 1 << 62)), "items"),
        (head(keys=1, body=text(b"k") + struct.pack("<IIQ", 9, 4, 1 << 20)), "the file ends at"),
        (head(keys=1, body=text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 62)), "texts"),
        (head(keys=1, body=text(b"k") + struct.pack("<IIQQ", 9, 8, 2, 1 << 20)), "ends within key"),
        (head(keys=2, body=(text(b"k") + struct.pack("<II", 4, 1)) * 2), "stands twice"),
        (head(keys=1, body=text(b"general.alignment") + struct.pack("<II", 4, 3)), "no power of two"),
        (head(keys=1, body=text(b"general.alignment") + struct.pack("<II", 4, 0)), "no power of two"),
        (head(keys=1, body=text(b"\xff") + struct.pack("<II", 4, 0)), "not UTF-8"),
        (head(tensors=1, body=tensor(b"a\0b")), "has a NUL"),
        (head(tensors=1, body=tensor(b"n" * 65)), "has 65 bytes"),
        (head(tensors=1, body=tensor(shape=(1,) * 5)), "5 dimensions"),
        (head(tensors=1, body=tensor(shape=(1 << 62,))), "more than the file's"),
        (head(tensors=1, body=tensor(shape=(1 << 62, 1 << 62, 1 << 62, 1 << 62))), "more than the file's"),
        (head(tensors=1, body=tensor(kind=999)), "type 999"),
        (head(tensors=1, body=tensor(shape=(33,), kind=8)), "blocks of 32"),
        (head(tensors=1, body=tensor(offset=1)), "no multiple of 32"),
        (head(tensors=1, body=tensor(offset=1 << 62)), "it may have been cut short"),
        (head(tensors=2, body=tensor(b"a") + tensor(b"b")), "overlap at byte"),
        (head(tensors=2, body=tensor() + tensor(offset=32)), "stands twice"),
    ],
)
def test_a_head_that_lies_is_refused_in_no_time(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    before = time.process_time()
    with pytest.raises(Invalid, match=words):
        GgufCheckpoint(tmp_path / "x.gguf")
    assert time.process_time() - before < 0.1


@given(at=st.integers(0, 1200), byte=st.integers(0, 255), cut=st.integers(0, 1200))
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_file_is_read_or_refused(tmp_path: Path, at: int, byte: int, cut: int) -> None:
    """Whatever byte is changed and wherever it is cut, nothing but our own errors comes out."""
    content = bytearray(small(tmp_path / "x.gguf").read_bytes())
    content[min(at, len(content) - 1)] = byte
    (tmp_path / "x.gguf").write_bytes(content[: len(content) - cut] if cut < 300 else content)
    with contextlib.suppress(FleetError):
        checkpoint = GgufCheckpoint(tmp_path / "x.gguf")
        for name in checkpoint.tensors:
            checkpoint.read(name)
        for key in checkpoint.metadata:
            with contextlib.suppress(FleetError):
                checkpoint.metadata[key]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: field_of("k", object()), "has a value of type object"),
        (lambda: field_of("k", 256, FieldType.UINT8), "does not fit into uint8"),
        (lambda: field_of("k", ["a", 1]), "which is no text"),
        (lambda: field_of("k", [1, "a"], FieldType.INT32), "no numbers of type int32"),
        (lambda: planned("t", (3, 33), "Q8_0"), "blocks of 32"),
        (lambda: planned("t", (3,), "Q9"), "which is none of GGUF"),
        (lambda: planned("t" * 64, (3,), "F32"), "cannot be written"),
        (lambda: planned("t", (1,) * 5, "F32"), "up to 4 dimensions"),
    ],
)
def test_what_gguf_has_no_form_for_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(Invalid, match=words):
        make()
