"""Where the lock of a board's NPU is."""

import fcntl
import os
from pathlib import Path

import pytest

from agent.config import Config
from agent.parts import npu_lock
from agent.workers.rkllm.lock import BoardLock
from rkfleet.errors import FailedPrecondition


def test_the_lock_is_the_machines_where_a_directory_was_made_for_it_and_else_the_agents_own(tmp_path: Path) -> None:
    """Two agents of one machine share the first; nothing needs a privilege."""
    config = Config(data_dir=tmp_path / "data", controller="", name="b", filesystem_root=tmp_path)
    assert npu_lock(config) == tmp_path / "data" / "npu.lock"
    (tmp_path / "run" / "lock").mkdir(parents=True)
    (tmp_path / "sys" / "class").mkdir(parents=True)
    assert npu_lock(config) == tmp_path / "data" / "npu.lock", "there is no NPU"
    (tmp_path / "sys" / "module" / "rknpu").mkdir(parents=True)
    assert npu_lock(config) == tmp_path / "run" / "lock" / "rkfleet-npu.lock"
    (tmp_path / "run" / "rkfleet").mkdir()
    assert npu_lock(config) == tmp_path / "run" / "rkfleet" / "npu.lock"


def test_a_lock_that_another_user_made_is_taken_as_it_is_and_a_link_is_not_followed(tmp_path: Path) -> None:
    """In a directory for everybody a file may be anybody's, and a link may lead to anything that its victim can write."""
    lock, link = tmp_path / "npu.lock", tmp_path / "link"
    lock.write_text("")
    lock.chmod(0o444)
    with BoardLock(str(lock)).hold():
        descriptor = os.open(lock, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
    link.symlink_to(tmp_path / "victim")
    with pytest.raises(FailedPrecondition, match="link cannot be opened"):
        BoardLock(str(link))
    assert not (tmp_path / "victim").exists()
