"""Who uses a fleet while it is being hurt: each remembers what it was promised and what it saw."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

import httpx2

from rkfleet.cli.push import Order, push
from rkfleet.cli.variants import parse_variant
from rkfleet.client import ApiClient
from rkfleet.errors import FleetError
from rkfleet.kinds import Model, ModelDeployment
from rkfleet.meta import Ref
from tests.support.up import CLOCK, Up

WRITE_PAUSE_SECONDS = 0.1
ASK_PAUSE_SECONDS = 0.1  # After a failure; a real client waits longer.
PUSHED_BYTES = 300_000


def deployment_ref(name: str) -> Ref:
    return Ref(ModelDeployment.resource.name, "default", name)


class Operator:
    """Creates deployments all the time, changes and deletes some, and remembers what was acknowledged.

    While a write has no answer nothing is promised about its object: it may have happened or not.
    """

    def __init__(self, fleet: Up) -> None:
        self._fleet = fleet
        self.labels: dict[str, str] = {}  # by the name of each deployment that must be there
        self.deleted: set[str] = set()

    async def run(self) -> None:
        async with self._fleet.client() as client:
            for number in itertools.count(1):
                with contextlib.suppress(FleetError):
                    await self._write(client, number)
                await CLOCK.sleep(WRITE_PAUSE_SECONDS)

    async def _write(self, client: ApiClient, number: int) -> None:
        name = f"kept-{number}"
        ref = deployment_ref(name)
        await client.create(ref, _idle_deployment(name))
        self.labels[name] = ""
        if number % 3 == 0:
            del self.labels[name]
            await client.patch(ref, {"metadata": {"labels": {"changed": str(number)}}})
            self.labels[name] = str(number)
        if number % 4 == 0:
            del self.labels[name]
            await client.delete(ref)
            self.deleted.add(name)

    def broken_promises(self, objects: tuple[dict[str, Any], ...]) -> list[str]:
        """What was acknowledged and is not so in this listing of all deployments."""
        found = {obj["metadata"]["name"]: obj["metadata"].get("labels", {}).get("changed", "") for obj in objects}
        lost = [f"{name} has {found.get(name)!r}, not {label!r}" for name, label in self.labels.items() if found.get(name) != label]
        return lost + [f"{name} is back" for name in sorted(self.deleted & set(found))]


def _idle_deployment(name: str) -> dict[str, object]:
    resource = ModelDeployment.resource
    spec = {"replicas": 0, "servedModelName": name, "template": {"model": "smollm2-135m"}}
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {"name": name, "namespace": "default"}, "spec": spec}


class Pusher:
    """Pushes one small model after another, each until it is acknowledged, as a person repeats a command that failed."""

    def __init__(self, fleet: Up, folder: Path) -> None:
        self._fleet = fleet
        self._folder = folder
        self.models: list[str] = []

    async def run(self) -> None:
        async with self._fleet.client() as client:
            for number in itertools.count(1):
                file = self._folder / f"pushed-{number}.gguf"
                file.write_bytes(os.urandom(PUSHED_BYTES))
                variant = parse_variant("name=any,soc=any,dtype=q4_1,runtime=llamacpp,context=1024")
                order = Order(name=file.stem, namespace="default", files=(file,), variants=(variant,))
                while file.stem not in self.models:
                    try:
                        await push(order, client, CLOCK, lambda *_step: None)
                        self.models.append(file.stem)
                    except FleetError:
                        await CLOCK.sleep(WRITE_PAUSE_SECONDS)
                await CLOCK.sleep(5 * WRITE_PAUSE_SECONDS)

    def broken_promises(self, objects: tuple[dict[str, Any], ...]) -> list[str]:
        """Acknowledged models that are not there, or whose bytes are not."""
        ready = {
            obj["metadata"]["name"]
            for obj in objects
            if any(one["type"] == "Ready" and one["status"] == "True" for one in obj.get("status", {}).get("conditions", ()))
        }
        return sorted(set(self.models) - ready)


def model_ref() -> Ref:
    return Ref(Model.resource.name, "default", "")


class Asker:
    """Asks all the time, streamed or not; counts answers and failures, and answers that ended without saying so."""

    def __init__(self, fleet: Up, *, stream: bool) -> None:
        self._fleet = fleet
        self._stream = stream
        self.answers = 0
        self.failures: list[str] = []
        self.silent: list[str] = []

    async def run(self) -> None:
        async with httpx2.AsyncClient(timeout=60.0, trust_env=False) as http:
            for number in itertools.count(1):
                failed = len(self.failures)
                try:
                    await (self._ask_streamed if self._stream else self._ask)(http, _question(number, 16 if self._stream else 4))
                except httpx2.HTTPError as error:
                    self.failures.append(repr(error))
                if len(self.failures) > failed:
                    await CLOCK.sleep(ASK_PAUSE_SECONDS)

    def _url(self) -> str:
        return f"{self._fleet.endpoints.gateway}/v1/chat/completions"

    async def _ask(self, http: httpx2.AsyncClient, body: dict[str, object]) -> None:
        answer = await http.post(self._url(), json=body)
        if answer.status_code == 200 and answer.json()["usage"]["completion_tokens"]:
            self.answers += 1
        else:
            self.failures.append(f"{answer.status_code} {answer.text[:200]}")

    async def _ask_streamed(self, http: httpx2.AsyncClient, body: dict[str, object]) -> None:
        async with http.stream("POST", self._url(), json={**body, "stream": True}) as answer:
            lines = [line async for line in answer.aiter_lines() if line]
        if answer.status_code != 200:
            self.failures.append(f"{answer.status_code} {lines[:1]}")
        elif lines[-1] == "data: [DONE]":
            self.answers += 1
        elif lines[-1].startswith("data: ") and "error" in json.loads(lines[-1][6:]):
            self.failures.append(lines[-1])
        else:
            self.silent.append(f"{len(lines)} lines, the last {lines[-1:]}")


def _question(number: int, max_tokens: int) -> dict[str, object]:
    return {"model": "smollm2", "messages": [{"role": "user", "content": f"{number}: say a word"}], "max_tokens": max_tokens}
