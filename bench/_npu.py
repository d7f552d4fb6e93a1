"""A local fleet of boards with an NPU that exists only as files, for benchmarks of the NPU's runtime.

In: a directory, how many boards of each chip, a release of the runtime. Out: a running fleet: controller, registry, gateway, and for each
board an agent process started with its own command. `--filesystem-root` shows it a machine of that chip, `--runtime-library` the simulated
runtime of that release (`simulation/runtime`), which its worker processes load as they would the vendor's. Nothing else is simulated. The
leading underscore keeps it out of `make bench`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from rkfleet.cli.children import Program
from rkfleet.cli.fleet import FleetPlan, LocalFleet, local_fleet
from rkfleet.cli.push import Order, push
from rkfleet.cli.rollout import follow_rollout
from rkfleet.cli.variants import VariantWords
from rkfleet.client import ApiClient
from rkfleet.clock import Clock
from rkfleet.enrolment import JOIN_TOKENS_PATH
from rkfleet.kinds import Board, ModelDeployment, Replica
from rkfleet.meta import Ref
from rkfleet.ports import Ports
from rkfleet.simulated import board_names
from simulation.runtime.build import build, generation_of

__all__ = ["NpuBoard", "NpuFleet", "npu_fleet", "say"]

HOST: Final = "127.0.0.1"
NAMESPACE: Final = "default"
BOARD_LABEL: Final = "bench.rkfleet.dev/board"  # A deployment chooses its board by it.
START_SECONDS_MAX: Final = 120.0  # Of all agents together, which start at the same time on a few cores.
ROLLOUT_SECONDS_MAX: Final = 120.0
REMOVAL_SECONDS_MAX: Final = 60.0
LOOK_SECONDS: Final = 0.2


class NpuBoard(msgspec.Struct, frozen=True):
    """A board, and the URL of its agent's listener for local clients."""

    name: str
    soc: str
    url: str


class NpuFleet:
    """The running fleet; made by `npu_fleet`."""

    def __init__(self, local: LocalFleet, api: ApiClient, boards: tuple[NpuBoard, ...], clock: Clock) -> None:
        self.boards: Final = boards
        self.gateway: Final = local.endpoints.gateway
        self._api: Final = api
        self._clock: Final = clock

    async def push(self, name: str, file: Path, words: VariantWords) -> None:
        """Push a model of one variant."""
        await push(Order(name=name, files=(file,), variants=(words,)), self._api, self._clock, lambda *_step: None)

    @contextlib.asynccontextmanager
    async def serving(self, model: str, board: NpuBoard, **serving: Any) -> AsyncIterator[str]:
        """Serve a model on one board while the block runs; yields the name that clients ask for. Afterwards the board is empty again."""
        name = re.sub(r"[^a-z0-9-]+", "-", model)
        ref = Ref(ModelDeployment.resource.name, NAMESPACE, name)
        await self._api.create(
            ref,
            {
                "apiVersion": "rkfleet.dev/v1alpha1",
                "kind": "ModelDeployment",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {
                    "template": {"model": model, "serving": serving},
                    "placement": {"boardSelector": {"matchLabels": {BOARD_LABEL: board.name}}},
                },
            },
        )
        await follow_rollout(self._api, NAMESPACE, name, ROLLOUT_SECONDS_MAX, lambda _sentence: None)
        yield name
        await self._api.delete(ref)
        async with asyncio.timeout(REMOVAL_SECONDS_MAX):
            while await self._has_replica(board):
                await self._clock.sleep(LOOK_SECONDS)

    async def _has_replica(self, board: NpuBoard) -> bool:
        replicas = (await self._api.list(Replica.resource.name, NAMESPACE)).items
        return any(one["spec"].get("boardName") == board.name for one in replicas)


@contextlib.asynccontextmanager
async def npu_fleet(directory: Path, clock: Clock, boards: Mapping[str, int], release: str) -> AsyncIterator[NpuFleet]:
    """Run a fleet of boards that all have the simulated runtime of this release.

    Args:
        directory: Data directory; must be new.
        clock: Time.
        boards: How many of each chip.
        release: Of the runtime.

    Raises:
        FleetError: A program does not start, or the runtime cannot be built.
    """
    library = await asyncio.to_thread(build, generation_of(release), release, directory.parent / "runtime")
    plan = FleetPlan(data_dir=directory, api_port=0, grpc_port=0, registry_port=0, gateway_port=0, cpu_boards=0)
    async with local_fleet(plan, clock, say) as local, local.client() as api:
        ports = Ports(directory / "npu-ports.json")
        made = []
        for name, chip in board_names(boards).items():
            root = directory.parent / "machines" / name
            await asyncio.to_thread(_write_machine, root, name, chip.soc, chip.memory_bytes)
            port = ports.choose(name, 0)
            answer: Any = await api.request("POST", JOIN_TOKENS_PATH, body={"role": "board"})
            arguments = (
                sys.executable, "-m", "agent", "--data-dir", directory / "agents" / name, "--controller", local.endpoints.api,
                "--name", name, "--serving-host", HOST, "--serving-port", ports.choose(f"{name}-serving", 0), "--ops-port", port,
                "--filesystem-root", root, "--runtime-library", library, "--token", answer["token"], "--ca-pin", answer["caPin"],
            )  # fmt: skip
            made.append(NpuBoard(name, chip.soc, f"http://{HOST}:{port}"))
            local.children.start(Program(f"agent-{name}", tuple(str(argument) for argument in arguments), made[-1].url))
        say(f"joining {len(made)} boards with runtime {release}")
        await local.children.wait_ready(*(f"agent-{board.name}" for board in made), seconds_max=START_SECONDS_MAX)
        for board in made:
            await api.patch(Ref(Board.resource.name, "", board.name), {"metadata": {"labels": {BOARD_LABEL: board.name}}})
        yield NpuFleet(local, api, tuple(made), clock)
        if any(local.children.restarts().values()):
            raise SystemExit(f"a program died during the benchmark: restarts are {dict(local.children.restarts())}")


def _write_machine(root: Path, name: str, soc: str, memory_bytes: int) -> None:
    """Write what the kernel of a board with this chip would show."""
    kibibytes = memory_bytes >> 10
    files = {
        "proc/meminfo": f"MemTotal: {kibibytes} kB\nMemFree: {kibibytes} kB\nMemAvailable: {kibibytes} kB\n",
        "proc/device-tree/compatible": f"rkfleet,bench\0rockchip,{soc}\0",
        "proc/device-tree/serial-number": f"bench-{name}\0",
        "proc/sys/kernel/osrelease": "6.1.84-bench\n",
        "proc/sys/kernel/random/boot_id": f"boot-{name}\n",
        "sys/module/rknpu/version": "0.9.8\n",
        "sys/class/drm/renderD129/device/uevent": f"DRIVER=RKNPU\nOF_COMPATIBLE_0=rockchip,{soc}-rknpu\n",
        "dev/dri/renderD129": "",
    }
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)


def say(sentence: str) -> None:
    """Tell how far it is, on standard error."""
    print(sentence, file=sys.stderr, flush=True)
