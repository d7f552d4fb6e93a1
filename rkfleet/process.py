"""What every long-running program of rkfleet needs from its operating system.

In: a data directory, a lifeline descriptor, a log level. Out: one owner per data directory, a clean stop on SIGTERM, Ctrl-C or the
death of the parent, JSON lines on standard error, and one exit status per kind of failure. Called by the `__main__` and `app` of each
program. It stands apart from them so that controller, registry, gateway and agent stop in the same way, and it imports little, because
the agent's memory is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from rkfleet.clock import format_time
from rkfleet.errors import FailedPrecondition, FleetError
from rkfleet.racing import run_until

__all__ = [
    "extra_fields",
    "lock_data_dir",
    "main",
    "run_until_stopped",
    "setup_logging",
    "wait_for_stop",
    "wait_for_stop_signals",
    "watch_lifeline",
]

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_LOCK_NAME: Final = "lock"
_LIFELINE_READ_BYTES: Final = 4096  # Nobody writes to a lifeline; whatever comes is thrown away.
_STANDARD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def lock_data_dir(path: Path) -> Iterator[None]:
    """Make `path` (mode 0700) if it is missing and hold its `lock` file, which names the holder, for as long as the block runs.

    The lock belongs to the open file, so it ends with the process however it dies, and children do not inherit it.

    Raises:
        FailedPrecondition: Another process holds the directory, or nothing can be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        why = "it is no directory" if path.exists() and not path.is_dir() else error.strerror
        raise FailedPrecondition(f"data directory {path} cannot be used: {why}; choose another --data-dir", path=str(path)) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise FailedPrecondition(
                f"data directory {path} is in use by process {holder}; stop it or choose another --data-dir", path=str(path)
            ) from error
        with contextlib.suppress(OSError):  # A disk that is full takes no name of a holder; the lock holds without.
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


async def watch_lifeline(descriptor: int) -> None:
    """Return when the other end of the pipe is closed, that is, when the process that holds it is gone.

    The descriptor stays open; it belongs to the caller.
    """
    loop = asyncio.get_running_loop()
    closed: asyncio.Future[None] = loop.create_future()

    def readable() -> None:
        try:
            ended = not os.read(descriptor, _LIFELINE_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            ended = True
        if ended and not closed.done():
            closed.set_result(None)

    os.set_blocking(descriptor, False)
    loop.add_reader(descriptor, readable)
    try:
        await closed
    finally:
        loop.remove_reader(descriptor)


async def wait_for_stop_signals() -> str:
    """Return the name of the first SIGTERM or SIGINT that comes; until then neither ends the process."""
    caught: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def catch(number: signal.Signals) -> None:
        if not caught.done():
            caught.set_result(number.name)

    with _handling_stop_signals(catch):
        return await caught


@contextlib.contextmanager
def _handling_stop_signals(handle: Callable[[signal.Signals], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, handle, number)
    try:
        yield
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)


async def wait_for_stop(lifeline: int | None = None) -> str:
    """Return why the program should stop: a signal's name, or that its parent is gone."""
    if lifeline is None:
        return await wait_for_stop_signals()
    signal = await run_until(wait_for_stop_signals(), watch_lifeline(lifeline))
    return signal.result if signal is not None else "end of the lifeline"


async def run_until_stopped(work: Coroutine[Any, Any, None], lifeline: int | None = None) -> None:
    """Run a program's work until it ends, fails, or is told to stop; then cancel it and wait for its clean-up.

    Raises:
        Exception: What `work` raised.
    """
    stop = asyncio.create_task(wait_for_stop(lifeline))
    running = asyncio.create_task(work)
    try:
        await asyncio.wait((stop, running), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            _log.info("stopping", extra={"reason": stop.result()})
            running.cancel()
        # Ctrl-C in a terminal reaches a whole process group, and the parent then asks once more: a clean stop is not cut by that.
        with _handling_stop_signals(lambda _number: None), contextlib.suppress(asyncio.CancelledError):
            await running
    finally:
        for task in (running, stop):
            task.cancel()
        await asyncio.wait((running, stop))


def main(program: Callable[[], Awaitable[None]]) -> int:
    """Run a program to its end and return its exit status; a failure is logged once, here, with its whole chain."""

    async def body() -> None:
        await program()

    try:
        asyncio.run(body())
    except KeyboardInterrupt:
        return 0
    except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 (the edge of the process)
        fleet = _first_fleet_error(error)
        if fleet is None:
            _log.error("internal error", exc_info=error)
            return FleetError.exit_status
        _log.error(fleet.message, extra={"error": type(fleet).__name__}, exc_info=_log.isEnabledFor(logging.DEBUG))
        print(f"error: {fleet.message}", file=sys.stderr)  # noqa: T201 (the person at the terminal reads this line)
        return fleet.exit_status
    return 0


def _first_fleet_error(error: BaseException) -> FleetError | None:
    if isinstance(error, BaseExceptionGroup):
        return next((found for one in error.exceptions if (found := _first_fleet_error(one))), None)
    return error if isinstance(error, FleetError) else None


def extra_fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return what was given to a log call as `extra`."""
    return {key: value for key, value in vars(record).items() if key not in _STANDARD_FIELDS}


class _JsonLines(logging.Formatter):
    """One JSON object per record: time, level, logger, message, the `extra` fields, and the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": format_time(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(extra_fields(record))
        if record.exc_info and record.exc_info[0] is not None:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return msgspec.json.encode(line, enc_hook=str).decode()


def setup_logging(level: str) -> None:
    """Write every record of this level and above as a JSON line to standard error; libraries below `warning` stay silent.

    Raises:
        FailedPrecondition: `level` is none of LOG_LEVELS.
    """
    if level not in LOG_LEVELS:
        raise FailedPrecondition(f"log level {level!r} must be one of {', '.join(LOG_LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for library in ("alembic", "asyncio", "grpc", "httpcore", "httpx", "httpx2", "uvicorn"):
        logging.getLogger(library).setLevel(logging.WARNING)
