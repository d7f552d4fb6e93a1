"""Controller and registry, started with their own commands, for benchmarks of the control plane; no gateway and no board.

In: a directory. Out: the running programs. A controller that dies is started again, as `rkfleet up` does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from rkfleet.cli.children import Children, Program
from rkfleet.client import ApiClient, load_cluster
from rkfleet.clock import Clock
from rkfleet.ports import Ports

__all__ = ["ControlPlane", "control_plane"]

HOST: Final = "127.0.0.1"
START_SECONDS_MAX: Final = 60.0


class ControlPlane:
    """A running controller and registry.

    Attributes:
        kubeconfig: The admin's.
        metrics_url: Of the controller.
    """

    def __init__(self, directory: Path, clock: Clock, program: str = "controller") -> None:
        self._directory: Final = directory
        self._module: Final = program
        self._clock: Final = clock
        ports = Ports(directory / "ports.json")
        self._port: Final = {name: ports.choose(name, 0) for name in ("api", "grpc", "registry", "controller-ops", "registry-ops")}
        self.kubeconfig: Final = directory / "kubeconfig"
        self.metrics_url: Final = f"http://{HOST}:{self._port['controller-ops']}/metrics"

    @property
    def controller_pid(self) -> int:
        """The controller's process id: another one after it was started again."""
        return int((self._directory / "run" / "controller.pid").read_text())

    def client(self) -> ApiClient:
        """Return an API client of the admin."""
        return ApiClient(load_cluster(self.kubeconfig), self._clock)

    def controller(self) -> Program:
        """Return the controller's command."""
        flags = (
            "--host", HOST, "--api-port", self._port["api"], "--grpc-port", self._port["grpc"], "--advertise-host", HOST,
            "--registry-url", f"https://{HOST}:{self._port['registry']}", "--kubeconfig-out", self.kubeconfig,
        )  # fmt: skip
        return self._program("controller", self._module, *flags)

    def registry(self) -> Program:
        """Return the registry's command."""
        realm = f"https://{HOST}:{self._port['api']}/registry/v1alpha1/token"
        flags = ("--pki-dir", self._directory / "controller" / "pki", "--host", HOST, "--port", self._port["registry"])
        return self._program("registry", "controller.registry", *flags, "--token-realm", realm)

    def _program(self, name: str, module: str, *flags: object) -> Program:
        ops = self._port[f"{name}-ops"]
        arguments = (sys.executable, "-m", module, "--data-dir", self._directory / name, "--ops-port", ops, *flags)
        return Program(name, tuple(str(argument) for argument in arguments), f"http://{HOST}:{ops}")


@contextlib.asynccontextmanager
async def control_plane(
    directory: Path, clock: Clock, say: Callable[[str], None], *, program: str = "controller"
) -> AsyncIterator[ControlPlane]:
    """Run both for as long as the block runs; `directory` exists, `program` is the module that is run as the controller."""
    plane = ControlPlane(directory, clock, program)
    async with asyncio.TaskGroup() as tasks:
        children = Children(directory, clock, tasks, say)
        try:
            children.start(plane.controller())
            await children.wait_ready("controller", seconds_max=START_SECONDS_MAX)
            children.start(plane.registry())
            await children.wait_ready("registry", seconds_max=START_SECONDS_MAX)
            yield plane
        finally:
            await children.stop()
