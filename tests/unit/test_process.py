"""Data directory locks, lifelines, stop signals and log lines."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rkfleet import process
from rkfleet.errors import FailedPrecondition, Invalid

WAIT_SECONDS = 10


def test_a_data_directory_has_one_owner_and_names_it(tmp_path: Path) -> None:
    """A second process is refused with the holder's number; after the first is done the directory is free."""
    refused = pytest.raises(FailedPrecondition, match=f"in use by process {os.getpid()}")
    with process.lock_data_dir(tmp_path / "data"), refused, process.lock_data_dir(tmp_path / "data"):
        pass
    with process.lock_data_dir(tmp_path / "data"):
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("name", "why"), [("file", "it is no directory"), ("file/below", "Not a directory"), ("loop", "")])
def test_a_data_directory_that_cannot_be_one_is_refused_with_its_name(tmp_path: Path, name: str, why: str) -> None:
    """It is the first thing that a person may have written wrong."""
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(FailedPrecondition, match=f"{name} cannot be used: {why}.*--data-dir"), process.lock_data_dir(tmp_path / name):
        pass


def test_a_child_does_not_inherit_the_lock(tmp_path: Path) -> None:
    """A worker that outlives its agent for a moment does not keep the next agent out."""
    program = "import sys; print('up', flush=True); sys.stdin.read()"
    with process.lock_data_dir(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        with process.lock_data_dir(tmp_path):
            pass
    finally:
        child.communicate(timeout=WAIT_SECONDS)


def test_a_lifeline_ends_when_its_last_holder_closes_it() -> None:
    """Bytes mean nothing; only the end counts."""

    async def scenario() -> None:
        reader, writer = os.pipe()
        try:
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(process.watch_lifeline(reader))
                os.write(writer, b"noise")
                await asyncio.wait((watching,), timeout=0.02)
                assert not watching.done()
                os.close(writer)
                await asyncio.wait_for(watching, WAIT_SECONDS)
        finally:
            os.close(reader)

    asyncio.run(scenario())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_cancels_the_work_and_waits_for_its_cleanup(number: signal.Signals) -> None:
    """The program ends without an error, after the work closed what it opened."""
    closed = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()
        finally:
            os.kill(os.getpid(), number)  # asked once more, as a parent does after Ctrl-C
            await asyncio.wait_for(asyncio.to_thread(lambda: None), WAIT_SECONDS)
            closed.append(True)

    async def scenario() -> None:
        waiting = asyncio.Event()

        async def when_watched() -> None:
            await waiting.wait()
            await work()

        asyncio.get_running_loop().call_later(0.01, waiting.set)
        await asyncio.wait_for(process.run_until_stopped(when_watched()), WAIT_SECONDS)

    asyncio.run(scenario())
    assert closed == [True]


def test_the_end_of_the_lifeline_stops_the_work() -> None:
    """A program dies with the process that started it."""

    async def scenario() -> None:
        reader, writer = os.pipe()
        os.close(writer)
        try:
            await asyncio.wait_for(process.run_until_stopped(asyncio.Event().wait(), lifeline=reader), WAIT_SECONDS)  # type: ignore[arg-type]
        finally:
            os.close(reader)

    asyncio.run(scenario())


def test_a_failure_becomes_its_exit_status_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Also when task groups have wrapped it; what rkfleet cannot name is an internal error."""

    async def nested() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())

    async def fail() -> None:
        raise Invalid("spec.replicas: 7 must be at most 3")

    async def broken() -> None:
        raise KeyError("x")

    async def fine() -> None:
        pass

    assert process.main(nested) == 1
    assert "error: spec.replicas: 7 must be at most 3\n" in capsys.readouterr().err
    assert process.main(broken) == 70
    assert process.main(fine) == 0


def test_log_lines_are_json_with_extra_fields_and_traceback() -> None:
    """One line per record, readable by a program."""
    program = (
        "import logging\nfrom rkfleet.process import setup_logging\nsetup_logging('info')\nlog = logging.getLogger('agent.loop')\n"
        "log.debug('hidden')\nlog.info('fetched %d', 3, extra={'digest': 'sha256:ab', 'path': object})\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    log.exception('failed')\n"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT_SECONDS, check=True).stderr
    first, second = (json.loads(line) for line in out.splitlines())
    assert (first["level"], first["logger"], first["message"], first["digest"]) == ("info", "agent.loop", "fetched 3", "sha256:ab")
    assert "ZeroDivisionError" in second["traceback"]
    with pytest.raises(FailedPrecondition, match="'loud' must be one of"):
        process.setup_logging("loud")
