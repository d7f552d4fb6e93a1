"""One simulated board: the shipped agent, switched on and off, started again when it fails.

In: the chip, ports, how to join. Out: a running `agent.app.Agent` while the board is on. Made by `simulation/boards/app.py`, switched by
the host's HTTP listener. A board that fails says why and is started again; it never takes the host or another board with it.

Switched off, a board loses its power: the session breaks without a Goodbye, the listeners and every connection on them close, workers are
gone, the disk keeps what it had. Only the network is kinder than a real one, because it tells the other side that the connection is gone.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Final, Literal

import msgspec

from agent.app import Agent
from agent.config import Config
from agent.parts import Parts
from agent.workers.simulated import SimulatedBackend
from rkfleet.benchmarks import load_table
from rkfleet.clock import Clock
from rkfleet.disk import in_thread
from rkfleet.errors import FleetError
from rkfleet.ops import bracketed
from rkfleet.process import lock_data_dir
from rkfleet.racing import run_until
from rkfleet.simulated import Chip
from simulation.boards.joining import Joining
from simulation.boards.machine import SimulatedMachine, SimulatedWatch, ensure_machine_id

__all__ = ["STATES", "SimulatedBoard", "Socket", "State"]

RESTART_SECONDS_MIN: Final = 1.0
RESTART_SECONDS_MAX: Final = 30.0  # A board that cannot run, for whatever reason, costs a try every half minute and is back soon after.

State = Literal["in session", "away", "stopping", "off", "failed"]
STATES: Final[tuple[State, ...]] = ("in session", "away", "stopping", "off", "failed")

_log = logging.getLogger(__name__)


class Socket(msgspec.Struct, frozen=True, kw_only=True):
    """Where a board listens: HTTPS for gateways, and plain HTTP on loopback, which is the ops listener of every agent."""

    serving_host: str
    serving_port: int
    advertise_host: str
    ops_port: int


class SimulatedBoard:
    """A board of the host; `run` must run for the rest to happen.

    Attributes:
        agent: The agent while the board is on and has not failed, else None.
        failure: Why it is not running although it should; empty otherwise.
    """

    def __init__(
        self,
        name: str,
        chip: Chip,
        directory: Path,
        socket: Socket,
        *,
        joining: Joining,
        clock: Clock,
        jitter: random.Random,
        load_speedup: float,
        on_failure: Callable[[str], None],
    ) -> None:
        """Take what the board is; it is on from the beginning. `on_failure` is called with its name whenever it ended by an error."""
        self.name: Final = name
        self.chip: Final = chip
        self.socket: Final = socket
        self.agent: Agent | None = None
        self.failure = ""
        self._directory: Final = directory
        self._joining: Final = joining
        self._clock: Final = clock
        self._jitter: Final = jitter
        self._load_speedup: Final = load_speedup
        self._on_failure: Final = on_failure
        self._on: Final = asyncio.Event()
        self._off: Final = asyncio.Event()
        self._gone: Final = asyncio.Event()  # set while nothing of the board runs
        self._gone.set()
        self._on.set()

    @property
    def ops_url(self) -> str:
        """Base URL of the board's plain listener."""
        return f"http://127.0.0.1:{self.socket.ops_port}"

    @property
    def serving_url(self) -> str:
        """Base URL that gateways dial."""
        return f"https://{bracketed(self.socket.advertise_host)}:{self.socket.serving_port}"

    @property
    def state(self) -> State:
        """What the board does now."""
        if not self._on.is_set():
            return "off" if self.agent is None else "stopping"
        if self.failure:
            return "failed"
        return "away" if self.agent is None or self.agent.no_session_reason else "in session"

    @property
    def why(self) -> str:
        """Why it is not in session, in one sentence; empty when it is."""
        match self.state:
            case "in session":
                return ""
            case "off" | "stopping":
                return "it was switched off"
            case "failed":
                return self.failure
            case "away":
                waits = self._joining.why(self.name)
                return waits or (self.agent.no_session_reason if self.agent is not None else "it starts")

    async def switch_off(self) -> None:
        """Take its power away at once; its disk stays. Returns when nothing of it runs any more. Idempotent."""
        if self._on.is_set():
            _log.warning("the board loses its power", extra={"board": self.name})
        self._on.clear()
        self._off.set()
        await self._gone.wait()

    def switch_on(self) -> None:
        """Boot it from its disk. Idempotent."""
        self._off.clear()
        self._on.set()

    async def run(self) -> None:
        """Keep the board as it was switched, until cancelled."""
        pause = RESTART_SECONDS_MIN
        while True:
            await self._on.wait()
            began = self._clock.monotonic()
            error = await self._until_off(self._live())
            if error is None:
                continue
            pause = RESTART_SECONDS_MIN if self._clock.monotonic() - began > RESTART_SECONDS_MAX else pause
            self.failure = _sentence(error)
            self._on_failure(self.name)
            _log.error("the board failed and is started again", extra={"cause": self.failure, "pause_seconds": pause}, exc_info=error)
            await self._until_off(self._clock.sleep(self._jitter.uniform(pause / 2, pause)))
            self.failure = ""
            pause = min(2 * pause, RESTART_SECONDS_MAX)

    async def _until_off(self, work: Coroutine[None, None, None]) -> Exception | None:
        """Do some work until it ends or the board is switched off; return the error that it ended by itself by."""
        try:
            await run_until(work, self._off.wait(), at_end=self._cut_power)
        except Exception as error:  # noqa: BLE001 (the edge of a board: whatever ended it is told and it is started again)
            return error
        return None

    def _cut_power(self) -> None:
        if self.agent is not None:
            self.agent.cut_power()

    async def _live(self) -> None:
        """Be a board, from boot to power off."""
        self._gone.clear()
        try:
            with lock_data_dir(self._directory):
                machine_id = await in_thread(ensure_machine_id, self._directory)
                self.agent = Agent(self._config(), self._parts(machine_id), clock=self._clock, jitter=self._jitter)
                await self.agent.run()
        finally:
            self.agent = None
            self._gone.set()

    def _config(self) -> Config:
        return Config(
            data_dir=self._directory,
            controller="",
            name=self.name,
            serving_host=self.socket.serving_host,
            advertise_host=self.socket.advertise_host,
            serving_port=self.socket.serving_port,
            ops_port=self.socket.ops_port,
        )

    def _parts(self, machine_id: str) -> Parts:
        table = load_table()
        backend = SimulatedBackend(
            self.chip.soc, table, clock=self._clock, new_api_key=lambda: secrets.token_urlsafe(24), load_speedup=self._load_speedup
        )
        return Parts(
            backends=(backend,),
            sensors=SimulatedMachine(self.chip, self._directory, machine_id, (backend.runtime,), self._reserved_bytes),
            identity=lambda: self._joining.ensure(self.name, self._directory / "identity", machine_id),
            renew=self._joining.renew,
            tables={backend.runtime.name: table},
            simulated=True,
            watch=lambda _metrics, on_change: SimulatedWatch(on_change),
        )

    def _reserved_bytes(self) -> int:
        return self.agent.reserved_bytes if self.agent is not None else 0


def _sentence(error: Exception) -> str:
    """Return why a board ended: the first error of ours in the group, else the first of all."""
    found: list[BaseException] = []
    pending: list[BaseException] = [error]
    while pending:
        one = pending.pop(0)
        if isinstance(one, BaseExceptionGroup):
            pending.extend(one.exceptions)
        else:
            found.append(one)
    ours = next((one for one in found if isinstance(one, FleetError)), None)
    return ours.message if ours is not None else f"internal error: {found[0]!r}"
