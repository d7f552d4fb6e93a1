"""Play a plan: start the servers, let clients and watchers work while things die, bring everybody to the end, return what was recorded.

In: a plan, the process whose forks the servers are, a database. Out: a history, and what did not come to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Sequence
from pathlib import Path

import msgspec

from rkfleet.clock import SystemClock
from tests.support.history.clients import Client
from tests.support.history.databases import Database
from tests.support.history.ledger import make_ledger
from tests.support.history.plan import CALM_SECONDS_MAX, Plan
from tests.support.history.recorder import Recorder
from tests.support.history.records import History, group_of
from tests.support.history.servers import Forks, Server
from tests.support.history.watchers import Watcher
from tests.support.history.wire import Wire

__all__ = ["Played", "play"]

RETRY_SECONDS = 0.05
CLOCK = SystemClock()


class Played(msgspec.Struct, frozen=True):
    """A history and how it went.

    Attributes:
        faults: What did not come to its end.
        expired: How often a watcher was told that it is too late.
    """

    history: History
    faults: tuple[str, ...]
    expired: int

    def __str__(self) -> str:
        operations, connections = self.history.operations, self.history.connections
        ledger = make_ledger(self.history)
        acknowledged = sum(one.writes and one.outcome == "ok" for one in operations)
        unknown = sum(one.writes and one.outcome == "unknown" for one in operations)
        return (
            f"{len(operations)} operations, {acknowledged} writes acknowledged, {unknown} unknown, {len(ledger.changes)} changes,"
            f" {len(ledger.holes)} seen by nobody; {len(connections)} watches, {sum(len(one.deliveries) for one in connections)} lines,"
            f" {self.expired} expired"
        )


async def play(plan: Plan, forks: Forks, database: Database, directory: Path, fault: str = "") -> Played:
    """Play a plan in a directory of its own, with servers that have a fault if it is named (see `broken.py`)."""
    place = await database.place()
    servers = [Server(forks, directory / f"server-{number}", place, plan.log_events, fault) for number in range(database.servers)]
    async with contextlib.AsyncExitStack() as stack:
        for server in servers:
            stack.push_async_callback(server.kill)
            await _start(server)
        endpoints = [server.endpoint() for server in servers]

        def wires(*, slow: bool = False) -> list[Wire]:
            made = [Wire(endpoint, slow=slow) for endpoint in endpoints]
            for wire in made:
                stack.push_async_callback(wire.aclose)
            return made

        chance, recorder, shared = random.Random(plan.seed), Recorder(CLOCK.monotonic), wires()
        seeds = [chance.getrandbits(64) for _ in range(plan.clients + len(plan.watchers))]
        clients = [
            Client(
                f"client-{number}",
                shared if number % 3 == 0 else [shared[number % len(shared)]],  # Who is loyal goes on while the other server stands still.
                recorder,
                chance=random.Random(seeds.pop()),
                names=plan.names,
                padding=plan.padding,
                clock=CLOCK,
            )
            for number in range(plan.clients)
        ]
        watchers = [
            Watcher(
                f"watcher-{number}-{manner}",
                wires(slow=manner == "slow"),
                recorder,
                chance=random.Random(seeds.pop()),
                selection=selection,
                manner=manner,
                clock=CLOCK,
            )
            for number, (selection, manner) in enumerate(plan.watchers)
        ]
        await clients[0].list("", 0)
        base = recorder.operations[0].pages[0]
        async with asyncio.TaskGroup() as tasks:
            for watcher in watchers:
                tasks.create_task(watcher.run(plan.calm_seconds_max))
            async with asyncio.TaskGroup() as working:
                for client in clients:
                    working.create_task(client.run())
                await _let_die(plan, servers, database)
                async with asyncio.timeout(CALM_SECONDS_MAX):
                    while len(recorder.operations) < plan.operations_min:
                        await CLOCK.sleep(RETRY_SECONDS)
                for client in clients:
                    client.stopping = True
            goals = await _calm_down(clients[0], recorder, plan.names)
            for watcher in watchers:
                what, _, name = watcher.selection.partition("=")
                watcher.finish(goals[name] if what == "name" else max(goals.values()))
        late = [
            f"watch: watcher-{number} of {one.selection!r} did not come to the end"
            for number, one in enumerate(watchers)
            if not one.arrived
        ]
        return Played(recorder.history(base), tuple(late), sum(one.expired for one in watchers))


async def _start(server: Server) -> None:
    """Start a server, again and again while its database is not there."""
    async with asyncio.timeout(CALM_SECONDS_MAX):
        while why := await server.start():
            assert "Unavailable" in why, why
            await CLOCK.sleep(RETRY_SECONDS)


async def _let_die(plan: Plan, servers: Sequence[Server], database: Database) -> None:
    for death in plan.deaths:
        await CLOCK.sleep(death.after_seconds)
        if death.victim == "database":
            await database.crash()
        elif death.stops:
            servers[death.victim].signal(signal.SIGSTOP)
            await CLOCK.sleep(death.down_seconds)
            servers[death.victim].signal(signal.SIGCONT)
        else:
            await servers[death.victim].kill()
            await CLOCK.sleep(death.down_seconds)
            await _start(servers[death.victim])
    await CLOCK.sleep(plan.rest_seconds)


async def _calm_down(client: Client, recorder: Recorder, names: Sequence[str]) -> dict[str, int]:
    """Write every object once more, the first one last and into both groups, and list; return the last revision of each.

    So the last change of all concerns every selection but those of other names.
    """
    async with asyncio.timeout(CALM_SECONDS_MAX):
        for name in [*names[1:], *([names[0]] * 3)]:
            while not await _settled(client, recorder, name):
                await CLOCK.sleep(RETRY_SECONDS)
        while True:
            await client.list("", 0)
            last = recorder.operations[-1]
            if last.outcome == "ok":
                return {seen.name: seen.revision for seen in last.seen}
            await CLOCK.sleep(RETRY_SECONDS)


async def _settled(client: Client, recorder: Recorder, name: str) -> bool:
    """Bring an object into the other group, by an acknowledged write."""
    last = next((seen for one in reversed(recorder.operations) for seen in one.seen if seen.name == name), None)
    value = recorder.value()
    while last is not None and group_of(value) == group_of(last.value):
        value = recorder.value()
    await client.update(name, value, expecting=False)
    if recorder.operations[-1].outcome == "absent":
        await client.create(name, recorder.value())
    return recorder.operations[-1].outcome == "ok"
