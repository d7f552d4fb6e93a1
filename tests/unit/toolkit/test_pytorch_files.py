"""PyTorch's checkpoints are read as torch wrote them, and nothing in them is run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rkfleet.errors import FleetError, Invalid
from toolkit.checkpoint.open import open_checkpoint

DATA = Path(__file__).parents[2] / "data" / "toolkit" / "pytorch"


def test_every_kind_of_tensor_is_read_as_torch_wrote_it() -> None:
    checkpoint = open_checkpoint(DATA / "tensors.bin")
    base = np.arange(24, dtype=np.float32)
    wanted: dict[str, Any] = {
        "plain": base.reshape(4, 6) / 7,
        "turned": (base.reshape(4, 6) / 7).T,
        "slice": base[5:11],
        "half": [1.5, -2.25, 65504.0],
        "brain": [[1.0, -2.5]],
        "whole": [1, -2, 3],
        "empty": np.zeros((0, 4)),
        "one": 2.0,
        "parameter": np.ones((2, 2)),
    }
    assert list(checkpoint.tensors) == list(wanted)
    for name, value in wanted.items():
        read = checkpoint.read(name)
        assert read.dtype == np.float32
        assert read.shape == checkpoint.tensors[name].shape == np.shape(value)
        assert np.array_equal(read, np.asarray(value, np.float32))
        assert len(checkpoint.read_raw(name)) == checkpoint.tensors[name].size_bytes


def test_the_state_of_a_module_and_shards_are_read(tmp_path: Path) -> None:
    shutil.copy(DATA / "module.bin", tmp_path / "pytorch_model-1.bin")
    shutil.copy(DATA / "tensors.bin", tmp_path / "pytorch_model-2.bin")
    names = {"weight": "pytorch_model-1.bin", "plain": "pytorch_model-2.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tensors["weight"].shape == (2, 3)
    assert "plain" in checkpoint.tensors


def archive(path: Path, program: bytes, data: bytes = bytes(64), **more: Any) -> Path:
    with zipfile.ZipFile(path, "w", more.get("method", zipfile.ZIP_STORED)) as file:
        file.writestr("m/data.pkl", program)
        file.writestr("m/data/0", data)
    return path


class Harm:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


def tensor(elements: bytes = b"K\x04", offset: bytes = b"K\x00", shape: bytes = b"K\x04\x85", strides: bytes = b"K\x01\x85") -> bytes:
    """Return a program that makes one tensor, with parts to lie in."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + elements + b"tQ"
    return b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + shape + strides + b"tRs."


def test_a_program_made_by_hand_is_a_tensor(tmp_path: Path) -> None:
    assert open_checkpoint(archive(tmp_path / "x.bin", tensor())).read("a").tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (pickle.dumps({"a": Harm(os.mkdir, "PLACE")}, 2), "asks for 'posix mkdir'"),
        (pickle.dumps({"a": Harm(eval, "1")}, 2), "asks for '__builtin__ eval'"),
        (pickle.dumps({"a": Harm(os.mkdir, "PLACE")}, 4), "it uses FRAME"),
        (pickle.dumps({"a": Harm(os.mkdir, "PLACE")}, 0), "it uses"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00asb.", "sets items of what is no dictionary|sets attributes"),
        (b"\x80\x02ctorch\nFloatStorage.__class__\n.", "asks for 'torch FloatStorage.__class__'"),
        (b"\x80\x02}r\xff\xff\xff\x7fj\xff\xff\xff\x7e.", "no dictionary of tensors"),
        (b"\x80\x02}" + b"K\x01\x85" * 100_000 + b".", "more than 60000 opcodes"),
        (b"\x80\x02K\x01" + b"2\x86" * 60 + b".", "it uses DUP"),
        (b"\x80\x02}\x8b\xff\xff\xff\x7f.", "no dictionary of tensors"),
        (b"\x80\x02", "no dictionary of tensors"),
        (b"\x80\x02].", "something else than tensors"),
        (pickle.dumps({"a": 1}, 2), "something else than tensors"),
        (tensor(elements=b"K\x03"), r"sizes \(4,\) has a storage of 3"),
        (tensor(offset=b"K\x01"), "reaches element 4 of a storage of 4"),
        (tensor(elements=b"J\x00\x00\x00\x7f"), "storage '0', which is not there with its"),
        (tensor(shape=b"\x8a\x09" + b"\xff" * 8 + b"\x00\x85"), "numbers that are none"),
        (tensor(strides=b"J\xff\xff\xff\xff\x85"), "numbers that are none"),
        (tensor(strides=b"K\x01K\x01\x86"), "1 sizes and 2 strides"),
    ],
)
def test_a_pickle_that_wants_more_than_tensors_is_refused_and_not_run(tmp_path: Path, program: bytes, words: str) -> None:
    place = tmp_path / "made"
    file = archive(tmp_path / "x.bin", program)
    before = time.process_time()
    with pytest.raises(Invalid, match=words):
        open_checkpoint(file)
    assert time.process_time() - before < 0.1
    assert not place.exists()
    assert not Path("PLACE").exists()


def test_archives_that_are_none_are_refused(tmp_path: Path) -> None:
    for content in (b"", b"PK\x05\x06" + b"\xff" * 18, b"x" * 100):
        (tmp_path / "x.bin").write_bytes(content)
        with pytest.raises(Invalid, match="is no zip archive of PyTorch"):
            open_checkpoint(tmp_path / "x.bin")
    with pytest.raises(Invalid, match=r"before PyTorch 1.6"):
        open_checkpoint(DATA / "legacy.bin")
    with pytest.raises(Invalid, match=r"asks for 'torch.nn.modules.linear Linear'"):
        open_checkpoint(DATA / "whole_module.bin")
    with pytest.raises(Invalid, match="has a compressed pickle"):
        open_checkpoint(archive(tmp_path / "x.bin", tensor(), method=zipfile.ZIP_DEFLATED))


@given(at=st.integers(0, 4000), byte=st.integers(0, 255), cut=st.integers(0, 8000))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_file_is_read_or_refused(tmp_path: Path, at: int, byte: int, cut: int) -> None:
    """Whatever byte is changed and wherever it is cut, nothing but our own errors comes out."""
    content = bytearray((DATA / "tensors.bin").read_bytes())
    content[min(at, len(content) - 1)] = byte
    (tmp_path / "x.bin").write_bytes(content[:cut])
    with contextlib.suppress(FleetError), np.errstate(all="ignore"):
        checkpoint = open_checkpoint(tmp_path / "x.bin")
        for name in checkpoint.tensors:
            checkpoint.read(name)


@given(program=st.binary(max_size=60))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_program_ends_in_our_own_error(tmp_path: Path, program: bytes) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("m/data.pkl", b"\x80\x02" + program)
    (tmp_path / "x.bin").write_bytes(buffer.getvalue())
    with contextlib.suppress(FleetError):
        open_checkpoint(tmp_path / "x.bin")
