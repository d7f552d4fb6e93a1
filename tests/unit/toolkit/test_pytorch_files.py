"""PyTorch files are read as torch reads them, and nothing that is in them is run."""

from __future__ import annotations

import contextlib
import json
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

from rkfleet.errors import FleetError, Invalid, NotFound
from toolkit.checkpoint.open import open_checkpoint

DATA = Path(__file__).parent.parent.parent / "data" / "toolkit" / "pytorch"
TENSOR = (
    b"\x80\x02}q\x00X\x01\x00\x00\x00wq\x01ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00K\x04\x85K\x01\x85\x89Ntq\x02Rs."
)


def archive(path: Path, pickled: bytes, data: bytes = bytes(16), compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as made:
        made.writestr("m/data.pkl", pickled)
        made.writestr("m/data/0", data)
    return path


def test_tensors_are_those_that_torch_reads() -> None:
    checkpoint = open_checkpoint(DATA / "every.bin")
    with np.load(DATA / "every.npz") as wanted:
        assert sorted(checkpoint.tensors) == sorted(wanted)
        for name in wanted:
            assert checkpoint.tensors[name].shape == wanted[name].shape
            assert np.array_equal(checkpoint.read(name), wanted[name])
            assert checkpoint.read(name).dtype == np.float32
            assert len(checkpoint.read_raw(name)) == checkpoint.tensors[name].size_bytes
    with pytest.raises(NotFound, match="has no tensor 'none'"):
        checkpoint.read("none")


def test_an_index_joins_files_in_its_directory(tmp_path: Path) -> None:
    archive(tmp_path / "a.bin", TENSOR, np.arange(4, dtype=np.float32).tobytes())
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "a.bin"}}))
    assert open_checkpoint(tmp_path).read("w").tolist() == [0, 1, 2, 3]
    for name in ("../a.bin", "/a.bin", "a\0.bin", "a.safetensors"):
        index.write_text(json.dumps({"weight_map": {"w": name}}))
        with pytest.raises(Invalid, match="in its directory"):
            open_checkpoint(tmp_path)
    archive(tmp_path / "pytorch_model.bin", TENSOR)
    assert list(open_checkpoint(tmp_path).tensors) == ["w"]


def test_the_old_format_is_refused_with_what_to_do() -> None:
    with pytest.raises(Invalid, match=r"is no archive but a pickle of old.*torch\.load\(FILE, weights_only=True\)"):
        open_checkpoint(DATA / "legacy.bin")


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_what_a_pickle_would_run_is_not_run(tmp_path: Path) -> None:
    archive(tmp_path / "x.bin", pickle.dumps({"w": Runs(tmp_path / "ran")}, protocol=2))
    with pytest.raises(Invalid, match=r"Path, which is no part of a tensor|touch|getattr"):
        open_checkpoint(tmp_path / "x.bin")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("pickled", "words"),
    [
        (b"cos\nsystem\n(X\x02\x00\x00\x00lstR.", r"names 'os\.system'"),
        (b"cbuiltins\neval\n.", r"names 'builtins\.eval'"),
        (b"ctorch.nn\nFloatStorage.__class__\n.", "which is no part of a tensor"),
        (b"ctorch\nload\n.", "which is no part of a tensor"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "has instruction"),
        (b"(S'a'\ni.", "has instruction"),
        (b"", "damaged"),
        (b".", "damaged"),
        (b"t.", "damaged"),
        (b"\x87.", "damaged"),
        (b"}(]K\x01u.", "damaged"),
        (b"}X\xff\xff\xff\xffa.", "damaged"),
        (b"\x8b\xff\xff\xff\x7f.", "has instruction"),
        (b"h\x05.", "damaged"),
        (b"K\x01)R.", "damaged"),
        (b"}(K\x01K\x02K\x01K\x02u.", "twice"),
        (b"N.", "no dictionary of tensors"),
        (b"}.", "no dictionary of tensors"),
        (b"]q\x00" + b"h\x00h\x00\x86q\x00" * 1000 + b".", "no dictionary of tensors"),
        (b"]" + b"(h\x00h\x00tq\x00" * 1000 + b".", "damaged"),
        (TENSOR.replace(b"cpuK\x04", b"cpuK\x05"), "its entry has 16 bytes"),
        (TENSOR.replace(b"QK\x00K\x04\x85", b"QK\x01K\x04\x85"), "reaches beyond"),
        (TENSOR.replace(b"QK\x00K\x04\x85", b"QJ\xff\xff\xff\xffK\x04\x85"), "damaged"),
        (TENSOR.replace(b"QK\x00K\x04\x85", b"QK\x00\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x3f\x85"), "reaches beyond"),
        (TENSOR.replace(b"K\x01\x85\x89", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x3f\x85\x89"), "reaches beyond"),
        (TENSOR.replace(b"X\x01\x00\x00\x000", b"X\x04\x00\x00\x00../x"), "has no entry 'data/../x'"),
    ],
)
def test_a_pickle_that_is_no_dictionary_of_tensors_is_refused_in_no_time(tmp_path: Path, pickled: bytes, words: str) -> None:
    archive(tmp_path / "x.bin", pickled)
    before = time.process_time()
    with pytest.raises(Invalid, match=words):
        open_checkpoint(tmp_path / "x.bin")
    assert time.process_time() - before < 0.1


def test_an_archive_that_unpacks_to_more_than_it_is_stays_packed(tmp_path: Path) -> None:
    archive(tmp_path / "x.bin", TENSOR, bytes(1 << 24), zipfile.ZIP_DEFLATED)
    before = time.process_time()
    with pytest.raises(Invalid, match="is packed or encrypted"):
        open_checkpoint(tmp_path / "x.bin")
    assert time.process_time() - before < 0.1


def test_a_file_that_is_cut_is_refused(tmp_path: Path) -> None:
    content = archive(tmp_path / "x.bin", TENSOR).read_bytes()
    (tmp_path / "x.bin").write_bytes(content[:-30])
    with pytest.raises(Invalid, match="it may have been cut short"):
        open_checkpoint(tmp_path / "x.bin")
    shutil.copyfile(DATA / "every.npz", tmp_path / "x.bin")
    with pytest.raises(Invalid, match=r"has 0 entries data\.pkl"):
        open_checkpoint(tmp_path / "x.bin")


CONTENT = (DATA / "every.bin").read_bytes()


@given(at=st.integers(0, len(CONTENT) - 1), byte=st.integers(0, 255), cut=st.integers(0, 4000))
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_file_is_read_or_refused(tmp_path: Path, at: int, byte: int, cut: int) -> None:
    """Whatever byte is changed and wherever it is cut, nothing but our own errors comes out."""
    content = bytearray(CONTENT)
    content[at] = byte
    (tmp_path / "x.bin").write_bytes(content[: len(content) - cut] if cut < 300 else content)
    with contextlib.suppress(FleetError), np.errstate(all="ignore"):
        checkpoint = open_checkpoint(tmp_path / "x.bin")
        for name in checkpoint.tensors:
            checkpoint.read(name)
