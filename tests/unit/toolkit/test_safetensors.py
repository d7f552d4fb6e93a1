"""Safetensors files are read as their own library writes them, and hostile ones are refused at once."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from rkfleet.errors import FleetError, Invalid, NotFound
from toolkit.checkpoint.open import open_checkpoint

VALUES = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    "half": np.array([1.5, -2.25, 65504.0], np.float16),
    "wide": np.array([[1e300]], np.float64),
    "whole": np.array([1, -2, 3], np.int64),
    "empty": np.zeros((0, 4), np.float32),
    "one": np.array(2.0, np.float32),
}


def written(head: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_every_type_is_read_as_float32(tmp_path: Path) -> None:
    save_file(VALUES, tmp_path / "model.safetensors", {"format": "np"})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.metadata == {"format": "np"}
    for name, value in VALUES.items():
        assert checkpoint.tensors[name].shape == value.shape
        with np.errstate(over="ignore"):
            assert np.array_equal(checkpoint.read(name), value.astype(np.float32))
            assert checkpoint.read(name).dtype == np.float32
        assert checkpoint.read_raw(name).tobytes() == value.tobytes()


def test_bfloat16_is_the_upper_half(tmp_path: Path) -> None:
    head = {"b": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    (tmp_path / "x.safetensors").write_bytes(written(head, b"\x80\x3f\x20\xc0"))
    assert open_checkpoint(tmp_path / "x.safetensors").read("b").tolist() == [1.0, -2.5]


def test_eight_bits_are_what_their_formats_say(tmp_path: Path) -> None:
    """Source: https://arxiv.org/abs/2209.05433, table 1: ones, the largest, the smallest, and what is none."""
    head = {
        "a": {"dtype": "F8_E4M3", "shape": [6], "data_offsets": [0, 6]},
        "b": {"dtype": "F8_E5M2", "shape": [6], "data_offsets": [6, 12]},
    }
    data = bytes([0x38, 0xB8, 0x7E, 0x01, 0x08, 0x7F, 0x3C, 0xBC, 0x7B, 0x01, 0x04, 0x7C])
    (tmp_path / "x.safetensors").write_bytes(written(head, data))
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert np.array_equal(checkpoint.read("a"), np.array([1, -1, 448, 2.0**-9, 2.0**-6, np.nan], np.float32), equal_nan=True)
    assert np.array_equal(checkpoint.read("b"), np.array([1, -1, 57344, 2.0**-16, 2.0**-14, np.inf], np.float32))


def test_shards_are_one_model(tmp_path: Path) -> None:
    save_file({"a": VALUES["a"]}, tmp_path / "model-1.safetensors")
    save_file({"half": VALUES["half"]}, tmp_path / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "half": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.tensors) == ["a", "half"]
    assert np.array_equal(checkpoint.read("half"), VALUES["half"])


def test_shards_may_be_links_into_the_cache_of_hugging_face(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots" / "1").mkdir(parents=True)
    save_file({"a": VALUES["a"]}, tmp_path / "blobs" / "f00")
    (tmp_path / "snapshots" / "1" / "m.safetensors").symlink_to("../../blobs/f00")
    (tmp_path / "snapshots" / "1" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "m.safetensors"}}')
    assert np.array_equal(open_checkpoint(tmp_path / "snapshots" / "1").read("a"), VALUES["a"])


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/x.safetensors", "a/../x.safetensors", "x.bin", "link.safetensors", "\0.safetensors"]
)
def test_an_index_that_leads_out_of_its_directory_is_refused(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "one" / "two" / "model"
    directory.mkdir(parents=True)
    save_file({"a": VALUES["a"]}, tmp_path / "x.safetensors")
    (directory / "link.safetensors").symlink_to(tmp_path / "x.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(Invalid, match="its directory"):
        open_checkpoint(directory)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no safetensors file"),
        (b"\xff" * 16, "is no safetensors file"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "its head would have 1099511627776"),
        (written(b"{"), "no JSON"),
        (written(b"[]"), "no JSON object"),
        (written(b'{"a":' * 100_000), "no JSON"),
        (written(b'{"a": {}, "a": {}}'), "a name stands twice"),
        (written({"a": 1}), "is described by 1"),
        (written({"a": {**ENTRY, "dtype": "F4"}}, bytes(8)), "dtype 'F4'; known are F64"),
        (written({"a": {**ENTRY, "shape": [-2]}}, bytes(8)), r"has shape \[-2\]"),
        (written({"a": {**ENTRY, "shape": [1 << 62]}}, bytes(8)), "has shape"),
        (written({"a": {**ENTRY, "shape": [1 << 61, 1 << 61]}}, bytes(8)), "cannot have 8 bytes"),
        (written({"a": {**ENTRY, "shape": [1] * 9}}, bytes(8)), "up to 8 sizes"),
        (written({"a": {**ENTRY, "shape": [3]}}, bytes(8)), "cannot have 8 bytes"),
        (written({"a": {**ENTRY, "data_offsets": [0, 1 << 60]}}, bytes(8)), "the file 8 bytes of data"),
        (written({"a": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8)), "the file 8 bytes of data"),
        (written({"a": {**ENTRY, "data_offsets": [-8, 0]}}, bytes(8)), "has data_offsets"),
        (written({"a": ENTRY, "b": ENTRY}, bytes(8)), "the one before it ends at"),
        (written({"a": ENTRY}, bytes(9)), "its tensors end at"),
        (written({"a": {**ENTRY, "data_offsets": [1, 9]}}, bytes(9)), "begins at byte"),
    ],
)
def test_a_file_that_lies_is_refused_in_no_time(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    before = time.process_time()
    with pytest.raises(Invalid, match=words):
        open_checkpoint(tmp_path / "x.safetensors")
    assert time.process_time() - before < 0.1


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(Invalid, match="which is a program; convert it where you trust it"):
        open_checkpoint(tmp_path)


def test_where_no_weights_are_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"neither model.safetensors nor model.safetensors.index.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}')
    with pytest.raises(Invalid, match="has no weight_map"):
        open_checkpoint(tmp_path)


@given(at=st.integers(0, 600), byte=st.integers(0, 255), cut=st.integers(0, 600))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_file_is_read_or_refused(tmp_path: Path, at: int, byte: int, cut: int) -> None:
    """Whatever byte is changed and wherever it is cut, nothing but our own errors comes out."""
    content = bytearray(save(VALUES))
    content[min(at, len(content) - 1)] = byte
    (tmp_path / "x.safetensors").write_bytes(content[: len(content) - cut] if cut < 300 else content)
    with contextlib.suppress(FleetError), np.errstate(all="ignore"):
        checkpoint = open_checkpoint(tmp_path / "x.safetensors")
        for name in checkpoint.tensors:
            checkpoint.read(name)
