"""Where the lock of a board's NPU is."""

from pathlib import Path

from agent.app import npu_lock
from agent.config import Config


def test_the_lock_is_the_machines_where_a_directory_was_made_for_it_and_else_the_agents_own(tmp_path: Path) -> None:
    """Two agents of one machine share the first; nothing needs a privilege."""
    config = Config(data_dir=tmp_path / "data", controller="", name="b", filesystem_root=tmp_path)
    assert npu_lock(config) == tmp_path / "data" / "npu.lock"
    (tmp_path / "run" / "rkfleet").mkdir(parents=True)
    assert npu_lock(config) == tmp_path / "run" / "rkfleet" / "npu.lock"
