"""A worker process that dies as the vendor's runtime dies: its exit has the name of the failure."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from agent.board.kernel_log import follow_kernel_log
from agent.workers.backends import ChildBackend
from agent.workers.base import Exit
from agent.workers.pipe import NpuLoad
from rkfleet.kinds.board import Runtime
from tests.support.serving import spec_of

DYING = Path(__file__).parents[1] / "support/dying_runtime"
NPU = NpuLoad(library="/usr/lib/librkllmrt.so", generation="G3")


def end_of(tmp_path: Path, *, words: str, signal: int = 0, kernel: str = "", npu: NpuLoad | None = NPU) -> tuple[Exit, list[str]]:
    """Return how a worker ended whose library says `words` and dies, and the lines of its log; the kernel says `kernel` meanwhile."""
    environ = {
        **os.environ,
        "PYTHONPATH": f"{DYING}:{Path(__file__).parents[2]}",
        "DYING_WORDS": words,
        "DYING_SIGNAL": str(signal),
        "DYING_STATUS": "1",
    }
    backend = ChildBackend(
        Runtime(name="rkllm", version="1.2.3", backend="llamacpp"),
        environ=environ,
        new_api_key=lambda: "key",
        follow_kernel=lambda: follow_kernel_log(tmp_path),
    )
    said: list[str] = []

    async def live() -> Exit:
        async with asyncio.TaskGroup() as tasks:
            worker = await backend.start(spec_of(tmp_path / "model", npu=npu), tasks, lambda: None, said.append)
            if kernel:
                with (tmp_path / "dev/kmsg").open("a") as log:
                    log.write(kernel)
            return await worker.exited()

    return asyncio.run(live()), said


def test_the_exit_of_a_worker_has_the_failures_name_values_and_remedy(tmp_path: Path) -> None:
    """The library's line becomes a reason, a sentence and one thing to do; that the kernel's log is closed to us is said in the log."""
    limit = "E rkllm: max_context[16384] must be less than the model's max_context_limit[4096]\n"
    exit, said = end_of(tmp_path, words=f"I rkllm: hello\n{limit}bye\n")
    assert exit.failure is not None
    assert (exit.reason, exit.failure.reason) == ("Crashed", "ContextAboveModelLimit")
    assert exit.message.startswith("contextTokens 16384 is more than the 4096")
    assert "exit status 1: E rkllm: max_context[16384]" in exit.message
    assert exit.failure.remedy == "set spec.template.serving.contextTokens to 4096 or less"
    assert any("kernel log cannot be read" in line for line in said)


def test_what_the_kernel_says_while_a_worker_lives_explains_its_end(tmp_path: Path) -> None:
    """A reset of the NPU is not in the worker's own log."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kmsg").write_text("3,1,1,-;RKNPU: switch iommu domain time out, failed to switch iommu domain, id: 9\n")
    kernel = "3,2,2,-;RKNPU: failed to wait job, ret = 0\n3,3,3,-;RKNPU: job timeout, flags: 0x0\n3,4,4,-;RKNPU: soft reset, num: 1\n"
    exit, said = end_of(tmp_path, words="", signal=int(signal.SIGABRT), kernel=kernel)
    assert exit.failure is not None
    assert (exit.reason, exit.failure.reason) == ("Crashed", "NpuReset")
    assert "reset it 1 time" in exit.message
    assert not any("kernel log" in line for line in said)


def test_a_crash_without_a_name_keeps_the_librarys_words(tmp_path: Path) -> None:
    """Nothing is made up."""
    exit, _ = end_of(tmp_path, words="E rkllm: the moon is in the wrong house\n")
    assert (exit.reason, exit.failure) == ("Crashed", None)
    assert exit.message == "the worker crashed with exit status 1: E rkllm: the moon is in the wrong house"


def test_a_worker_on_the_cpu_has_no_failure_of_the_npu(tmp_path: Path) -> None:
    """Its library uses some of the same words for other things."""
    exit, _ = end_of(tmp_path, words="failed to load model\n", npu=None)
    assert (exit.reason, exit.failure) == ("Crashed", None)
