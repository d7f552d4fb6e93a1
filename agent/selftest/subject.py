"""The model under test: loaded in a worker process of its own by the backend that the agent ships, with its log at hand.

In: a `Setup`. Out: a `Subject` for as long as its block runs, or the `Exit` of a worker that did not load. Called by `running.py`,
`neighbours.py` and by tests. Everything that a check knows of the model comes from here: what its library prints about it, what its
generation can do, and what other checks have learned of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncIterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

import msgspec

from agent.selftest.asking import Asker
from agent.selftest.values import LINES_MAX, Limits
from agent.workers.base import Backend, Exit, Listener, Worker, WorkerSpec
from agent.workers.libraries import Library
from agent.workers.pipe import Adapter, NpuLoad
from agent.workers.rkllm.library import SUPPORTS
from rkfleet.clock import Clock
from rkfleet.errors import Unavailable

__all__ = ["ADAPTER", "Header", "Log", "NotLoaded", "Setup", "Subject", "Traits", "loaded", "parse_header", "peak_memory_bytes", "size_of"]

CONTEXT_TOKENS: Final = 512  # The longer protocol needs 320; a larger window costs memory and makes long prompts slow.
OUTPUT_TOKENS_MAX: Final = 320
CACHE_BYTES: Final = 1 << 30  # States of a few prompts of 512 tokens: some 30 MB each for 1.5B parameters.
ADAPTER: Final = "self-test"  # The name that requests choose the adapter by.

ANSWER_SECONDS: Final = 10.0  # Of one answer where a check has several: three of them fit into the limit of a check.
AFFORDED_TOKENS_MIN: Final = 8

QUIET_SECONDS: Final = 0.1  # A line that is in the pipe is read within one turn of the loop.
SETTLE_SECONDS_MAX: Final = 1.0  # A worker may print without end.
LOG_LINES_KEPT: Final = 2000  # With the longest checks some hundred lines are written; token lines of a simulation come on top.

_BANNER: Final = re.compile(r"rkllm-runtime version: ([^,]+), rknpu driver version: ([^,]+), platform: (\S+)")
_TOOLKIT: Final = re.compile(
    r"rkllm-toolkit version: ([^,]+), max_context_limit: (\d+), npu_core_num: (\d+), target_platform: ([^,\s]+)(?:, model_dtype: (\S+))?"
)
SETTLE_SECONDS: Final = 2.0  # Of a line through a pipe; milliseconds, unless the machine is busy.
_INIT_TOOK: Final = re.compile(r"I rkfleet: rkllm_init took")  # What the worker prints behind the library's lines.
_SIMULATED: Final = "this runtime is a simulation"


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What the library printed while it loaded; empty and 0 are what it did not say (before 1.2 it says little).

    Attributes:
        toolkit: Release that converted the model.
        context_limit: Largest context that the model was converted for.
        simulated: The library says that there is no NPU and no model behind it.
    """

    runtime: str = ""
    driver: str = ""
    platform: str = ""
    toolkit: str = ""
    context_limit: int = 0
    npu_cores: int = 0
    target: str = ""
    dtype: str = ""
    simulated: bool = False


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What to load, and how.

    Attributes:
        domain: First IOMMU domain of the NPU.
        context_tokens: Of the window.
        keep_tokens: With `shift`: tokens that stay when the oldest are forgotten.
        lock_path: File whose lock the worker holds while it uses the NPU.
        cache_dir: For saved prompts; empty for none.
    """

    model: Path
    library: Library
    lock_path: Path
    cache_dir: str = ""
    adapter: Path | None = None
    encoder: Path | None = None
    config: Path | None = None
    template: Path | None = None
    domain: int = 0
    context_tokens: int = CONTEXT_TOKENS
    shift: bool = False
    keep_tokens: int = 0

    @property
    def plain(self) -> Setup:
        """Return the same model without the files that go with it."""
        return msgspec.structs.replace(self, adapter=None, encoder=None, config=None, template=None)

    @property
    def extras(self) -> tuple[str, ...]:
        """Return the roles of files that go with the model."""
        return tuple(role for role in ("adapter", "encoder", "template") if getattr(self, role) is not None)

    def spec(self) -> WorkerSpec:
        """Return it as the agent would ask its backend for it."""
        library = self.library
        npu = NpuLoad(
            library=str(library.path.absolute()),
            generation=library.generation,
            library_version=library.version,
            lock_path=str(self.lock_path),
            base_domain=self.domain,
            shift=self.shift,
            keep_tokens=self.keep_tokens,
            adapters=(Adapter(name=ADAPTER, path=str(self.adapter.absolute())),) if self.adapter is not None else (),
            encoder_path=str(self.encoder.absolute()) if self.encoder is not None else "",
            template_path=str(self.template.absolute()) if self.template is not None else "",
            config_path=str(self.config.absolute()) if self.config is not None else "",
            cache_dir=self.cache_dir,
            cache_bytes=CACHE_BYTES if self.cache_dir else 0,
        )
        return WorkerSpec(
            uid=f"self-test-{self.domain}",
            namespace="self-test",
            name=self.model.stem,
            key="self-test",
            runtime="rkllm",
            model_path=str(self.model.absolute()),
            context_tokens=self.context_tokens,
            library=library.version,
            max_output_tokens=OUTPUT_TOKENS_MAX,
            npu=npu,
            shift=self.shift,
            keep_tokens=self.keep_tokens,
        )


class Line(msgspec.Struct, frozen=True, gc=False):
    """A line of the worker's log, and the monotonic second at which it came."""

    seconds: float
    text: str


class Log:
    """What a worker writes: the first lines, in which a library says what it is, and the last ones."""

    def __init__(self, clock: Clock) -> None:
        self._clock: Final = clock
        self._lines: Final[deque[Line]] = deque(maxlen=LOG_LINES_KEPT)
        self._more: Final = asyncio.Event()
        self.first: Final[list[str]] = []
        self.count = 0  # lines that have come

    def add(self, text: str) -> None:
        """Take a line in."""
        self.count += 1
        if len(self.first) < LOG_LINES_KEPT:
            self.first.append(text)
        self._lines.append(Line(self._clock.monotonic(), text))
        self._more.set()

    def last(self, count: int = LINES_MAX, *, since: int = 0) -> tuple[str, ...]:
        """Return the last lines, of those that came after the first `since`."""
        fresh = min(count, self.count - since)
        return tuple(line.text for line in self._lines)[-fresh:] if fresh > 0 else ()

    async def settle(self) -> None:
        """Wait until no line comes any more: an answer and the lines printed before it arrive on two ways, in either order."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS_MAX):
                while True:
                    self._more.clear()
                    async with asyncio.timeout(QUIET_SECONDS):
                        await self._more.wait()

    async def find(self, pattern: re.Pattern[str]) -> tuple[Line, re.Match[str]]:
        """Wait for a line that matches; one that was written already counts. The caller limits the wait."""
        while True:
            self._more.clear()
            for line in self._lines:
                if found := pattern.search(line.text):
                    return line, found
            await self._more.wait()


class Traits:
    """What checks learn of a model for those that come after them; 0 is unknown.

    Attributes:
        width: Numbers of one token's embedding.
        bytes_per_token: Of plain English.
        decode_tokens_per_second: As far as measured.
    """

    def __init__(self) -> None:
        self.width = 0
        self.bytes_per_token = 4.0
        self.decode_tokens_per_second = 0.0


class Subject:
    """A loaded model."""

    def __init__(
        self,
        setup: Setup,
        worker: Worker,
        listener: Listener,
        log: Log,
        *,
        clock: Clock,
        limits: Limits,
        load_seconds: float,
        secret: str,
        traits: Traits,
    ) -> None:
        self.setup: Final = setup
        self.worker: Final = worker
        self.log: Final = log
        self.clock: Final = clock
        self.limits: Final = limits
        self.load_seconds: Final = load_seconds
        self.secret: Final = secret  # A word that no model says by itself.
        self.traits: Final = traits
        self.header: Final = parse_header(log.first)
        self.supports: Final[AbstractSet[str]] = SUPPORTS[setup.library.generation]
        self.asker: Final = Asker(listener, clock)
        self.exit: Exit | None = None  # how it ended, once it has

    async def follow(self) -> None:
        """Wait for the worker's end and note it."""
        self.exit = await self.worker.exited()

    @property
    def generation(self) -> str:
        """Return the library's generation."""
        return self.setup.library.generation

    @property
    def chats(self) -> bool:
        """Return whether messages can be asked: the runtime or the artifact has a template."""
        return self.setup.template is not None or "built_in_chat_template" in self.supports

    @property
    def plainly(self) -> Mapping[str, object]:
        """Return the fields of a request that keep a thinking model from thinking, where the runtime can be told."""
        return {"think": False} if "enable_thinking" in self.supports or self.setup.template is not None else {}

    def affordable(self, tokens: int, seconds: float = ANSWER_SECONDS) -> int:
        """Return how many tokens of an answer fit into a time, at most `tokens`; a slow model is asked for fewer."""
        rate = self.traits.decode_tokens_per_second
        return max(AFFORDED_TOKENS_MIN, min(tokens, int(rate * seconds))) if rate > 0 else tokens

    def text_of(self, tokens: int) -> str:
        """Return plain words of about this many tokens."""
        return passage(round(tokens * self.traits.bytes_per_token))


class NotLoaded(Unavailable):
    """The worker ended, or took too long, before its model was loaded; `exit` says how."""

    def __init__(self, exit: Exit, log: Log) -> None:
        super().__init__(exit.message)
        self.exit: Final = exit
        self.log: Final = log


@contextlib.asynccontextmanager
async def loaded(
    setup: Setup,
    backend: Backend,
    tasks: asyncio.TaskGroup,
    *,
    clock: Clock,
    limits: Limits,
    seconds_max: float,
    secret: str,
    traits: Traits | None = None,
) -> AsyncIterator[Subject]:
    """Load a model for the block; its process is killed afterwards, and gone unless it waits inside a driver.

    Args:
        setup: What to load.
        backend: Starts the worker.
        tasks: Where the worker's own tasks live; one that waits inside a driver is not waited for here.
        clock: For durations.
        limits: For the checks.
        seconds_max: For loading.
        secret: A word for `Subject.secret`.
        traits: What an earlier worker of the same model has taught.

    Raises:
        NotLoaded: The model is not loaded.
        Unavailable: No process could be started.
    """
    log = Log(clock)
    began = clock.monotonic()
    worker = await backend.start(setup.spec(), tasks, lambda: None, log.add)
    try:
        listener = await _listener(worker, seconds_max)
        if listener is None:
            raise NotLoaded(await _exit_of(worker, limits), log)
        await _settled(log)
        subject = Subject(
            setup, worker, listener, log,
            clock=clock, limits=limits, load_seconds=clock.monotonic() - began, secret=secret, traits=traits or Traits(),
        )  # fmt: skip
        tasks.create_task(subject.follow())
        yield subject
    finally:
        worker.kill(None, "the self-test is over")
        await _exit_of(worker, limits)


async def _exit_of(worker: Worker, limits: Limits) -> Exit:
    """Return how a worker ended that was told to end, or that it did not."""
    try:
        async with asyncio.timeout(limits.unload):
            return await worker.exited()
    except TimeoutError:
        return Exit(reason="Hung", message=f"process {worker.pid} waits inside a driver and cannot be ended")


async def _settled(log: Log) -> None:
    """Wait until what the library printed while it loaded has been read: it comes another way than the word that it is loaded."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_SECONDS):
            await log.find(_INIT_TOOK)


async def _listener(worker: Worker, seconds_max: float) -> Listener | None:
    try:
        async with asyncio.timeout(seconds_max):
            return await worker.loaded()
    except TimeoutError:
        worker.kill("LoadFailed", f"the model did not load within {seconds_max:.0f} s")
        return None


def parse_header(lines: list[str]) -> Header:
    """Return what a library says about itself and its model."""
    text = "\n".join(lines)
    banner, toolkit = _BANNER.search(text), _TOOLKIT.search(text)
    return Header(
        runtime=banner[1] if banner else "",
        driver=banner[2] if banner else "",
        platform=banner[3] if banner else "",
        toolkit=toolkit[1] if toolkit else "",
        context_limit=int(toolkit[2]) if toolkit else 0,
        npu_cores=int(toolkit[3]) if toolkit else 0,
        target=toolkit[4] if toolkit else "",
        dtype=(toolkit[5] or "") if toolkit else "",
        simulated=_SIMULATED in text,
    )


def peak_memory_bytes(pid: int, proc: Path = Path("/proc")) -> int | None:
    """Return the most memory that a process has had, or None; memory of the NPU counts in it.

    Source: proc(5), VmHWM; https://github.com/airockchip/rknn-llm/issues/139 for the NPU's.
    """
    try:
        lines = (proc / str(pid) / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), None)


def size_of(path: Path) -> int:
    """Return the bytes of a file; 0 if it is none."""
    return path.stat().st_size if path.is_file() else 0


_PASSAGE: Final = (
    "The river comes down from the hills in the north and turns twice before it meets the old road . On the left bank there is a mill "
    "that has not turned for thirty years , and behind it a field of rye where people from the village walk in the evening . In spring "
    "the water stands high and brings branches and sand , in autumn it is low and clear and one can see the stones . "
)


def passage(size: int) -> str:
    """Return about this many bytes of plain English, whole words."""
    text = (_PASSAGE * (size // len(_PASSAGE) + 1))[: max(1, size)]
    return text.rpartition(" ")[0] or text
