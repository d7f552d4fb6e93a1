"""A whole local fleet that serves the sample model, for benchmarks that measure what a client sees.

In: a directory and how the replica should be loaded. Out: the running fleet, with the deployment available. The leading underscore keeps
it out of `make bench`, which runs every other module here.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from rkfleet.cli.fleet import FleetPlan, LocalFleet, local_fleet
from rkfleet.cli.rollout import follow_rollout
from rkfleet.cli.samples import push_samples
from rkfleet.clock import Clock
from rkfleet.kinds import ModelDeployment
from rkfleet.meta import Ref
from rkfleet.sample import SMOLLM2

__all__ = ["DEPLOYMENT", "agent_pid", "serving_fleet"]

DEPLOYMENT: Final = "smollm2"
NAMESPACE: Final = "default"
ROLLOUT_SECONDS_MAX: Final = 120.0


@contextlib.asynccontextmanager
async def serving_fleet(directory: Path, clock: Clock, **serving: Any) -> AsyncIterator[LocalFleet]:
    """Run a fleet of one CPU board with one replica of the sample model, under the served name DEPLOYMENT.

    Args:
        directory: Data directory of the fleet.
        clock: Time.
        serving: Fields of `spec.template.serving`, in camel case.
    """
    plan = FleetPlan(data_dir=directory, api_port=0, grpc_port=0, registry_port=0, gateway_port=0)
    async with local_fleet(plan, clock, _say) as fleet:
        await push_samples(Path(fleet.endpoints.kubeconfig))
        async with fleet.client() as client:
            await client.create(
                Ref(ModelDeployment.resource.name, NAMESPACE, DEPLOYMENT),
                {
                    "apiVersion": "rkfleet.dev/v1alpha1",
                    "kind": "ModelDeployment",
                    "metadata": {"name": DEPLOYMENT, "namespace": NAMESPACE},
                    "spec": {"template": {"model": SMOLLM2.model, "serving": serving}},
                },
            )
            await follow_rollout(client, NAMESPACE, DEPLOYMENT, ROLLOUT_SECONDS_MAX, _say)
        yield fleet


def agent_pid(fleet: LocalFleet) -> int:
    """Return the process id of the board's agent."""
    return int((fleet.plan.data_dir / "run" / "agent-cpu-1.pid").read_text())


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
