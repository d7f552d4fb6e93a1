"""An event loop whose time is virtual, and processes in it that can be stopped and killed as the kernel kills them.

In: coroutines. Out: the same order of steps for the same coroutines, always. When nothing can run, time jumps to the next timer; there are
no sockets, no signals and no threads: what asks for a thread is done inline, at a moment between asking and answering that the process's
own chance chooses.

A `Process` is a name in the context of every task and callback that it started. Killing one leaves its tasks where they stand: nothing of
it runs any more, no `finally`, no Goodbye, until the whole world is over and `dispose` cancels what is left. Stopping one does the same
until it goes on (SIGSTOP; a board too busy to run its agent).
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

START = datetime(2026, 1, 1, tzinfo=UTC)
TURN_SECONDS = 1e-6  # What a turn of the loop costs; time that stood still would be stiller than any real one.
STEPS_WITHOUT_REST_MAX = 200_000  # Callbacks without a moment in which nothing could run; more is a loop that wakes itself.
THREAD_SECONDS_MAX = 0.004  # From asking a thread to its start, and from its end to the answer; a board's disk, not a seek.


class Killed(BaseException):
    """Raised inside a call that a killed process was making; nothing of that process may catch it and go on."""


class Stuck(AssertionError):
    """Nothing can run and nothing is due, or something runs without end."""


class Process:
    """One program: what it started is stopped and killed with it.

    Attributes:
        ended: What is called, in order, when it is killed: the kernel closing its connections.
    """

    def __init__(self, name: str, loop: VirtualLoop, chance: random.Random) -> None:
        self.name = name
        self.alive = True
        self.chance = chance
        self.ended: list[Callable[[], None]] = []
        self.parked: list[asyncio.Handle] = []
        self.stopped = False
        self.resumed_at = 0.0
        self._loop = loop
        self._context = contextvars.Context()
        self._context.run(PROCESS.set, self)
        loop.processes.append(self)

    def spawn(
        self, work: Coroutine[Any, Any, Any], *, name: str = "", setting: tuple[contextvars.ContextVar[Any], Any] | None = None
    ) -> asyncio.Task[Any]:
        """Start a task of this process."""
        context = self._context.copy()
        if setting is not None:
            context.run(setting[0].set, setting[1])
        return self._loop.create_task(work, name=name or self.name, context=context)

    def run(self, call: Callable[..., Any], *args: Any) -> Any:
        """Make a call as this process."""
        return self._context.copy().run(call, *args)

    def kill(self) -> None:
        """End it here and now; its tasks never run again."""
        if self.alive:
            self.alive = False
            self._loop.graves.extend(asyncio.all_tasks(self._loop))  # Collecting a task would run its `finally`.
            for call in list(self.ended):
                call()

    def stop(self, seconds: float) -> None:
        """Let nothing of it run for so long."""
        if self.alive and not self.stopped:
            self.stopped = True
            self._loop.call_later(seconds, self._go_on, context=contextvars.Context())

    def _go_on(self) -> None:
        self.stopped = False
        self.resumed_at = self._loop.time()
        if self.alive:
            self._loop.resume(self.parked)
            self.parked = []


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class _Task(asyncio.Task):  # type: ignore[type-arg]
    """A task that sets keep in the order of its making, and not by where it lies in memory."""

    made = 0

    def __hash__(self) -> int:
        return self.serial

    def __init__(self, *args: Any, **keywords: Any) -> None:
        self.serial = keywords["loop"].next_serial()
        super().__init__(*args, **keywords)


class _Future(asyncio.Future):  # type: ignore[type-arg]
    def __hash__(self) -> int:
        return self.serial

    def __init__(self, *, loop: VirtualLoop) -> None:
        self.serial = loop.next_serial()
        super().__init__(loop=loop)


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module.

    Attributes:
        broken: An exception that ends the run at the next step; set it from anywhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ready: deque[asyncio.Handle] = deque()
        self._scheduled: list[asyncio.TimerHandle] = []
        self._now = 1000.0
        self._serial = 0
        self._steps = 0
        self.processes: list[Process] = []
        self.graves: list[asyncio.Task[Any]] = []
        self.broken: BaseException | None = None
        self.steps = 0
        self.disposing = False
        self.set_task_factory(lambda loop, work, **keywords: _Task(work, loop=loop, **keywords))
        self.set_exception_handler(self._unhandled)

    # What asyncio asks of a loop.

    def time(self) -> float:
        return self._now

    def next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(loop=self)

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, call: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        process = PROCESS.get()
        chance = process.chance if process else random.Random(0)
        answer = self.create_future()

        def work() -> None:
            if answer.cancelled():
                return
            try:
                result, error = call(*args), None
            except Killed:
                return
            except Exception as raised:  # noqa: BLE001 - handed to whoever waits
                result, error = None, raised
            self.call_later(chance.uniform(0.0, THREAD_SECONDS_MAX), finish, result, error)

        def finish(result: Any, error: Exception | None) -> None:
            if answer.cancelled():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)

        self.call_later(chance.uniform(0.0, THREAD_SECONDS_MAX), work)
        return answer

    def _write_to_self(self) -> None:
        pass

    def _process_events(self, event_list: Any) -> None:
        pass

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self.disposing:
            error = context.get("exception")
            self.broken = self.broken or AssertionError(f"unhandled: {context['message']}: {type(error).__name__}: {error}")

    def _run_once(self) -> None:
        timers, ready = self._scheduled, self._ready
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)._scheduled = False
        if not ready:
            if not timers:
                raise Stuck("nothing can run and nothing is due")
            if timers[0]._when > self._now:
                self._now = timers[0]._when
                self._steps = 0
        self._now += TURN_SECONDS
        while timers and timers[0]._when <= self._now:
            timer = heapq.heappop(timers)
            timer._scheduled = False
            if not timer._cancelled:
                ready.append(timer)
        count = len(ready)
        self._steps += count
        self.steps += count
        if self._steps > STEPS_WITHOUT_REST_MAX:
            raise Stuck(f"{self._steps} steps without a rest until {self._now}; one was {ready[0]!r}")
        for _ in range(count):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process: Process | None = handle._context.get(PROCESS)
            if process is not None and (not process.alive or process.stopped) and not self.disposing:
                process.parked.append(handle)
                continue
            handle._run()
            if self.broken is not None and not self.disposing:
                raise self.broken

    # What the world asks.

    def resume(self, handles: list[asyncio.Handle]) -> None:
        self._ready.extend(handles)

    def dispose(self) -> None:
        """Cancel everything that is left, of the dead too, and let it end; what it still says is of no interest."""
        self.disposing = True
        self._steps = 0
        for process in self.processes:
            self.resume(process.parked)
            process.parked = []
        for _ in range(20):
            tasks = [task for task in asyncio.all_tasks(self) if not task.done()]
            if not tasks:
                break
            for task in sorted(tasks, key=hash):
                task.cancel()
            self.run_until_complete(_wait(tasks))
        for task in [task for task in asyncio.all_tasks(self) if not task.done()]:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.close()


async def _wait(tasks: list[asyncio.Task[Any]]) -> None:
    await asyncio.wait(tasks, timeout=30.0)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()


class VirtualClock:
    """The loop's time; `offset_seconds` is how far this machine's wall clock is off."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.offset_seconds = 0.0

    def now(self) -> datetime:
        return START + timedelta(seconds=self._loop.time() + self.offset_seconds)

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)  # noqa: TID251 (the clock of this world)
