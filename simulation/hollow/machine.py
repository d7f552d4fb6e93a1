"""The inside of a hollow board: an assignment is played as an agent would, with seconds in the place of bytes and workers.

In: assignments that were accepted. Out: reports, in the shipped agent's own words, because the shipped planner (`agent.planning.plan`)
decides each step and says how each replica stands; only what it sees is made up here. A fetch is a wait, a worker is a state that changes
at its time, a verification is done at once. One pass takes about a tenth of a millisecond and nothing waits in between, so one process
plays thousands of boards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from agent.ledger import Entry, judge
from agent.planning.events import happenings
from agent.planning.plan import plan
from agent.planning.pressure import disk_pressure, memory_pressure
from agent.planning.residency import Use
from agent.planning.values import (
    Abilities,
    CancelFetch,
    Fetch,
    FetchState,
    InstalledLibrary,
    Leaving,
    Observed,
    Plan,
    Start,
    Step,
    Stop,
    Unload,
    Verify,
)
from agent.reports import Reports
from agent.workers.base import WorkerSpec, WorkerState
from rkfleet import __version__
from rkfleet.assignment import AssignedReplica, Assignment
from rkfleet.clock import Clock, format_time
from rkfleet.kinds.board import Runtime, Versions
from rkfleet.kinds.replica import ExitReason, LastExit
from rkfleet.report import BoardFacts, BoardState, RunningWorker
from rkfleet.session import AssignmentAnswer, AssignmentOffer, Verdict
from simulation.hollow.agenda import Agenda
from simulation.hollow.scenario import Scenario
from simulation.hollow.timing import Fate, fate_of

__all__ = ["HollowMachine", "MemoryLedger", "facts_of"]

GIB: Final = 1 << 30
MEMORY_BYTES: Final[Mapping[str, int]] = {"rk3588": 16 * GIB, "rk3576": 8 * GIB}  # As `rkfleet up` simulates them.
NPU_CORES: Final[Mapping[str, int]] = {"rk3588": 3, "rk3576": 2}
SYSTEM_BYTES: Final = 1 * GIB  # What agent and system of a board keep.
STORAGE_BYTES: Final = 58 * GIB
RUNTIME_VERSION: Final = "1.1.4"  # A release that the requirements of sample Models take.
STOP_SECONDS: Final = 0.1  # A worker's way out; a real one needs tens of milliseconds.
PASSES_MAX: Final = 20  # At one moment: fetch, verify, start, and the same for each of a few replicas.
EXIT_MESSAGE: Final = "[simulated] the scenario wants it so"
KERNEL: Final = "hollow"  # Where a person looks for the kernel of a board that has none.


def facts_of(soc: str) -> BoardFacts:
    """Return what a hollow board with this chip says of itself; that it is simulated, in three places."""
    memory_bytes = MEMORY_BYTES[soc]
    return BoardFacts(
        soc=soc,
        simulated=True,
        memory_bytes=memory_bytes,
        storage_bytes=STORAGE_BYTES,
        npu_cores=NPU_CORES[soc],
        allocatable_memory_bytes=memory_bytes - SYSTEM_BYTES,
        allocatable_storage_bytes=STORAGE_BYTES,
        versions=Versions(agent=__version__, kernel=KERNEL),
        runtimes=(Runtime(name="rkllm", version=RUNTIME_VERSION, backend="simulated"),),
    )


class MemoryLedger:
    """The ledger without a disk: the same judgement, forgotten with the process."""

    def __init__(self) -> None:
        self.held = Entry(0, "", "", Assignment())

    async def accept(self, offer: AssignmentOffer) -> AssignmentAnswer:
        """Judge an offer and hold it if it is accepted."""
        refusal, self.held = judge(self.held, offer)
        return refusal or AssignmentAnswer(number=offer.number, verdict=Verdict.ACCEPTED)


class HollowMachine:
    """One board's ledger, reports and make-believe insides; all of it belongs to the event loop.

    Attributes:
        reports: Where the session takes reports from.
    """

    def __init__(self, name: str, facts: BoardFacts, scenario: Scenario, clock: Clock, agenda: Agenda) -> None:
        self._name: Final = name
        self._facts: Final = facts
        self._scenario: Final = scenario
        self._clock: Final = clock
        self._agenda: Final = agenda
        self._ledger: Final = MemoryLedger()
        self._abilities: Final = Abilities(
            libraries={one.name: (InstalledLibrary(version=one.version),) for one in facts.runtimes},
            cores=8,
            memory_bytes=facts.allocatable_memory_bytes,
            serving_url="",
        )
        self._files: Final[dict[str, str]] = {}
        self._fetches: Final[dict[str, FetchState]] = {}
        self._verified: Final[dict[str, str]] = {}
        self._workers: Final[dict[str, WorkerState]] = {}
        self._loads: Final[dict[str, int]] = {}  # Loads of a replica that have begun, by `namespace/name`.
        self._uses: Final[dict[str, Use]] = {}  # Nobody asks a hollow board anything, so models only go to sleep.
        self._known: Mapping[str, AssignedReplica] = {}
        self._leaving: Mapping[str, Leaving] = {}
        self._looks_at = float("inf")
        self.reports: Final = Reports(clock)
        self._look()

    @property
    def held(self) -> Entry:
        """The accepted assignment."""
        return self._ledger.held

    async def accept(self, offer: AssignmentOffer) -> AssignmentAnswer:
        """Judge an offer, as `agent.session.pump.Ledger` asks."""
        before = self._ledger.held
        answer = await self._ledger.accept(offer)
        if self._ledger.held is not before:
            self._look()
        return answer

    @property
    def workers(self) -> tuple[WorkerState, ...]:
        """What runs, or is about to."""
        return tuple(self._workers.values())

    def _look(self) -> None:
        """Plan and act until nothing is to be done at this moment, then report."""
        for _ in range(PASSES_MAX):
            planned = plan(self.held.assignment, self._abilities, self._observe())
            self._leaving = planned.leaving
            assigned = {replica.uid: replica for replica in self.held.assignment.replicas}
            self._known = {
                uid: one for uid in {*self._workers, *assigned} if (one := assigned.get(uid) or self._known.get(uid)) is not None
            }
            for step in planned.steps:
                self._act(step)
            if not planned.steps:
                self._report(planned)
                return
        raise AssertionError(f"board {self._name} finds no end of steps for assignment {self.held.number}")

    def _report(self, planned: Plan) -> None:
        state = BoardState(
            assignment_number=self.held.number,
            facts=self._facts,
            conditions=(
                memory_pressure(low=False, total_bytes=self._facts.memory_bytes),
                disk_pressure(free_bytes=self._facts.storage_bytes, problems=()),
            ),
            replicas=planned.replicas,
            running=tuple(
                RunningWorker(namespace=worker.namespace, name=worker.name, uid=uid, memory_bytes=worker.memory_bytes)
                for uid, worker in sorted(self._workers.items())
                if worker.phase != "BackOff"
            ),
        )
        for happening in happenings(self.reports.state, state):
            fields = msgspec.structs.asdict(happening)
            self.reports.record(fields.pop("type"), fields.pop("reason"), fields.pop("message"), **fields)
        self.reports.publish(state)
        if planned.look_again_at is not None:
            self._look_at(planned.look_again_at)

    def _look_at(self, moment: float) -> None:
        if moment < self._looks_at:
            self._looks_at = moment
            self._agenda.at(moment, self._look_again)

    def _look_again(self) -> None:
        self._looks_at = float("inf")
        self._look()

    def _observe(self) -> Observed:
        return Observed(
            now=self._clock.monotonic(),
            files=dict(self._files),
            fetches=dict(self._fetches),
            verified=dict(self._verified),
            workers=dict(self._workers),
            known=self._known,
            leaving=self._leaving,
            uses=self._uses,
        )

    # What takes time. Each wait is for one state of one replica: whatever ends that state earlier ends the wait.

    def _act(self, step: Step) -> None:
        match step:
            case Fetch(replica=replica, files=files):
                self._fetch(replica, frozenset(file.digest for file in files))
            case CancelFetch(uid=uid):
                del self._fetches[uid]
            case Verify(uid=uid, token=token):
                self._verified[uid] = token
            case Start(spec=spec):
                self._load(_worker(spec, self._workers.get(spec.uid)))
            case Stop(uid=uid) | Unload(uid=uid):
                if isinstance(step, Unload):
                    self._uses[uid] = Use(last_at=self._clock.monotonic(), unloaded=True, slept=True)
                self._verified.pop(uid, None)
                stopping = self._put(msgspec.structs.replace(self._workers[uid], phase="Stopping"))
                self._later(STOP_SECONDS, stopping, lambda: self._workers.pop(uid))

    def _fetch(self, replica: AssignedReplica, digests: frozenset[str]) -> None:
        state = self._fetches[replica.uid] = FetchState(digests=digests)

        def arrive() -> None:
            if self._fetches.get(replica.uid) is state:
                del self._fetches[replica.uid]
                self._files.update(dict.fromkeys(digests, KERNEL))
                self._look()

        self._agenda.at(self._clock.monotonic() + self._fate(replica.namespace, replica.name).fetch_seconds, arrive)

    def _load(self, worker: WorkerState) -> None:
        """Begin to load; the fate of this load says how it ends."""
        fate = self._fate(worker.namespace, worker.name)
        self._loads[f"{worker.namespace}/{worker.name}"] = fate.attempt + 1
        self._put(worker)
        if fate.ends == "LoadFailed":
            self._later(fate.load_seconds, worker, lambda: self._exit(worker, "LoadFailed"))
        else:
            self._later(fate.load_seconds, worker, lambda: self._serve(worker, fate))

    def _serve(self, worker: WorkerState, fate: Fate) -> None:
        ready = self._put(msgspec.structs.replace(worker, phase="Ready", ready_at=self._clock.monotonic()))
        if fate.ends == "Crashed":
            self._later(fate.crash_after_seconds, ready, lambda: self._exit(ready, "Crashed"))

    def _exit(self, worker: WorkerState, reason: ExitReason) -> None:
        pause = self._scenario.failures.back_off_seconds
        waiting = self._put(
            msgspec.structs.replace(
                worker,
                phase="BackOff",
                restarts=worker.restarts + 1,
                last_exit=LastExit(reason=reason, message=EXIT_MESSAGE, time=format_time(self._clock.now())),
                not_before=self._clock.monotonic() + pause,
            )
        )
        self._later(pause, waiting, lambda: self._load(msgspec.structs.replace(waiting, phase="Loading", not_before=0.0)))

    def _put(self, worker: WorkerState) -> WorkerState:
        self._workers[worker.uid] = worker
        return worker

    def _later(self, seconds: float, worker: WorkerState, change: Callable[[], object]) -> None:
        """After so many seconds make this change and look, if the worker is still in this state."""

        def pass_time() -> None:
            if self._workers.get(worker.uid) is worker:
                change()
                self._look()

        self._agenda.at(self._clock.monotonic() + seconds, pass_time)

    def _fate(self, namespace: str, name: str) -> Fate:
        return fate_of(self._scenario, self._name, f"{namespace}/{name}", self._loads.get(f"{namespace}/{name}", 0))


def _worker(spec: WorkerSpec, before: WorkerState | None) -> WorkerState:
    return WorkerState(
        uid=spec.uid,
        namespace=spec.namespace,
        name=spec.name,
        key=spec.key,
        phase="Loading",
        restarts=before.restarts if before else 0,
        last_exit=before.last_exit if before else None,
        memory_bytes=spec.memory_bytes,
        threads=spec.threads,
    )
