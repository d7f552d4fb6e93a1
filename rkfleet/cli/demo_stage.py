"""What every step of the demo stands on: the running fleet, its API, a client, the screen, and waits that say what they waited for.

`demo_steps.py` makes one for a run; its steps and those of `demo_simulated.py` take it as argument.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from rkfleet.cli.chat import Answer
from rkfleet.cli.fleet import LocalFleet
from rkfleet.cli.screen import Screen
from rkfleet.cli.step import Step
from rkfleet.client import ApiClient
from rkfleet.clock import Clock
from rkfleet.errors import NotFound
from rkfleet.kinds import ModelDeployment, Replica
from rkfleet.meta import Ref

__all__ = ["NAMESPACE", "READY_SECONDS_MAX", "Stage", "StepFailed", "deployment_ref"]

NAMESPACE: Final = "default"
READY_SECONDS_MAX: Final = 20.0
POLL_SECONDS: Final = 0.1


class StepFailed(Exception):
    """A step's check did not hold."""

    def __init__(self, step: Step, why: str) -> None:
        super().__init__(why)
        self.step: Final = step
        self.why: Final = why


class Stage:
    """The fleet of one run, and what was heard of it.

    Attributes:
        step: The step that runs.
        spoil: The step to spoil; None for none.
        answers: Every whole answer that a client of the demo got.
        broken: Answers that broke off after they had begun, which the gateway has counted as 200.
    """

    def __init__(self, data_dir: Path, spoil: Step | None, clock: Clock, screen: Screen) -> None:
        self.data_dir: Final = data_dir
        self.spoil: Final = spoil
        self.clock: Final = clock
        self.screen: Final = screen
        self.step = next(iter(Step))
        self.answers: Final[list[Answer]] = []
        self.broken = 0

    def begin(self, step: Step, sentence: str) -> None:
        """Begin a step."""
        self.step = step
        self.screen.begin(step)
        self.screen.say(sentence)

    def say(self, sentence: str) -> None:
        """Tell a sentence; a command that it suggests is left out, because nobody is to type one while the demo runs."""
        self.screen.say(sentence.partition(" Try: ")[0])

    def pid(self, program: str) -> int:
        """Return the process id of a program of the fleet."""
        return int((self.data_dir / "run" / f"{program}.pid").read_text())

    async def wait_until(self, holds: Callable[[], bool], what: str, seconds_max: float = READY_SECONDS_MAX) -> None:
        """Wait for something that is seen here.

        Raises:
            AssertionError: It did not happen in time.
        """
        deadline = self.clock.monotonic() + seconds_max
        while not holds():
            assert self.clock.monotonic() < deadline, f"no {what} within {seconds_max:.0f} s"
            await self.clock.sleep(POLL_SECONDS / 5)

    async def wait_condition(self, client: ApiClient, ref: Ref, type: str) -> None:
        """Wait until a condition of an object is True.

        Raises:
            AssertionError: It was not in time; the message has what it said.
        """
        deadline = self.clock.monotonic() + READY_SECONDS_MAX
        while True:
            obj = await client.get(ref)
            said = next((one for one in obj.get("status", {}).get("conditions", ()) if one["type"] == type), None)
            if said and said["status"] == "True":
                return
            assert self.clock.monotonic() < deadline, f"{ref} is not {type} after {READY_SECONDS_MAX:.0f} s: {said}"
            await self.clock.sleep(POLL_SECONDS)

    async def replicas(self, client: ApiClient, deployment: str) -> tuple[dict[str, Any], ...]:
        """Return the replicas of a deployment."""
        items = (await client.list(Replica.resource.name, NAMESPACE)).items
        return tuple(one for one in items if one["spec"]["deploymentName"] == deployment)

    async def show_replicas(self, client: ApiClient) -> None:
        """Show all replicas as kubectl would."""
        accept = "application/json;as=Table;v=v1;g=meta.k8s.io"
        self.screen.table(await client.request("GET", client.path(Ref(Replica.resource.name, NAMESPACE, "")), accept=accept))

    async def samples(self, http: httpx2.AsyncClient, fleet: LocalFleet, program: str) -> list[tuple[str, dict[str, str], float]]:
        """Return the metric samples of a program: name, labels, value.

        Raises:
            NotFound: No program of the fleet is called so.
        """
        if program not in fleet.endpoints.metrics:
            raise NotFound(f"program {program!r} has no metrics; known are {', '.join(sorted(fleet.endpoints.metrics))}")
        text = (await http.get(fleet.endpoints.metrics[program])).text
        return [(one.name, one.labels, one.value) for family in text_string_to_metric_families(text) for one in family.samples]


def deployment_ref(name: str) -> Ref:
    """Return the name of a deployment of the demo."""
    return Ref(ModelDeployment.resource.name, NAMESPACE, name)
