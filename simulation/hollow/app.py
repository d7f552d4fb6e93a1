"""Hollow boards, wired: the only file that knows every part, and the only one that makes clocks, ids and randomness.

In: a `Config`. Out: a fleet in session until it is told to stop, or for `--seconds`. Boards join first, all of them, then they open their
sessions, a few hundred a second, and when the last one is in session for the first time the scenario's clock begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import resource
import sys
import uuid
from collections.abc import Mapping, Sequence
from typing import Final

from rkfleet.client import ApiClient, Cluster, find_kubeconfig, load_cluster
from rkfleet.clock import Clock, SystemClock
from rkfleet.errors import BadRequest, FailedPrecondition, Invalid
from rkfleet.kinds import Board
from rkfleet.manifest import Source
from rkfleet.meta import LABEL_SITE, Ref
from rkfleet.process import run_until_stopped
from simulation.hollow.agenda import Agenda
from simulation.hollow.board import HollowBoard
from simulation.hollow.config import Config, socs_of
from simulation.hollow.identities import Enrolled, ensure_identities, read_state, write_state
from simulation.hollow.progress import Progress, count
from simulation.hollow.scenario import Scenario, read_scenario
from simulation.hollow.weather import Place, forecast

__all__ = ["run"]

DESCRIPTORS_BESIDE: Final = 256  # Files, pipes and connections of this process that are no sessions.
OPENED_PER_SECOND: Final = 200  # Sessions at the start. A controller does some 275 handshakes a second on one core.
CONNECTING_AT_ONCE: Final = 100  # A quarter of a second of handshakes; also after a restart of the controller.
SHOW_SECONDS: Final = 1.0
SHOW_PLAIN_SECONDS: Final = 5.0  # A line in a log file is there for longer than one on a screen.
LABELS_AT_ONCE: Final = 16
SCENARIO_BYTES_MAX: Final = 1 << 20

_log: Final = logging.getLogger(__name__)


def _new_id() -> str:
    return uuid.uuid4().hex  # noqa: TID251 (the one source of ids)


async def run(config: Config) -> None:
    """Play the fleet until told to stop or until its time is over.

    Raises:
        FleetError: The fleet cannot join; the message says why.
    """
    with Progress(sys.stdout) as progress:
        work = _timed(_Fleet(config, _scenario(config), SystemClock(), progress), config.seconds)
        await run_until_stopped(work, config.lifeline_fd)


async def _timed(fleet: _Fleet, seconds: float | None) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await fleet.run()


def _scenario(config: Config) -> Scenario:
    if config.scenario is None:
        return Scenario()
    try:
        with config.scenario.open("rb") as opened:
            text = opened.read(SCENARIO_BYTES_MAX + 1)
    except OSError as error:
        raise BadRequest(f"--scenario {config.scenario}: {error.strerror}") from error
    if len(text) > SCENARIO_BYTES_MAX:
        raise BadRequest(f"--scenario {config.scenario} is larger than {SCENARIO_BYTES_MAX} bytes")
    return read_scenario(Source(str(config.scenario), text))


class _Fleet:
    """All boards of the process."""

    def __init__(self, config: Config, scenario: Scenario, clock: Clock, progress: Progress) -> None:
        self._config: Final = config
        self._scenario: Final = scenario
        self._clock: Final = clock
        self._progress: Final = progress
        self._agenda: Final = Agenda(clock)
        self._hands: Final = asyncio.Semaphore(CONNECTING_AT_ONCE)
        self._jitter: Final = random.Random()  # noqa: S311 (spreads reconnects; it is no part of the scenario)
        socs = socs_of(config.boards, config.mix)
        self._soc: Final = {f"{config.prefix}-{soc}-{number}": soc for number, soc in enumerate(socs, start=1)}
        sites = scenario.sites
        self._site: Final = {name: sites[number % len(sites)] if sites else "" for number, name in enumerate(self._soc)}
        self._joined = 0
        self._boards: Mapping[str, HollowBoard] = {}

    async def run(self) -> None:
        """Join, open sessions, and go through the scenario until cancelled."""
        _ensure_descriptors(len(self._soc))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._show())
            enrolled = await self._join()
            self._boards = {name: self._board(enrolled[name]) for name in self._soc}
            tasks.create_task(self._agenda.run())
            for number, board in enumerate(self._boards.values(), start=1):
                tasks.create_task(board.run())
                if number % 10 == 0:
                    await self._clock.sleep(10 / OPENED_PER_SECOND)
            while not all(board.in_session for board in self._boards.values()):
                await self._clock.sleep(0.1)
            self._progress.say(f"all {len(self._boards)} boards are in session")
            await self._weather()

    async def _join(self) -> Mapping[str, Enrolled]:
        config = self._config
        async with ApiClient(_cluster(config), self._clock, user_agent="rkfleet-hollow") as client:
            kept = read_state(config.state) if config.state else ()

            def note(joined: int) -> None:
                self._joined = joined

            enrolled = await ensure_identities(client, tuple(self._soc), kept, _new_id, note)
            self._joined = len(enrolled)
            if config.state:
                others = [one for one in kept if one.name not in enrolled]
                write_state(config.state, [*enrolled.values(), *others])
            if self._scenario.sites:
                await self._label(client)
        return enrolled

    async def _label(self, client: ApiClient) -> None:
        """Tell the controller the site of each board; that is an operator's word, not a board's."""
        waiting = list(self._site.items())

        async def work() -> None:
            while waiting:
                name, site = waiting.pop()
                await client.patch(Ref(Board.resource.name, "", name), {"metadata": {"labels": {LABEL_SITE: site}}})

        async with asyncio.TaskGroup() as tasks:
            for _ in range(LABELS_AT_ONCE):
                tasks.create_task(work())

    def _board(self, enrolled: Enrolled) -> HollowBoard:
        return HollowBoard(
            enrolled,
            self._soc[enrolled.name],
            scenario=self._scenario,
            clock=self._clock,
            agenda=self._agenda,
            jitter=self._jitter,
            boot_id=_new_id(),
            hands=self._hands,
        )

    async def _weather(self) -> None:
        """Cut boards off when the scenario says so; wait for ever when it has no more to say."""
        began = self._clock.monotonic()
        places = [Place(board=name, soc=soc, site=self._site[name]) for name, soc in self._soc.items()]
        for away in forecast(self._scenario, places):
            await self._clock.sleep(max(0.0, began + away.at_seconds - self._clock.monotonic()))
            for name in away.boards:
                self._boards[name].cut(away.for_seconds)
            if len(away.boards) != 1:
                self._progress.say(f"{away.why}: {len(away.boards)} boards lose their connection for {away.for_seconds:g} s")
        await asyncio.Event().wait()

    async def _show(self) -> None:
        pause = SHOW_SECONDS if sys.stdout.isatty() else SHOW_PLAIN_SECONDS
        while True:
            boards: Sequence[HollowBoard] = tuple(self._boards.values())
            self._progress.show(
                count(
                    wanted=len(self._soc),
                    joined=self._joined,
                    sessions=[board.in_session for board in boards],
                    away=sum(board.away for board in boards),
                    phases=[worker.phase for board in boards for worker in board.machine.workers],
                )
            )
            await self._clock.sleep(pause)


def _cluster(config: Config) -> Cluster:
    """Return how the admin reaches the controller."""
    found = load_cluster(find_kubeconfig(config.kubeconfig))
    if not config.controller:
        return found
    if not config.controller.startswith("https://"):
        raise Invalid(f"--controller {config.controller!r} must be https://host:port")
    return Cluster(config.controller, found.ca_pem, found.token, found.namespace)


def _ensure_descriptors(boards: int) -> None:
    """See to it that this process may open one connection for each board.

    Raises:
        FailedPrecondition: The system's limit is lower.
    """
    needed = boards + DESCRIPTORS_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise FailedPrecondition(f"{boards} boards need {needed} file descriptors, and this process may open {hard}; see: ulimit -Hn")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
