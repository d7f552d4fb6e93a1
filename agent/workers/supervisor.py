"""The supervisor: keeps exactly the workers that the loop asked for.

In: `ensure` and `stop` from `agent/loop.py`. Out: `states`, and `on_change` after every change of one. One task per worker starts it,
minds it (a worker that does not load in time, or whose runtime stops answering, is killed) and starts it again after an exit that
nobody asked for, with a back-off that grows and has jitter. What a worker is doing never depends on another one.

Ends with its own task: cancelling `run` kills every worker and waits until they are gone.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

import msgspec

from agent.failures.facts import model_not_unloaded
from agent.failures.modes import Failure
from agent.journal import Journals
from agent.workers.base import Backend, Exit, Listener, Phase, Worker, WorkerSpec, WorkerState
from rkfleet import metric_names as names
from rkfleet.clock import Clock, format_time
from rkfleet.errors import Unavailable
from rkfleet.kinds.board import Runtime
from rkfleet.kinds.replica import ExitReason, LastExit
from rkfleet.metrics import Metrics
from rkfleet.racing import until_first
from rkfleet.versions import version_order

__all__ = ["Limits", "Supervisor", "backoff_seconds"]

_log = logging.getLogger(__name__)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long the supervisor waits for what.

    Attributes:
        load_seconds: A worker that has not loaded by then is killed: 8 GiB from an SD card at 20 MB/s take seven minutes.
        hang_seconds: A loaded worker whose runtime has not answered for so long is killed. It answers between two batches of prefill;
            the slowest batch (an 8B model on four cores) takes ten seconds.
        stop_seconds: A worker that was asked to end and has not by then is killed.
        gone_seconds: A killed worker that is still there by then waits inside a driver, and its replica says so. Giving back 8 GB takes
            a second or two.
        backoff_seconds: Pause after the first exit; doubles with each further one. A kill from outside says nothing about the next start
            and begins anew.
        backoff_seconds_max: Longest pause: a minute, so that a repaired board is back within a minute.
        stable_seconds: A worker that was ready for so long starts again at the first pause.
    """

    load_seconds: float = 600.0
    hang_seconds: float = 60.0
    stop_seconds: float = 2.0
    gone_seconds: float = 10.0
    backoff_seconds: float = 0.5
    backoff_seconds_max: float = 60.0
    stable_seconds: float = 10.0


class _Slot:
    """One worker that is wanted or still there."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.wanted: WorkerSpec | None = spec
        self.changed: Final = asyncio.Event()  # set when `wanted` or the phase changed
        self.kept = False  # True once a task minds it
        self.spec = spec  # of the process that runs, or ran last
        self.phase: Phase = "Starting"
        self.listener: Listener | None = None
        self.pid = 0
        self.restarts = 0
        self.last_exit: LastExit | None = None
        self.failure: Failure | None = None  # of the last exit, or of a process that does not end
        self.not_before = 0.0
        self.beat_at = 0.0  # monotonic second at which the process last proved progress
        self.ready_at: float | None = None

    def wants(self, spec: WorkerSpec) -> bool:
        return self.wanted is not None and self.wanted.key == spec.key

    def state(self) -> WorkerState:
        running = self.phase in {"Loading", "Ready", "Stopping"}
        return WorkerState(
            uid=self.spec.uid,
            namespace=self.spec.namespace,
            name=self.spec.name,
            key=self.spec.key,
            phase=self.phase,
            endpoint=self.listener.endpoint if self.listener and self.phase == "Ready" else "",
            api_key=self.listener.api_key if self.listener and self.phase == "Ready" else "",
            restarts=self.restarts,
            last_exit=self.last_exit,
            not_before=self.not_before if self.phase == "BackOff" else 0.0,
            memory_bytes=self.spec.memory_bytes,
            threads=self.spec.threads if running else 0,
            pid=self.pid if running else 0,
            failure=self.failure,
            domain=self.spec.domain,
            ready_at=self.ready_at if self.phase == "Ready" else None,
        )


class Supervisor:
    """All workers of a board."""

    def __init__(
        self,
        backends: Sequence[Backend],
        *,
        clock: Clock,
        random: random.Random,
        metrics: Metrics,
        on_change: Callable[[], None],
        limits: Limits = Limits(),
        journals: Journals | None = None,
    ) -> None:
        """Take what workers are made of.

        Args:
            backends: How to start a worker of each runtime, and of each version of it.
            clock: Monotonic time for waits, wall time for exits.
            random: Jitter of the back-off.
            metrics: Where exits are counted.
            on_change: Called after every change of a state; must not block.
            limits: How long to wait for what.
            journals: Where lines of workers go; its own, which nobody reads, if none are given.
        """
        self._backends: Final[Mapping[tuple[str, str], Backend]] = {
            (backend.runtime.name, backend.runtime.version): backend for backend in backends
        }
        self._clock: Final = clock
        self._random: Final = random
        self._metrics: Final = metrics
        self._on_change: Final = on_change
        self._limits: Final = limits
        self._journals: Final = journals or Journals(clock)
        self._slots: Final[dict[str, _Slot]] = {}
        self._asked: Final = asyncio.Event()

    @property
    def runtimes(self) -> tuple[Runtime, ...]:
        """Return the runtimes that can be started here, as the board advertises them: by name, the newest version first."""
        newest_first = sorted(self._backends.values(), key=lambda one: version_order(one.runtime.version), reverse=True)
        return tuple(backend.runtime for backend in sorted(newest_first, key=lambda one: one.runtime.name))

    def ensure(self, spec: WorkerSpec) -> None:
        """Have this worker. With the key of the one that runs nothing is disturbed, with another key it is replaced."""
        slot = self._slots.get(spec.uid)
        if slot is None:
            self._slots[spec.uid] = _Slot(spec)
            self._asked.set()
            self._on_change()
        elif slot.wanted != spec:
            slot.wanted = spec
            slot.changed.set()

    def stop(self, uid: str) -> None:
        """Have no worker for this replica; requests that it still works on are cut. Its state stays until nothing of it is left."""
        slot = self._slots.get(uid)
        if slot is not None and slot.wanted is not None:
            slot.wanted = None
            slot.changed.set()

    def states(self) -> Mapping[str, WorkerState]:
        """Return the state of every worker that is wanted or still there, by replica uid."""
        return {uid: slot.state() for uid, slot in self._slots.items()}

    def retain_logs(self, uids: AbstractSet[str]) -> None:
        """Forget what workers of other replicas than these said."""
        self._journals.retain(uids)

    async def run(self) -> None:
        """Keep the workers until cancelled; then none is left."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                for uid, slot in self._slots.items():
                    if not slot.kept:
                        slot.kept = True
                        tasks.create_task(self._keep(uid, slot), name=f"worker of {slot.spec.namespace}/{slot.spec.name}")
                self._asked.clear()
                await self._asked.wait()

    async def _keep(self, uid: str, slot: _Slot) -> None:
        failures = 0
        while (spec := slot.wanted) is not None:
            slot.spec = spec
            exit = await self._run_once(slot, spec)
            if exit.reason is None:
                self._journals.say(uid, f"the worker ended: {exit.message}")
                continue
            stable = slot.ready_at is not None and self._clock.monotonic() - slot.ready_at >= self._limits.stable_seconds
            failures = 1 if stable or exit.reason == "Killed" else failures + 1
            slot.failure = exit.failure
            self._note_exit(slot, spec, exit.reason, exit.message)
            pause = backoff_seconds(failures, self._limits, self._random.random())
            self._journals.say(uid, f"the worker ended: {exit.reason}: {exit.message}; it starts again in {pause:.1f} s")
            await self._back_off(slot, spec, pause)
        del self._slots[uid]
        self._on_change()

    def _note_exit(self, slot: _Slot, spec: WorkerSpec, reason: ExitReason, message: str) -> None:
        slot.restarts += 1
        slot.last_exit = LastExit(reason=reason, message=message, time=format_time(self._clock.now()))
        self._metrics.counter(names.WORKER_EXITS, runtime=spec.runtime, reason=reason).inc()
        _log.warning("worker ended", extra={"replica": f"{spec.namespace}/{spec.name}", "reason": reason, "cause": message})

    async def _run_once(self, slot: _Slot, spec: WorkerSpec) -> Exit:
        """Start one process and mind it to its end."""
        slot.ready_at, slot.listener, slot.pid, slot.failure = None, None, 0, None
        self._enter(slot, "Starting")
        run = self._journals.begin_run(spec.uid)
        backend = self._backend(spec)
        if backend is None:
            what = f"{spec.runtime} {spec.library}".rstrip()
            return Exit(reason="LoadFailed", message=f"runtime {what} is not installed on this board")
        async with asyncio.TaskGroup() as tasks:
            began = slot.beat_at = self._clock.monotonic()
            threads = f"{spec.threads} thread{'s' if spec.threads != 1 else ''}"
            self._journals.say(spec.uid, f"run {run} starts: {spec.runtime} {backend.runtime.version}, {threads}, {spec.model_path}")
            try:
                worker = await backend.start(spec, tasks, lambda: self._beat(slot), lambda text: self._journals.write(spec.uid, text))
            except Unavailable as error:
                return Exit(reason="LoadFailed", message=error.message)
            slot.pid = worker.pid
            self._enter(slot, "Loading")
            minders = [tasks.create_task(self._await_load(slot, worker, began)), tasks.create_task(self._mind(slot, spec, worker))]
            exit = await worker.exited()
            for minder in minders:
                minder.cancel()
        return exit

    def _backend(self, spec: WorkerSpec) -> Backend | None:
        """Return what starts this version; of a spec that names none, the newest."""
        if spec.library:
            return self._backends.get((spec.runtime, spec.library))
        newest = next((one.version for one in self.runtimes if one.name == spec.runtime), "")
        return self._backends.get((spec.runtime, newest))

    async def _await_load(self, slot: _Slot, worker: Worker, began: float) -> None:
        listener = await worker.loaded()
        if listener is not None and slot.phase == "Loading":
            slot.listener = listener
            now = self._clock.monotonic()
            self._journals.say(slot.spec.uid, f"the model is loaded, after {now - began:.1f} s")
            slot.ready_at = slot.beat_at = now
            self._enter(slot, "Ready")
            slot.changed.set()

    async def _mind(self, slot: _Slot, spec: WorkerSpec, worker: Worker) -> None:
        """End a worker that is not wanted any more, does not load in time or hangs."""
        while slot.wants(spec):
            limit = self._limits.hang_seconds if slot.phase == "Ready" else self._limits.load_seconds
            left = slot.beat_at + limit - self._clock.monotonic()
            if left > 0:
                await self._wait(slot.changed, left)
            elif slot.phase == "Ready":
                worker.kill("Hung", f"the runtime did not answer for {limit:.0f} s")
                return await self._await_end(slot, spec, worker.pid)
            else:
                worker.kill("LoadFailed", f"the model was not loaded within {limit:.0f} s")
                return await self._await_end(slot, spec, worker.pid)
        self._enter(slot, "Stopping")
        worker.stop()
        await self._clock.sleep(self._limits.stop_seconds)
        worker.kill(None, f"killed, because it had not ended {self._limits.stop_seconds:.0f} s after it was asked to")
        return await self._await_end(slot, spec, worker.pid)

    async def _await_end(self, slot: _Slot, spec: WorkerSpec, pid: int) -> None:
        """Say so if a killed process is still there after a while: the kernel cannot end one that waits inside a driver."""
        self._enter(slot, "Stopping")
        await self._clock.sleep(self._limits.gone_seconds)
        slot.failure = model_not_unloaded(pid, spec.memory_bytes, self._limits.gone_seconds, killed=True)
        if slot.failure is not None:
            self._journals.say(spec.uid, slot.failure.message)
            self._on_change()

    async def _back_off(self, slot: _Slot, spec: WorkerSpec, seconds: float) -> None:
        slot.not_before = self._clock.monotonic() + seconds
        self._enter(slot, "BackOff")
        while slot.wants(spec) and (left := slot.not_before - self._clock.monotonic()) > 0:
            await self._wait(slot.changed, left)

    async def _wait(self, changed: asyncio.Event, seconds: float) -> None:
        """Return when `changed` was set or the time has passed; clears `changed`."""
        await until_first(changed.wait(), self._clock.sleep(seconds))
        changed.clear()

    def _beat(self, slot: _Slot) -> None:
        slot.beat_at = self._clock.monotonic()

    def _enter(self, slot: _Slot, phase: Phase) -> None:
        slot.phase = phase
        self._on_change()


def backoff_seconds(failures: int, limits: Limits, chance: float) -> float:
    """Return the pause before the next start after so many failures in a row, half of it jittered.

    Args:
        failures: Failures since the worker was last stable, at least 1.
        limits: First and longest pause.
        chance: From 0 to 1; workers that ended together should not start together.
    """
    doublings = min(failures - 1, 32)  # beyond that the longest pause holds anyhow, and the number stays small
    pause = min(limits.backoff_seconds_max, limits.backoff_seconds * (1 << doublings))
    return pause * (1 + chance) / 2
