"""What makes a board the board that it is: its machine, runtimes and identity, or the files that it serves alone.

In: the configuration. Out: `Parts`, from which `agent/app.py` wires an agent. A board that does not exist (`simulation/boards`) and one
without a fleet (`agent/standalone`) bring parts of their own; this file makes those of the machine that it runs on.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import msgspec

from agent.board import clock_wire
from agent.board.clock_control import ClockControl
from agent.board.facts import Overrides
from agent.board.kernel_log import follow_kernel_log
from agent.board.npu import observe_driver
from agent.board.sensors import MachineSensors, Sensors
from agent.board.telemetry import Telemetry
from agent.config import Config
from agent.fetching import Fetches, Grants, Whole
from agent.ledger import Ledger
from agent.loop import Watch
from agent.metrics import AgentMetrics
from agent.planning.values import InstalledLibrary
from agent.watch import BoardWatch
from agent.workers import backends
from agent.workers.base import Backend
from agent.workers.libraries import Library, find_libraries
from rkfleet.benchmarks import Table
from rkfleet.clock import Clock
from rkfleet.identity import Enrolment, Identity, ensure_identity
from rkfleet.kinds.board import Runtime
from rkfleet.renewal import Renew, renew_in_child

__all__ = ["Local", "LocalArtifacts", "Parts", "installed_libraries", "machine_parts", "npu_lock"]

RUN_DIRECTORY: Final = "run/rkfleet"
LOCK_DIRECTORY: Final = "run/lock"

_log = logging.getLogger(__name__)


class LocalArtifacts(Whole, Grants, Fetches, Protocol):
    """Artifacts that nobody sends: how the loop of a board without a fleet gets its bytes."""


class Local(Protocol):
    """What a board without a fleet runs, and from which files."""

    @property
    def files(self) -> LocalArtifacts:
        """Return the files."""
        ...

    async def assign(self, ledger: Ledger) -> None:
        """Have the ledger say what is to run.

        Raises:
            FleetError: It cannot.
        """
        ...

    async def keep(self, ledger: Ledger) -> None:
        """Assign anew whenever that has changed, until cancelled."""
        ...


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a board the board that it is.

    Attributes:
        backends: What can be started on it.
        sensors: The machine.
        identity: Waits until the board has an identity, enrolling if need be, and returns it. Not asked for where there is `local`.
        local: What it runs without a fleet; None for a board of a fleet.
        renew: Renews the certificates of that identity.
        tables: The benchmark table behind each runtime that is simulated, by the runtime's name.
        simulated: Whether the hardware does not exist; said with every answer and figure.
        libraries: Libraries of the NPU's runtime that can be used, the newest first.
        library_problems: Sentences about those that cannot.
        watch: Makes who looks after the hardware, given the gauges and what to call when a condition has changed; None for nobody.
    """

    backends: tuple[Backend, ...]
    sensors: Sensors
    identity: Callable[[], Awaitable[Identity]]
    local: Local | None = None
    renew: Renew = renew_in_child
    tables: Mapping[str, Table] = {}
    simulated: bool = False
    libraries: tuple[Library, ...] = ()
    library_problems: tuple[str, ...] = ()
    watch: Callable[[AgentMetrics, Callable[[], None]], Watch] | None = None

    @property
    def simulated_runtimes(self) -> frozenset[str]:
        """Names of the runtimes of which a simulated library or backend stands behind any version."""
        return frozenset(one.runtime.name for one in self.backends if one.runtime.backend == "simulated")


def machine_parts(config: Config, clock: Clock, jitter: random.Random) -> Parts:
    """Return the parts of a board that is the machine this runs on."""
    cpu = backends.llamacpp(new_api_key=_new_api_key)
    libraries = find_libraries(config.runtime_libraries, config.filesystem_root)
    for problem in libraries.problems:
        _log.warning("a runtime library is not used", extra={"cause": problem})
    for one in libraries.usable:
        about = {"file": str(one.path), "version": one.version or "unknown", "generation": one.generation, "how": one.how}
        _log.info("runtime library", extra=about)
    follow_kernel = partial(follow_kernel_log, config.filesystem_root)
    npu = tuple(backends.rkllm(one, new_api_key=_new_api_key, follow_kernel=follow_kernel) for one in libraries.usable)
    installed = (*((cpu,) if cpu is not None else ()), *npu)
    overrides = Overrides(memory_bytes=config.memory_bytes, artifact_limit_bytes=config.artifact_limit_bytes)
    runtimes = tuple(sorted((backend.runtime for backend in installed), key=lambda runtime: runtime.name))
    sensors = MachineSensors(config.filesystem_root, config.data_dir, overrides, runtimes)

    async def identity() -> Identity:
        enrolment = Enrolment(
            role="board",
            name=config.name,
            controller=config.controller,
            token=config.token,
            ca_pin=config.ca_pin,
            machine_id=sensors.machine_id(),
        )
        given = enrolment if config.token or config.token_file else None
        return await ensure_identity(config.data_dir / "identity", given, clock, jitter, config.token_file)

    def watch(metrics: AgentMetrics, on_change: Callable[[], None]) -> Watch:
        control = ClockControl(config.filesystem_root, config.data_dir / clock_wire.RECORD_NAME, config.clocks_helper)
        telemetry = Telemetry(config.filesystem_root, agent_pid=os.getpid())
        # A board without the library has no such runtime, and placement says so; one that has it and cannot use it has a problem.
        problem = libraries.problems[0] if libraries.problems and not libraries.usable else ""
        return BoardWatch(
            telemetry,
            control,
            clock=clock,
            metrics=metrics,
            on_change=on_change,
            runtime_problem=lambda: problem,
            look_seconds=config.look_seconds,
        )

    return Parts(
        backends=installed,
        sensors=sensors,
        identity=identity,
        libraries=libraries.usable,
        library_problems=libraries.problems,
        watch=watch,
    )


def _new_api_key() -> str:
    return secrets.token_urlsafe(24)


def installed_libraries(runtimes: Iterable[Runtime], libraries: Iterable[Library]) -> dict[str, tuple[InstalledLibrary, ...]]:
    """Return what is installed of each runtime, by the runtime's name, with the file behind it where there is one."""
    files = {("rkllm", one.version): one for one in libraries}
    found: dict[str, tuple[InstalledLibrary, ...]] = {}
    for runtime in runtimes:
        file = files.get((runtime.name, runtime.version))
        path, generation = (str(file.path.absolute()), file.generation) if file is not None else ("", "")
        one = InstalledLibrary(version=runtime.version, path=path, generation=generation)
        found[runtime.name] = (*found.get(runtime.name, ()), one)
    return found


def npu_lock(config: Config) -> Path:
    """Return the file whose lock a worker holds while it uses the NPU, the same for every agent of a machine that can be.

    The unit that starts the agent makes a directory for it. Whoever starts one by hand has the machine's place for locks, where everybody
    may write; without an NPU, with simulated libraries, there is nothing to share. Source: section /run/lock of the Filesystem Hierarchy
    Standard 3.0.
    """
    root = config.filesystem_root
    driver = observe_driver(root)
    for place, name in ((RUN_DIRECTORY, "npu.lock"), (LOCK_DIRECTORY, "rkfleet-npu.lock")):
        shares = place == RUN_DIRECTORY or driver is None or driver.family
        if shares and os.access(root / place, os.W_OK | os.X_OK):
            return root / place / name
    return config.data_dir.absolute() / "npu.lock"
