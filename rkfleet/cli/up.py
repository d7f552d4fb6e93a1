"""`rkfleet up`: a whole fleet on this machine, until it is told to stop."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rkfleet.cli.ports import API_PORT, GATEWAY_PORT, REGISTRY_PORT, SESSION_PORT

if TYPE_CHECKING:
    from rkfleet.cli.fleet import FleetPlan, LocalFleet

__all__ = ["up"]


def up(  # noqa: PLR0917 (typer makes a flag of each)
    data_dir: Annotated[Path, typer.Option(help="Where everything is kept.")] = Path(".rkfleet"),
    api_port: Annotated[int, typer.Option(help="Port of the API; 0 takes any free one.")] = API_PORT,
    grpc_port: Annotated[int, typer.Option(help="Port of the board sessions; 0 takes any free one.")] = SESSION_PORT,
    registry_port: Annotated[int, typer.Option(help="Port of the model registry; 0 takes any free one.")] = REGISTRY_PORT,
    gateway_port: Annotated[int, typer.Option(help="Port of the OpenAI endpoint; 0 takes any free one.")] = GATEWAY_PORT,
    cpu_boards: Annotated[int, typer.Option(help="Boards that run models on the CPU of this machine.")] = 1,
    board_memory: Annotated[str, typer.Option(help="Memory that each CPU board reports, for example 4Gi; default the machine's.")] = "",
    simulated: Annotated[
        str, typer.Option(metavar="rk3588=N,rk3576=M", help="Boards that do not exist and answer at the speed of the vendor's table.")
    ] = "",
    load_speedup: Annotated[
        float, typer.Option(min=0.01, max=1000, help="How much faster simulated boards load models than 1 GiB/s.")
    ] = 1.0,
    samples: Annotated[bool, typer.Option("--samples", help="Push the sample models before it is ready.")] = False,
) -> None:
    """Start controller, registry, gateway and boards on this machine; Ctrl-C stops them."""
    import asyncio

    from rkfleet.cli.fleet import FleetPlan
    from rkfleet.process import run_until_stopped
    from rkfleet.simulated import parse_boards

    plan = FleetPlan(
        data_dir=data_dir,
        api_port=api_port,
        grpc_port=grpc_port,
        registry_port=registry_port,
        gateway_port=gateway_port,
        cpu_boards=cpu_boards,
        board_memory=board_memory,
        simulated=parse_boards(simulated),
        load_speedup=load_speedup,
    )
    asyncio.run(run_until_stopped(_run(plan, samples)))


async def _run(plan: FleetPlan, samples: bool) -> None:
    import asyncio

    from rkfleet.cli.fleet import local_fleet
    from rkfleet.cli.samples import push_samples
    from rkfleet.clock import SystemClock

    async with local_fleet(plan, SystemClock(), lambda sentence: print(sentence, file=sys.stderr, flush=True)) as fleet:
        if samples:
            await push_samples(Path(fleet.endpoints.kubeconfig))
        print(_ready_line(fleet), flush=True)
        await asyncio.Event().wait()


def _ready_line(fleet: LocalFleet) -> str:
    points = fleet.endpoints
    hosted = sum(fleet.plan.simulated.values())
    boards = f"  simulated boards {hosted} at {points.simulated_boards}/boards" if hosted else ""
    return f"ready: gateway {points.gateway}/v1  api {points.api}{boards}  export KUBECONFIG={points.kubeconfig}"
