"""The host of simulated boards, wired: the only file that knows every part of it.

In: a `Config`. Out: boards that serve. Called by `simulation/boards/__main__.py`. All boards share one event loop, one pool of threads for
their disks, one source of jitter; what belongs to a board is its own: directory, key and certificate, ledger, cache, listeners, metrics,
session.

    DATA_DIR/{lock, ports.json, BOARD/{machine-id, identity/, ledger.json, artifacts/, partial/}}
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from rkfleet.clock import SystemClock
from rkfleet.disk import in_thread
from rkfleet.metric_names import SIMULATED_BOARD_FAILURES
from rkfleet.metrics import Metrics
from rkfleet.ops import serve_asgi
from rkfleet.ports import Ports
from rkfleet.process import lock_data_dir, run_until_stopped
from rkfleet.simulated import board_names
from simulation.boards.board import SimulatedBoard, Socket
from simulation.boards.config import Config
from simulation.boards.http import HostApp
from simulation.boards.joining import Joining

__all__ = ["run"]

# Disks, hashes and enrolments of all boards. They mostly wait; more threads would only keep more memory.
THREADS_MAX: Final = 6

_board: Final[contextvars.ContextVar[str]] = contextvars.ContextVar("board", default="")

_log = logging.getLogger(__name__)


async def run(config: Config) -> None:
    """Host the boards until told to stop.

    Raises:
        FailedPrecondition: The data directory is in use, or an address cannot be bound.
    """
    with lock_data_dir(config.data_dir):
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="disk"))
        for handler in logging.getLogger().handlers:
            handler.addFilter(_name_board)
        metrics = Metrics("simulated-boards")
        boards = await in_thread(_boards, config, metrics)
        await run_until_stopped(_host(config, boards, metrics), config.lifeline)


async def _host(config: Config, boards: tuple[SimulatedBoard, ...], metrics: Metrics) -> None:
    async with asyncio.TaskGroup() as tasks, serve_asgi(HostApp(boards, metrics), config.ops_host, config.ops_port) as listener:
        _log.info("listening", extra={"for": "health, metrics, discovery and switching boards", "url": listener.url})
        for board in boards:
            context = contextvars.copy_context()
            context.run(_board.set, board.name)
            tasks.create_task(board.run(), name=f"board {board.name}", context=context)
        await asyncio.Event().wait()


def _boards(config: Config, metrics: Metrics) -> tuple[SimulatedBoard, ...]:
    clock = SystemClock()
    jitter = random.Random()  # noqa: S311 (spreads retries; keys come from `secrets`)
    joining = Joining(config.kubeconfig, config.controller, clock, jitter)
    ports = Ports(config.data_dir / "ports.json")

    def socket(name: str, place: int) -> Socket:
        # Not checked here: of hundreds of ports one may be somebody's for a moment, and then one board waits instead of all.
        wanted = config.serving_port_base + place if config.serving_port_base else 0
        return Socket(
            serving_host=config.serving_host,
            serving_port=ports.choose(name, wanted, config.serving_host, check=False),
            advertise_host=config.advertise_host,
            ops_port=ports.choose(f"{name}-ops", 0, check=False),
        )

    boards = tuple(
        SimulatedBoard(
            name,
            chip,
            config.data_dir / name,
            socket(name, place),
            joining=joining,
            clock=clock,
            jitter=jitter,
            load_speedup=config.load_speedup,
            on_failure=lambda failed: metrics.counter(SIMULATED_BOARD_FAILURES, board=failed).inc(),
        )
        for place, (name, chip) in enumerate(board_names(config.boards).items())
    )
    ports.save()
    return boards


def _name_board(record: logging.LogRecord) -> bool:
    """Put the board's name into every line that is written on its behalf."""
    if name := _board.get():
        record.board = name
    return True
