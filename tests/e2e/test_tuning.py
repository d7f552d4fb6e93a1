"""A board's clocks and its NPU, from the API to the files of the board and back: real controller, real agent, a tree of files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rkfleet.client import ApiClient
from rkfleet.kinds import Board
from rkfleet.meta import Ref
from tests.support.board_tree import BoardTree, rk3588_tree
from tests.support.up import MARK, Up, eventually, up

pytestmark = [pytest.mark.processes]

REF = Ref(Board.resource.name, "", "rock-1")


@contextlib.asynccontextmanager
async def agent(fleet: Up, tree: BoardTree) -> AsyncIterator[None]:
    """Join a board that has the tree's hardware, for as long as the block runs."""
    printed = (await asyncio.to_thread(fleet.run, "join-token", "create", "--name", "rock-1")).stdout
    words = printed.split("rkfleet agent run ", 1)[1].split("\n")[0].split()
    given = dict(zip(words[::2], words[1::2], strict=False))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.quick_agent", "--data-dir", str(tree.root.parent / "agent"),
        "--controller", given["--controller"],
        "--token", given["--token"], "--ca-pin", given["--ca-pin"], "--name", "rock-1", "--serving-port", "0",
        "--filesystem-root", str(tree.root), "--clocks-helper", str(tree.root.parent / "none.sock"),
        stderr=asyncio.subprocess.DEVNULL, env={**os.environ, MARK: str(fleet.data_dir)},
    )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


async def reasons(client: ApiClient) -> dict[str, str]:
    try:
        board = await client.get(REF)
    except Exception:  # noqa: BLE001 (it has not joined yet)
        return {}
    return {one["type"]: f"{one['status']}/{one['reason']}" for one in board.get("status", {}).get("conditions", ())}


def test_the_clocks_of_a_board_follow_its_spec_and_its_npu_is_told(tmp_path: Path) -> None:
    """Patched, set, read back, put back; a second program on the NPU is told, then a library that is none."""

    async def story() -> None:
        tree = rk3588_tree(tmp_path).untuned().client(4711, "frigate")
        async with up(tmp_path / ".rkfleet", "--cpu-boards", "0") as fleet, agent(fleet, tree), fleet.client() as client:

            async def has(type: str, expected: str) -> bool:
                return (await reasons(client)).get(type) == expected

            await eventually(lambda: has("NPUReady", "False/OtherNPUClient"), "the second program is told")
            explained = await asyncio.to_thread(lambda: fleet.run("explain", "board/rock-1", check=False))
            assert "Board rock-1 cannot use its NPU: frigate (process 4711) also has the NPU open" in explained.stdout
            tree.remove("proc/4711")
            await eventually(lambda: has("ClocksPinned", "False/ClocksUnmanaged"), "nothing is asked of its clocks")
            assert tree.governor("cpu4") == "schedutil"
            await client.patch(REF, {"spec": {"tuning": {"clocks": "Fixed"}}})
            await eventually(lambda: has("ClocksPinned", "True/ClocksFixed"), "its clocks are fixed")
            assert (tree.governor("cpu4"), tree.hertz("cpu4"), tree.hertz("dram")) == ("userspace", 2_352_000_000, 2_112_000_000)
            done = await asyncio.to_thread(fleet.run, "board", "tune", "rock-1", "--clocks", "unmanaged")
            assert "board.rkfleet.dev/rock-1 leaves its clocks to the kernel" in done.stdout
            assert (tree.governor("cpu4"), tree.governor("dram")) == ("schedutil", "dmc_ondemand")
            done = await asyncio.to_thread(fleet.run, "board", "tune", "rock-1", "--clocks", "fixed")
            assert done.stdout.splitlines() == [
                "board.rkfleet.dev/rock-1 has clocks fixed", "board.rkfleet.dev/rock-1 runs at the vendor's frequencies",
            ]  # fmt: skip
            again = await asyncio.to_thread(fleet.run, "board", "tune", "rock-1", "--clocks", "fixed")
            assert "already has clocks fixed" in again.stdout
            # The other program has left, and the tree's library, which is none, is the next cause.
            await eventually(lambda: has("NPUReady", "False/RuntimeLibraryUnknown"), "the library is told")

    asyncio.run(story())
