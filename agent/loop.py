"""The loop of the board: looks at everything, plans, acts, says how it stands; and again when something changed.

In: the ledger, the artifact cache, the supervisor's workers, requests in flight, the machine. Out: steps taken, routes for the serving
side, the latest state for the session. `app.py` makes it and everything it holds. A wake-up carries no meaning: each pass looks at all of
it, so nothing is lost when a wake-up is, and the agent needs no controller to do what its ledger says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final, Literal, Protocol

import msgspec

from agent.artifacts.cache import Cache
from agent.artifacts.prompt_caches import PromptCaches
from agent.board.memory import under_pressure
from agent.board.sensors import LOOK_SECONDS, Sensors
from agent.demand import Demand
from agent.fetching import Bytes
from agent.ledger import Ledger
from agent.metrics import AgentMetrics
from agent.planning.damage import ledger_damage
from agent.planning.events import LIBRARY_REFUSED, Happening, happenings
from agent.planning.plan import plan
from agent.planning.pressure import disk_pressure, memory_pressure
from agent.planning.values import Abilities, CancelFetch, Fetch, Leaving, Observed, Plan, Served, Start, Step, Stop, Unload, Verify
from agent.reports import Reports
from agent.workers.supervisor import Supervisor
from rkfleet.assignment import AssignedReplica
from rkfleet.clock import Clock
from rkfleet.conditions import Condition
from rkfleet.disk import in_thread
from rkfleet.kinds.replica import Measured
from rkfleet.racing import until_first
from rkfleet.report import BoardState, RunningWorker

__all__ = ["Loop", "Traffic", "Watch"]

# While bytes arrive or requests finish, nobody wakes the loop for each; this is how late it may be.
BUSY_LOOK_SECONDS: Final = 0.25
# Wake-ups that come closer than this share a pass: whatever keeps waking the loop, it leaves the core to the runtime.
PASS_SECONDS_MIN: Final = 0.02

_log = logging.getLogger(__name__)


class Traffic(Protocol):
    """What the serving side knows of a replica."""

    def in_flight(self, uid: str) -> int:
        """Return the requests that run or wait."""
        ...

    def measured(self, uid: str) -> Measured | None:
        """Return the speed of recent requests, or None before the first."""
        ...


class Watch(Protocol):
    """Who looks after the hardware. The loop takes what it says and tells it what is wanted; `agent/app.py` runs it beside the loop."""

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What is to be said about it now."""
        ...

    def want(self, clocks: Literal["Unmanaged", "Fixed"]) -> None:
        """Take how the clocks are to run; does not block."""
        ...

    def look(self) -> None:
        """Look once, so that the first report of the loop has conditions."""
        ...

    async def run(self) -> None:
        """Look again and again until cancelled."""
        ...


class Loop:
    """The one loop of an agent."""

    def __init__(
        self,
        *,
        clock: Clock,
        wake: asyncio.Event,
        ledger: Ledger,
        cache: Cache,
        bytes: Bytes,
        supervisor: Supervisor,
        traffic: Traffic,
        sensors: Sensors,
        reports: Reports,
        metrics: AgentMetrics,
        abilities: Abilities,
        publish: Callable[[tuple[Served, ...]], None],
        demand: Demand,
        prompt_caches: PromptCaches,
        problems: tuple[str, ...] = (),
        watch: Watch | None = None,
        passed: Callable[[], None] = lambda: None,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        """Take what the loop looks at and acts on.

        Args:
            clock: Monotonic time and waiting.
            wake: Set by whoever has something new to look at.
            ledger: What must run.
            cache: Bytes that are on the board.
            bytes: Fetches and verifications.
            supervisor: Workers.
            traffic: Requests and speeds.
            sensors: The machine.
            reports: Where the state and the log go.
            metrics: Gauges that follow the state.
            abilities: What does not change while the agent runs.
            publish: Given the routes of the board after each pass.
            demand: Who wants which model.
            prompt_caches: Directories of saved prompts.
            problems: Runtime libraries that are not used, each in a sentence; told once.
            watch: Looks after the hardware; None where there is none to look after.
            passed: Called at the end of each pass, for a watchdog.
            look_seconds: Time between two passes when nobody wakes it.
        """
        self._clock: Final = clock
        self._wake: Final = wake
        self._ledger: Final = ledger
        self._cache: Final = cache
        self._bytes: Final = bytes
        self._supervisor: Final = supervisor
        self._traffic: Final = traffic
        self._sensors: Final = sensors
        self._reports: Final = reports
        self._metrics: Final = metrics
        self._abilities: Final = abilities
        self._publish: Final = publish
        self._demand: Final = demand
        self._prompt_caches: Final = prompt_caches
        self._problems: Final = problems
        self._caches: frozenset[str] | None = None
        self._watch: Final = watch
        self._passed: Final = passed
        self._look_seconds: Final = look_seconds
        self._known: Mapping[str, AssignedReplica] = {}
        self._leaving: Mapping[str, Leaving] = {}
        self._low_memory = False

    async def run(self) -> None:
        """Look, plan and act until cancelled; fetches and verifications end with it."""
        for problem in self._problems:
            self._reports.record("Warning", LIBRARY_REFUSED, problem)
        await self._ledger.mend()
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._wake.clear()
                pause = self._look(tasks)
                self._passed()
                await self._clock.sleep(PASS_SECONDS_MIN)
                await self._wait(pause)

    def _look(self, tasks: asyncio.TaskGroup) -> float:
        """Make one pass and return after how many seconds the next is due at the latest."""
        try:
            observed = self._observe()
            planned = plan(self._ledger.held.assignment, self._abilities, observed)
            self._remember(planned)
            if self._watch is not None:
                self._watch.want(self._ledger.held.assignment.clocks)
            for step in planned.steps:
                self._act(step, tasks)
            self._cache.refer(planned.holders)
            self._publish(planned.served)
            self._tidy(planned, tasks)
            self._report(planned)
        except Exception:  # noqa: BLE001 (the edge of the loop)
            # The next pass may see better; a loop that ended would leave a board that serves and cannot be told anything.
            _log.exception("a pass of the loop failed")
            self._metrics.loop_failed()
            return self._look_seconds
        return self._pause(planned, observed)

    def _observe(self) -> Observed:
        assignment = self._ledger.held.assignment
        workers = self._supervisor.states()
        uids = {*workers, *(replica.uid for replica in assignment.replicas)}
        in_flight = {uid: count for uid in uids if (count := self._traffic.in_flight(uid))}
        measured = {uid: speed for uid in uids if (speed := self._traffic.measured(uid)) is not None}
        return Observed(
            now=self._clock.monotonic(),
            files=self._bytes.files(assignment.replicas),
            mismatched=self._bytes.mismatched,
            fetches=self._bytes.fetches,
            verifying=self._bytes.verifying,
            verified=self._bytes.verified,
            workers=workers,
            in_flight=in_flight,
            measured=measured,
            known=self._known,
            leaving=self._leaving,
            uses=self._demand.uses(),
            available_bytes=self._available_bytes(),
        )

    def _available_bytes(self) -> int | None:
        try:
            return self._sensors.memory().available_bytes
        except (OSError, ValueError):  # the report of this pass says so
            return None

    def _tidy(self, planned: Plan, tasks: asyncio.TaskGroup) -> None:
        """Remove saved prompts that no replica can use any more; looked at when the plan names others, and once after a start."""
        if planned.caches == self._caches:
            return
        self._caches = planned.caches
        if foreign := self._prompt_caches.foreign(planned.caches):
            _log.info("saved prompts are removed", extra={"directories": len(foreign)})
            tasks.create_task(in_thread(self._prompt_caches.remove, foreign), name="remove saved prompts")

    def _remember(self, planned: Plan) -> None:
        """Keep what the next plan needs: who leaves since when, and what each worker was started for."""
        assigned = {replica.uid: replica for replica in self._ledger.held.assignment.replicas}
        running = self._supervisor.states()
        self._known = {uid: known for uid in {*running, *assigned} if (known := assigned.get(uid) or self._known.get(uid)) is not None}
        self._leaving = planned.leaving
        self._supervisor.retain_logs(self._known.keys())
        self._demand.retain(self._known.keys())

    def _act(self, step: Step, tasks: asyncio.TaskGroup) -> None:
        match step:
            case Fetch():
                self._bytes.start_fetch(step, tasks)
            case CancelFetch(uid=uid):
                self._bytes.cancel_fetch(uid)
            case Verify():
                self._bytes.start_verification(step, tasks)
            case Start(spec=spec):
                self._supervisor.ensure(spec)
            case Stop(uid=uid):
                self._bytes.forget_verification(uid)
                self._supervisor.stop(uid)
            case Unload(uid=uid):
                # Verified anew while nobody waits, so that the next load is only the load.
                self._bytes.forget_verification(uid)
                self._supervisor.stop(uid)
                self._demand.slept(uid)

    def _report(self, planned: Plan) -> None:
        workers = self._supervisor.states()
        used_bytes = self._cache.used_bytes()
        state = BoardState(
            assignment_number=self._ledger.held.number,
            facts=self._sensors.facts(used_bytes),
            serving_url=self._abilities.serving_url,
            conditions=self._conditions(),
            replicas=planned.replicas,
            running=tuple(
                RunningWorker(namespace=worker.namespace, name=worker.name, uid=uid, memory_bytes=worker.memory_bytes)
                for uid, worker in sorted(workers.items())
                if worker.phase != "BackOff"
            ),
        )
        for happening in happenings(self._reports.state, state):
            self._record(happening)
        self._reports.publish(state)
        self._metrics.show(self._ledger.held.number, tuple(workers.values()), used_bytes)

    def _conditions(self) -> tuple[Condition, ...]:
        memory, storage = self._sensors.memory(), self._sensors.storage()
        self._low_memory = under_pressure(memory, self._low_memory)
        self._metrics.show_machine(memory.available_bytes, storage.free_bytes)
        problems = (*([self._ledger.disk_problem] if self._ledger.disk_problem else []), *self._bytes.disk_problems)
        return (
            memory_pressure(low=self._low_memory, total_bytes=memory.total_bytes),
            disk_pressure(free_bytes=storage.free_bytes, problems=problems),
            *(self._watch.conditions if self._watch is not None else ()),
            ledger_damage(self._ledger.problems, self._ledger.held.number),
        )

    def _record(self, happening: Happening) -> None:
        fields = msgspec.structs.asdict(happening)
        self._reports.record(fields.pop("type"), fields.pop("reason"), fields.pop("message"), **fields)
        level = logging.WARNING if happening.type == "Warning" else logging.INFO
        about = {"replica": f"{happening.namespace}/{happening.name}"} if happening.name else {}
        _log.log(level, happening.message, extra={"reason": happening.reason, **about})

    def _pause(self, planned: Plan, observed: Observed) -> float:
        busy = any(not fetch.reason for fetch in self._bytes.fetches.values()) or any(uid in observed.workers for uid in planned.leaving)
        # Requests that end make room for a model that somebody waits for.
        busy = busy or any(one.on_demand and not one.endpoint and one.replica.uid in observed.in_flight for one in planned.served)
        pause = BUSY_LOOK_SECONDS if busy else self._look_seconds
        if planned.look_again_at is not None:
            pause = min(pause, max(0.0, planned.look_again_at - self._clock.monotonic()))
        return pause

    async def _wait(self, seconds: float) -> None:
        """Return when somebody woke the loop, or after so many seconds."""
        await until_first(self._wake.wait(), self._clock.sleep(seconds))
