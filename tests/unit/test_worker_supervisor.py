"""The supervisor on a clock that stands still: what it starts, kills and starts again, and when."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from agent.journal import Journals
from agent.workers.base import Exit, Listener, WorkerSpec, WorkerState
from agent.workers.supervisor import Limits, Supervisor, backoff_seconds
from rkfleet.errors import Unavailable
from rkfleet.kinds.board import Runtime
from rkfleet.metrics import Metrics
from tests.support.clocks import ManualClock
from tests.support.serving import until

LIMITS = Limits(load_seconds=100, hang_seconds=60, stop_seconds=2, backoff_seconds=1, backoff_seconds_max=8, stable_seconds=10)


class ScriptedWorker:
    """Loads and exits when the test says so."""

    def __init__(self, pid: int, beat: Callable[[], None], log: Callable[[str], None], *, deaf: bool) -> None:
        self.pid = pid
        self.immortal = False
        self.beat = beat
        self.log = log
        self.deaf = deaf
        self.stopped = False
        self._loaded = asyncio.get_running_loop().create_future()
        self._exited = asyncio.get_running_loop().create_future()

    async def loaded(self) -> Listener | None:
        return await asyncio.shield(self._loaded)

    async def exited(self) -> Exit:
        return await asyncio.shield(self._exited)

    def load(self) -> None:
        self._loaded.set_result(Listener(endpoint=f"http://127.0.0.1:{self.pid}", api_key=f"key-{self.pid}"))

    def stop(self) -> None:
        self.stopped = True
        if not self.deaf:
            self.exit(None, "stopped")

    def kill(self, reason: str | None, message: str) -> None:
        if not self.immortal:
            self.exit(reason, message)

    def exit(self, reason: str | None, message: str = "") -> None:
        if not self._loaded.done():
            self._loaded.set_result(None)
        if not self._exited.done():
            self._exited.set_result(Exit(reason=reason, message=message))


class ScriptedBackend:
    def __init__(self) -> None:
        self.started: list[ScriptedWorker] = []
        self.specs: list[WorkerSpec] = []
        self.deaf = False
        self.broken = False

    @property
    def runtime(self) -> Runtime:
        return Runtime(name="llamacpp", version="1", backend="llamacpp")

    async def start(
        self, spec: WorkerSpec, tasks: asyncio.TaskGroup, beat: Callable[[], None], log: Callable[[str], None]
    ) -> ScriptedWorker:
        if self.broken:
            raise Unavailable("no more processes")
        self.specs.append(spec)
        self.started.append(ScriptedWorker(1000 + len(self.started), beat, log, deaf=self.deaf))
        return self.started[-1]


class Scene:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.backend = ScriptedBackend()
        self.journals = Journals(self.clock)
        self.supervisor = Supervisor(
            [self.backend], clock=self.clock, random=random.Random(0), metrics=Metrics("agent"), on_change=lambda: None, limits=LIMITS,
            journals=self.journals,
        )  # fmt: skip

    @property
    def state(self) -> WorkerState | None:
        return self.supervisor.states().get("u")

    async def phase(self, phase: str) -> WorkerState:
        await until(lambda: self.state is not None and self.state.phase == phase, seconds=5)
        assert self.state is not None
        return self.state

    async def starts(self, number: int) -> ScriptedWorker:
        await until(lambda: len(self.backend.started) == number, seconds=5)
        await self.phase("Loading")
        return self.backend.started[-1]

    async def ready(self, number: int) -> ScriptedWorker:
        worker = await self.starts(number)
        worker.load()
        await self.phase("Ready")
        return worker


@contextlib.asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(made.supervisor.run())
        yield made
        running.cancel()


def spec(**changes: object) -> WorkerSpec:
    made = WorkerSpec(uid="u", namespace="default", name="chat-0", key="k1", runtime="llamacpp", model_path="/m", memory_bytes=7)
    return msgspec.structs.replace(made, **changes)


def test_a_worker_is_loading_then_ready_and_shows_its_listener_only_then() -> None:
    async def scenario() -> None:
        async with scene() as s:
            s.supervisor.ensure(spec())
            worker = await s.starts(1)
            assert (s.state.endpoint, s.state.pid, s.state.memory_bytes) == ("", 1000, 7)
            worker.load()
            state = await s.phase("Ready")
            assert (state.endpoint, state.api_key, state.restarts, state.last_exit) == ("http://127.0.0.1:1000", "key-1000", 0, None)

    asyncio.run(scenario())


def test_the_same_key_disturbs_nothing_and_another_key_replaces_the_process() -> None:
    async def scenario() -> None:
        async with scene() as s:
            s.supervisor.ensure(spec())
            worker = await s.ready(1)
            s.supervisor.ensure(spec(threads=5))
            s.supervisor.ensure(spec(key="k2"))
            await s.ready(2)
            assert worker.stopped
            assert [one.key for one in s.backend.specs] == ["k1", "k2"]
            assert (s.state.restarts, s.state.last_exit) == (0, None)

    asyncio.run(scenario())


def test_a_worker_with_the_same_key_takes_the_newest_spec_at_its_next_start() -> None:
    async def scenario() -> None:
        async with scene() as s:
            s.supervisor.ensure(spec(threads=3))
            worker = await s.ready(1)
            s.supervisor.ensure(spec(threads=1))
            assert s.state.threads == 3
            worker.exit("Crashed", "signal SIGSEGV")
            await s.phase("BackOff")
            s.clock.advance(1)
            await s.ready(2)
            assert s.state.threads == 1

    asyncio.run(scenario())


def test_the_pause_grows_with_each_exit_and_starts_over_once_the_worker_was_stable() -> None:
    async def scenario() -> None:
        async with scene() as s:
            s.supervisor.ensure(spec())
            for number, (shortest, longest) in enumerate([(0.5, 1), (1, 2), (2, 4), (4, 8), (4, 8)], start=1):
                (await s.starts(number)).exit("Crashed", "signal SIGSEGV")
                state = await s.phase("BackOff")
                assert shortest <= state.not_before - s.clock.monotonic() <= longest
                assert (state.restarts, state.last_exit.reason, state.endpoint) == (number, "Crashed", "")
                s.clock.advance(state.not_before - s.clock.monotonic())
            worker = await s.ready(6)
            s.clock.advance(LIMITS.stable_seconds)
            worker.exit("Killed", "")
            state = await s.phase("BackOff")
            assert state.not_before - s.clock.monotonic() <= 1

    asyncio.run(scenario())


def test_kills_from_outside_do_not_lengthen_the_pause() -> None:
    async def scenario() -> None:
        async with scene() as s:
            s.supervisor.ensure(spec())
            for number in range(1, 6):
                (await s.starts(number)).exit("Killed", "")
                state = await s.phase("BackOff")
                assert state.not_before - s.clock.monotonic() <= LIMITS.backoff_seconds
                s.clock.advance(LIMITS.backoff_seconds)

    asyncio.run(scenario())


def test_a_worker_that_does_not_load_in_time_is_killed() -> None:
    async def scenario() -> None:
        async with scene() as s:
            s.supervisor.ensure(spec())
            await s.starts(1)
            await until(lambda: s.clock._sleepers, seconds=5)
            s.clock.advance(LIMITS.load_seconds)
            state = await s.phase("BackOff")
            assert (state.last_exit.reason, state.last_exit.message) == ("LoadFailed", "the model was not loaded within 100 s")

    asyncio.run(scenario())


def test_a_worker_is_hung_when_it_stops_beating_and_not_before() -> None:
    async def scenario() -> None:
        async with scene() as s:
            s.supervisor.ensure(spec())
            worker = await s.ready(1)
            for _ in range(3):
                await until(lambda: s.clock._sleepers, seconds=5)
                s.clock.advance(LIMITS.hang_seconds - 1)
                worker.beat()
            assert s.state.phase == "Ready"
            for _ in range(2):
                await until(lambda: s.clock._sleepers, seconds=5)
                s.clock.advance(LIMITS.hang_seconds)
            state = await s.phase("BackOff")
            assert (state.last_exit.reason, state.restarts) == ("Hung", 1)

    asyncio.run(scenario())


def test_a_stopped_worker_shows_stopping_until_it_is_gone_and_then_nothing() -> None:
    async def scenario() -> None:
        async with scene() as s:
            s.backend.deaf = True
            s.supervisor.ensure(spec())
            worker = await s.ready(1)
            s.supervisor.stop("u")
            state = await s.phase("Stopping")
            assert (worker.stopped, state.endpoint, state.pid) == (True, "", 1000)
            await until(lambda: s.clock._sleepers, seconds=5)
            s.clock.advance(LIMITS.stop_seconds)
            await until(lambda: s.state is None, seconds=5)

    asyncio.run(scenario())


def test_a_worker_that_not_even_a_kill_ends_is_shown_with_its_process() -> None:
    """It waits inside a driver and holds its memory; nobody sends it requests, and somebody is told."""

    async def scenario() -> None:
        async with scene() as s:
            s.supervisor.ensure(spec(memory_bytes=3 << 30))
            worker = await s.ready(1)
            worker.immortal = True
            s.clock.advance(LIMITS.hang_seconds)
            state = await s.phase("Stopping")
            assert (state.endpoint, state.failure) == ("", None)
            await until(lambda: s.clock._sleepers, seconds=5)
            s.clock.advance(LIMITS.gone_seconds)
            await until(lambda: s.state.failure is not None, seconds=5)
            assert "process 1000" in s.state.failure.message
            worker.exit("Hung")
            state = await s.phase("BackOff")
            assert (state.failure, state.last_exit.reason) == (None, "Hung")

    asyncio.run(scenario())


def test_a_worker_that_is_wanted_again_while_it_stops_is_started_again() -> None:
    async def scenario() -> None:
        async with scene() as s:
            s.supervisor.ensure(spec())
            await s.ready(1)
            s.supervisor.stop("u")
            s.supervisor.ensure(spec(key="k2"))
            await s.ready(2)
            assert (s.state.key, s.state.restarts) == ("k2", 0)

    asyncio.run(scenario())


def test_stop_ends_a_back_off_at_once() -> None:
    async def scenario() -> None:
        async with scene() as s:
            s.supervisor.ensure(spec())
            (await s.starts(1)).exit("Crashed", "")
            await s.phase("BackOff")
            s.supervisor.stop("u")
            await until(lambda: s.state is None, seconds=5)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("changes", "broken", "message"),
    [
        ({"runtime": "rkllm"}, False, "runtime rkllm is not installed on this board"),
        ({}, True, "no more processes"),
    ],
)
def test_a_worker_that_cannot_be_started_backs_off_with_a_sentence(changes: dict[str, str], broken: bool, message: str) -> None:
    async def scenario() -> None:
        async with scene() as s:
            s.backend.broken = broken
            s.supervisor.ensure(spec(**changes))
            state = await s.phase("BackOff")
            assert (state.last_exit.reason, state.last_exit.message, state.pid) == ("LoadFailed", message, 0)

    asyncio.run(scenario())


def test_one_failing_worker_does_not_touch_another() -> None:
    async def scenario() -> None:
        async with scene() as s:
            s.supervisor.ensure(spec())
            await s.ready(1)
            s.supervisor.ensure(spec(uid="v", name="chat-1"))
            await until(lambda: len(s.backend.started) == 2, seconds=5)
            s.backend.started[1].exit("OutOfMemory", "")
            await until(lambda: s.supervisor.states()["v"].phase == "BackOff", seconds=5)
            assert (s.state.phase, s.state.restarts) == ("Ready", 0)

    asyncio.run(scenario())


@pytest.mark.parametrize(("failures", "chance", "pause"), [(1, 0.0, 0.5), (1, 1.0, 1.0), (3, 1.0, 4.0), (4, 1.0, 8.0), (400, 0.0, 4.0)])
def test_back_off_doubles_to_its_limit_and_half_of_it_is_chance(failures: int, chance: float, pause: float) -> None:
    assert backoff_seconds(failures, LIMITS, chance) == pause


def test_the_journal_of_a_worker_tells_its_runs_with_what_it_printed_before_a_crash() -> None:
    """After a restart the words before the crash are still there, under the number of their run, until the replica leaves."""

    async def scenario() -> None:
        async with scene() as s:
            s.supervisor.ensure(spec(threads=2))
            worker = await s.ready(1)
            worker.log("something is odd")
            worker.exit("Crashed", "the worker crashed with SIGSEGV")
            await s.phase("BackOff")
            s.clock.advance(LIMITS.backoff_seconds)
            again = await s.ready(2)
            again.log("hello again")
            journal = s.journals.find("u")
            assert journal is not None
            before = [line.text for line in journal.read(run=-1).lines]
            assert before[:3] == [
                "rkfleet: run 1 starts: llamacpp 1, 2 threads, /m",
                "rkfleet: the model is loaded, after 0.0 s",
                "something is odd",
            ]
            assert before[3].startswith("rkfleet: the worker ended: Crashed: the worker crashed with SIGSEGV; it starts again in 0.")
            assert [line.text for line in journal.read().lines][-1] == "hello again"
            s.supervisor.stop("u")
            await until(lambda: s.state is None, seconds=5)
            assert journal.read().lines[-1].text == "rkfleet: the worker ended: stopped"
            s.supervisor.retain_logs(set())
            assert journal.read(after=journal.newest).ended

    asyncio.run(scenario())


def test_of_several_versions_the_one_that_is_asked_for_starts_and_without_a_word_the_newest() -> None:
    """A version that is not there is a failed load that names it."""

    class Versioned(ScriptedBackend):
        def __init__(self, version: str) -> None:
            super().__init__()
            self.version = version

        @property
        def runtime(self) -> Runtime:
            return Runtime(name="rkllm", version=self.version, backend="rkllm")

    async def scenario() -> None:
        old, new = Versioned("1.2.3"), Versioned("1.10.0")
        supervisor = Supervisor(
            [old, new], clock=ManualClock(), random=random.Random(0), metrics=Metrics("agent"), on_change=lambda: None, limits=LIMITS
        )
        assert [one.version for one in supervisor.runtimes] == ["1.10.0", "1.2.3"]
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(supervisor.run())
            for uid, library in (("a", "1.2.3"), ("b", ""), ("c", "1.4")):
                supervisor.ensure(spec(uid=uid, runtime="rkllm", library=library))
            await until(lambda: supervisor.states()["c"].phase == "BackOff" and old.specs and new.specs, seconds=5)
            assert ([one.uid for one in old.specs], [one.uid for one in new.specs]) == (["a"], ["b"])
            exit = supervisor.states()["c"].last_exit
            assert exit is not None
            assert exit.message == "runtime rkllm 1.4 is not installed on this board"
            running.cancel()

    asyncio.run(scenario())
