"""A whole fleet on one machine: what `rkfleet up` and `rkfleet demo` run.

Every program is a child of its own with the command line a person would type; boards and gateway join with one-time tokens,
certificate requests and mutual TLS as remote ones would. This process only chooses ports, starts, watches, restarts and stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import httpx2
import msgspec

from rkfleet.cli.children import Children, Program
from rkfleet.cli.ports import API_PORT, GATEWAY_PORT, REGISTRY_PORT, SESSION_PORT
from rkfleet.client import ApiClient, Cluster, load_cluster
from rkfleet.clock import Clock
from rkfleet.enrolment import JOIN_TOKENS_PATH
from rkfleet.errors import Invalid, NotFound, Unavailable
from rkfleet.ports import Ports
from rkfleet.process import lock_data_dir
from rkfleet.simulated import board_names, parse_boards

__all__ = ["HOST_OF_SIMULATED", "Endpoints", "FleetPlan", "LocalFleet", "local_fleet"]

HOST: Final = "127.0.0.1"
START_SECONDS_MAX: Final = 60.0  # Each program; a cold start takes two or three on a slow laptop.
START_SECONDS_PER_BOARD: Final = 1.0  # A simulated board enrols in a tenth of a second; a slow laptop needs more.
CPU_BOARDS_MAX: Final = 16
HOST_OF_SIMULATED: Final = "simulated-boards"  # Name of the host's log, its pid file and its metrics.


class FleetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What to start. A port of 0 means any free one.

    Attributes:
        data_dir: Where everything is kept; a second start with the same directory comes back to where it was.
        cpu_boards: Boards that run models on the CPU of this machine, named cpu-1 and so on.
        board_memory: Memory that each CPU board reports, a quantity; empty reports the machine's.
        simulated: Boards that do not exist, as `rk3588=3,rk3576=3`, all in one host process; named rk3588-1 and so on.
        load_speedup: How much faster than the assumed storage simulated boards load models.
    """

    data_dir: Path
    api_port: int = API_PORT
    grpc_port: int = SESSION_PORT
    registry_port: int = REGISTRY_PORT
    gateway_port: int = GATEWAY_PORT
    cpu_boards: int = 1
    board_memory: str = ""
    simulated: str = ""
    load_speedup: float = 1.0


class Endpoints(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything is, as written to `endpoints.json`.

    Attributes:
        gateway_api_key: Key that clients of the gateway send; None while it listens on loopback only.
        metrics: Prometheus URLs by program; that of `simulated-boards` has the figures of all its boards.
        ca_file: Certificate that signs every server of the fleet.
        boards: URL of each board's plain listener.
        simulated_boards: URL of the host of simulated boards, where each can be switched off and on; None without one.
    """

    api: str
    gateway: str
    gateway_api_key: str | None
    registry: str
    metrics: dict[str, str]
    ca_file: str
    kubeconfig: str
    boards: dict[str, str]
    simulated_boards: str | None = None


class LocalFleet:
    """A running fleet; made by `local_fleet`."""

    def __init__(self, plan: FleetPlan, clock: Clock, children: Children, endpoints: Endpoints) -> None:
        self.plan: Final = plan
        self.endpoints: Final = endpoints
        self.children: Final = children
        self._clock: Final = clock

    @property
    def cluster(self) -> Cluster:
        """The admin's way to the API."""
        return load_cluster(Path(self.endpoints.kubeconfig))

    def client(self) -> ApiClient:
        """Return an API client of the admin."""
        return ApiClient(self.cluster, self._clock)

    async def switch_board(self, http: httpx2.AsyncClient, name: str, *, on: bool) -> None:
        """Take the power of a simulated board away at once, and return when nothing of it runs any more; or let it boot from its disk.

        Raises:
            NotFound: There is no simulated board of this name.
            Unavailable: The host of the boards does not answer.
        """
        host = self.endpoints.simulated_boards
        if host is None or name not in board_names(parse_boards(self.plan.simulated)):
            raise NotFound(f"board {name!r} is not a simulated one of this fleet, which has {self.plan.simulated or 'none'}")
        try:
            answer = await http.post(f"{host}/boards/{name}/{'start' if on else 'stop'}")
        except httpx2.HTTPError as error:
            raise Unavailable(f"the host of simulated boards at {host} does not answer: {error!r}") from error
        if answer.status_code != 200:
            raise Unavailable(f"the host of simulated boards did not switch {name}: {answer.text.strip()}")


@contextlib.asynccontextmanager
async def local_fleet(plan: FleetPlan, clock: Clock, say: Callable[[str], None]) -> AsyncIterator[LocalFleet]:
    """Run a fleet for as long as the block runs; inside the block everything serves.

    Args:
        plan: What to start.
        clock: Time.
        say: Gets one sentence per step and per program that died.

    Raises:
        Invalid: The plan asks for what there is not.
        FailedPrecondition: The data directory or a port is taken.
        DeadlineExceeded: A program did not become ready; the message has its reason and the last line of its log.
    """
    if not 0 <= plan.cpu_boards <= CPU_BOARDS_MAX:
        raise Invalid(f"--cpu-boards: {plan.cpu_boards} must be an integer 0..{CPU_BOARDS_MAX}")
    parse_boards(plan.simulated)
    failure: Exception | None = None
    with lock_data_dir(plan.data_dir):
        async with asyncio.TaskGroup() as tasks:
            children = Children(plan.data_dir, clock, tasks, say)
            try:
                yield await _start(plan, clock, children, say)
            except Exception as error:  # noqa: BLE001 (kept out of the task group, which would wrap it, and raised below)
                failure = error
            finally:
                await children.stop()
    if failure is not None:
        raise failure


async def _start(plan: FleetPlan, clock: Clock, children: Children, say: Callable[[str], None]) -> LocalFleet:
    ports = Ports(plan.data_dir / "ports.json")
    wiring = _Wiring(plan, ports)
    ports.save()
    say("starting controller and registry")
    children.start(wiring.controller())
    await children.wait_ready("controller", seconds_max=START_SECONDS_MAX)
    children.start(wiring.registry())
    async with ApiClient(load_cluster(wiring.kubeconfig), clock) as client:
        say("joining gateway and boards")
        children.start(wiring.gateway(await _join(client, "gateway", wiring.gateway_dir)))
        for name in wiring.boards:
            children.start(wiring.agent(name, await _join(client, "board", wiring.agent_dir(name))))
    await children.wait_ready("registry", "gateway", *(f"agent-{name}" for name in wiring.boards), seconds_max=START_SECONDS_MAX)
    endpoints = wiring.endpoints()
    if count := len(board_names(parse_boards(plan.simulated))):
        say(f"joining {count} simulated boards")
        children.start(wiring.simulated_boards())
        await children.wait_ready(HOST_OF_SIMULATED, seconds_max=START_SECONDS_MAX + count * START_SECONDS_PER_BOARD)
        endpoints = await _with_simulated(endpoints, wiring.simulated_url)
    target = plan.data_dir / "endpoints.json"
    part = target.with_suffix(".part")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(endpoints)) + b"\n")
    part.replace(target)
    return LocalFleet(plan, clock, children, endpoints)


async def _with_simulated(endpoints: Endpoints, url: str) -> Endpoints:
    """Return the endpoints with those of the simulated boards, as their host tells them."""
    async with httpx2.AsyncClient(trust_env=False, timeout=START_SECONDS_MAX) as http:
        boards = (await http.get(f"{url}/boards")).raise_for_status().json()["boards"]
    return msgspec.structs.replace(
        endpoints,
        boards={**endpoints.boards, **{board["name"]: board["opsUrl"] for board in boards}},
        metrics={
            **endpoints.metrics,
            HOST_OF_SIMULATED: f"{url}/metrics",
            **{f"agent-{board['name']}": f"{board['opsUrl']}/metrics" for board in boards},
        },
        simulated_boards=url,
    )


async def _join(client: ApiClient, role: str, directory: Path) -> tuple[str, ...]:
    """Return the flags with a one-time token for a program that has no identity yet."""
    if (directory / "identity" / "identity.json").exists():
        return ()
    answer: Any = await client.request("POST", JOIN_TOKENS_PATH, body={"role": role})
    return ("--token", answer["token"], "--ca-pin", answer["caPin"])


class _Wiring:
    """Ports and command lines of every program."""

    def __init__(self, plan: FleetPlan, ports: Ports) -> None:
        self._plan: Final = plan
        self._dir: Final = plan.data_dir.absolute()
        self._memory: Final = ("--memory", plan.board_memory) if plan.board_memory else ()
        self.kubeconfig: Final = self._dir / "kubeconfig"
        self.gateway_dir: Final = self._dir / "gateway"
        self.boards: Final = tuple(f"cpu-{number}" for number in range(1, plan.cpu_boards + 1))
        wanted = {
            "api": plan.api_port, "grpc": plan.grpc_port, "registry": plan.registry_port, "gateway": plan.gateway_port,
            "controller-ops": 0, "registry-ops": 0, "gateway-ops": 0, f"{HOST_OF_SIMULATED}-ops": 0,
        } | {f"agent-{board}{part}": 0 for board in self.boards for part in ("", "-ops")}  # fmt: skip
        self._port: Final = {name: ports.choose(name, port) for name, port in wanted.items()}

    def agent_dir(self, name: str) -> Path:
        return self._dir / "agents" / name

    def _url(self, name: str, scheme: str = "https") -> str:
        return f"{scheme}://{HOST}:{self._port[name]}"

    def _program(self, name: str, module: str, directory: Path, *flags: object) -> Program:
        arguments = [sys.executable, "-m", module, "--data-dir", directory, "--ops-port", self._port[f"{name}-ops"], *flags]
        return Program(name, tuple(str(argument) for argument in arguments), self._url(f"{name}-ops", "http"))

    def controller(self) -> Program:
        flags = (
            "--host", HOST, "--api-port", self._port["api"], "--grpc-port", self._port["grpc"], "--advertise-host", HOST,
            "--registry-url", self._url("registry"), "--kubeconfig-out", self.kubeconfig,
        )  # fmt: skip
        return self._program("controller", "controller", self._dir / "controller", *flags)

    def registry(self) -> Program:
        realm = f"{self._url('api')}/registry/v1alpha1/token"
        flags = ("--pki-dir", self._dir / "controller" / "pki", "--host", HOST, "--port", self._port["registry"], "--token-realm", realm)
        return self._program("registry", "controller.registry", self._dir / "registry", *flags)

    def gateway(self, join: tuple[str, ...]) -> Program:
        flags = ("--controller", self._url("api"), "--host", HOST, "--port", self._port["gateway"], *join)
        return self._program("gateway", "gateway", self.gateway_dir, *flags)

    def agent(self, name: str, join: tuple[str, ...]) -> Program:
        flags = (
            "--controller", self._url("api"), "--name", name, "--serving-host", HOST,
            "--serving-port", self._port[f"agent-{name}"], *self._memory, *join,
        )  # fmt: skip
        return self._program(f"agent-{name}", "agent", self.agent_dir(name), *flags)

    @property
    def simulated_url(self) -> str:
        return self._url(f"{HOST_OF_SIMULATED}-ops", "http")

    def simulated_boards(self) -> Program:
        flags = (
            "--boards",
            self._plan.simulated,
            "--kubeconfig",
            self.kubeconfig,
            "--load-speedup",
            self._plan.load_speedup,
        )
        return self._program(HOST_OF_SIMULATED, "simulation.boards", self._dir / "agents", *flags)

    def endpoints(self) -> Endpoints:
        programs = ("controller", "registry", "gateway", *(f"agent-{board}" for board in self.boards))
        return Endpoints(
            api=self._url("api"),
            gateway=self._url("gateway", "http"),
            gateway_api_key=None,
            registry=self._url("registry"),
            metrics={program: f"{self._url(f'{program}-ops', 'http')}/metrics" for program in programs},
            ca_file=str(self._dir / "controller" / "pki" / "servers-ca.crt"),
            kubeconfig=str(self.kubeconfig),
            boards={board: self._url(f"agent-{board}-ops", "http") for board in self.boards},
        )
