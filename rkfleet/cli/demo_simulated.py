"""The demo's steps about boards that do not exist: the vendor's speeds, and the loss of a board.

Six simulated boards run the shipped agent; their workers answer at the speed of the vendor's benchmark table, and every figure of theirs
is shown as simulated. `demo_steps.py` calls these between its own steps.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any, Final

import httpx2

from rkfleet import conditions
from rkfleet.benchmarks import load_table
from rkfleet.cli.chat import Answer, ask
from rkfleet.cli.demo_stage import NAMESPACE, Stage
from rkfleet.cli.fleet import SIMULATED, LocalFleet
from rkfleet.cli.load import Crowd, crowd
from rkfleet.cli.samples import run_command
from rkfleet.cli.step import Step
from rkfleet.client import ApiClient
from rkfleet.kinds import Board, Model
from rkfleet.meta import Ref

__all__ = ["SIMULATED_BOARDS", "SIMULATED_DEPLOYMENT", "check_rates", "lose_board", "push_simulated"]

SIMULATED_BOARDS: Final[Mapping[str, int]] = {"rk3588": 3, "rk3576": 3}
SIMULATED_DEPLOYMENT: Final = "qwen2"
REFERENCE: Final = "Qwen2-1.5B"
MODEL: Final = "qwen2-1.5b"
DTYPES: Final[Mapping[str, str]] = {"rk3588": "w8a8", "rk3576": "w4a16"}
RATE_ERROR_MAX: Final = 0.05  # Of the table's tokens per second, as the client measures them through the gateway.
REPLICAS: Final = 5  # Of the manifest: one board is spare.
RATE_TOKENS: Final = 64  # Four seconds of an RK3576: long enough that a late packet is no error of the rate.
FREEZE_AFTER_SECONDS: Final = 1.0
FREEZE_SECONDS: Final = 6.0  # Beyond the end of the answers, so that the absolute schedule cannot catch up.
CLIENTS: Final = 8
LOSS_TOKENS: Final = 16
MOVE_SECONDS_MAX: Final = 45.0  # boardLostSeconds of the manifest, fetch, load, and the wait until it counts as available; slow machines.
SPOILED_MOVE_SECONDS_MAX: Final = 12.0


async def push_simulated(stage: Stage, fleet: LocalFleet, client: ApiClient) -> None:
    """Push placeholders of the table's model, one variant for each chip."""
    command = [
        sys.executable,
        "-m",
        "rkfleet.cli.main",
        "model",
        "push",
        "--simulated",
        REFERENCE,
        "--kubeconfig",
        fleet.endpoints.kubeconfig,
    ]
    printed = await run_command(command)
    stage.say(f"{printed.strip().rpartition(chr(10))[2]} (simulated: placeholders with the speeds of the vendor's table)")
    await stage.wait_condition(client, Ref(Model.resource.name, NAMESPACE, MODEL), conditions.READY)


async def check_rates(stage: Stage, fleet: LocalFleet, http: httpx2.AsyncClient) -> None:
    """Ask every simulated replica at once and compare what the client measures with the table."""
    stage.begin(Step.rates, f"asking {REPLICAS} simulated boards at once and comparing their speeds with the vendor's table")
    # First a word from each, so that no connection is opened while the first token is waited for.
    stage.answers.extend(await asyncio.gather(*(_ask(stage, fleet, http, number, 1) for number in range(REPLICAS))))
    asking = [asyncio.ensure_future(_ask(stage, fleet, http, number, RATE_TOKENS)) for number in range(REPLICAS)]
    if stage.spoil is Step.rates:
        await stage.clock.sleep(FREEZE_AFTER_SECONDS)
        os.kill(stage.pid(SIMULATED), signal.SIGSTOP)
        await stage.clock.sleep(FREEZE_SECONDS)
        os.kill(stage.pid(SIMULATED), signal.SIGCONT)
    answers = await asyncio.gather(*asking)
    stage.answers.extend(answers)
    boards = {answer.headers.get("x-rkfleet-board", "") for answer in answers}
    assert len(boards) == REPLICAS, f"{REPLICAS} requests at once were answered by {sorted(boards)}"
    for answer in sorted(answers, key=lambda one: one.headers["x-rkfleet-board"]):
        stage.say(_compared(answer))


async def _ask(stage: Stage, fleet: LocalFleet, http: httpx2.AsyncClient, number: int, tokens: int) -> Answer:
    body = _body(number, tokens)
    return await ask(http, fleet.endpoints.gateway, body, stage.clock, on_token=stage.screen.rates.heard)


def _compared(answer: Answer) -> str:
    """Return the sentence about one answer.

    Raises:
        AssertionError: It is not what the table says, or does not say that it is simulated.
    """
    board, variant = answer.headers["x-rkfleet-board"], answer.headers.get("x-rkfleet-variant", "")
    soc = board.partition("-")[0]
    dtype = DTYPES[soc]
    assert variant == f"{soc}-{dtype}", f"board {board} answered with variant {variant!r}, the deployment should resolve to {soc}-{dtype}"
    assert answer.headers.get("x-rkfleet-simulated") == "true", f"the headers of {board}'s answer do not say that it is simulated"
    assert answer.text.startswith(f"[simulated {soc} {dtype}]"), (
        f"the answer of {board} does not say that it is simulated: {answer.text[:60]!r}"
    )
    row = load_table().get(REFERENCE, dtype, soc)
    rate = answer.decode_tokens_per_second
    assert rate is not None, f"the answer of {board} has {answer.output_tokens} tokens, too few to measure a rate"
    error = rate / row.tokens_per_second - 1
    assert abs(error) <= RATE_ERROR_MAX, (
        f"{board} decoded {rate:.2f} tokens/s as the client measured it, the table has {row.tokens_per_second}: {error:+.1%}"
    )
    first = (answer.time_to_first_token_seconds or 0.0) * 1000
    return (
        f"{board} {variant}: {rate:.2f} tokens/s (table {row.tokens_per_second:.2f}, {error:+.1%}), "
        f"TTFT {first:.0f} ms (table {row.time_to_first_token_seconds * 1000:.0f} ms), simulated"
    )


async def lose_board(stage: Stage, fleet: LocalFleet, client: ApiClient, http: httpx2.AsyncClient) -> None:
    """Lose a board under load: its replica moves, and no client is refused twice in a row."""
    before = await stage.replicas(client, SIMULATED_DEPLOYMENT)
    lost = min(one["spec"]["boardName"] for one in before)
    taken = {one["spec"]["boardName"] for one in before}
    stage.begin(Step.loss, f"losing board {lost} (simulated) with {CLIENTS} requests in flight; its replica should move to a spare board")
    limit = MOVE_SECONDS_MAX
    if stage.spoil is Step.loss:
        limit = SPOILED_MOVE_SECONDS_MAX
        for board in (await client.list(Board.resource.name)).items:
            await client.patch(Ref(Board.resource.name, "", board["metadata"]["name"]), {"spec": {"unschedulable": True}})
    url = fleet.endpoints.gateway
    heard = stage.screen.rates.heard
    async with crowd(http, url, lambda number: _body(number, LOSS_TOKENS), CLIENTS, stage.clock, insist=True, on_token=heard) as seen:
        await stage.wait_until(lambda: len(seen.answers) >= CLIENTS, "answers before the loss")
        lost_at = stage.clock.monotonic()
        switched = await http.post(f"{fleet.endpoints.simulated_boards}/boards/{lost}/stop")
        assert switched.status_code == 200, f"board {lost} was not switched off: {switched.text}"
        moved = await _wait_moved(stage, client, lost, taken, limit)
        stage.say(f"the replica of {lost} serves on {moved} {stage.clock.monotonic() - lost_at:.1f} s after the loss")
        await stage.wait_until(lambda: _answered_by(seen, moved), f"answer of {moved}")
    stage.answers.extend(seen.answers)
    stage.broken += seen.broken
    assert seen.refused_in_a_row < 2, f"a client was refused {seen.refused_in_a_row} times in a row, for example: {seen.failures[-1:]}"
    refused = seen.failed - seen.broken
    stage.say(
        f"{len(seen.answers)} requests answered, {seen.broken} streams of the lost board broken off, {refused} refused, never two in a row"
    )
    await stage.show_replicas(client)


def _answered_by(seen: Crowd, board: str) -> bool:
    return any(answer.headers.get("x-rkfleet-board") == board for answer in seen.answers)


async def _wait_moved(stage: Stage, client: ApiClient, lost: str, taken: set[str], seconds_max: float) -> str:
    """Return the board that took the replica over, once all replicas serve without the lost one."""
    deadline = stage.clock.monotonic() + seconds_max
    while True:
        replicas = await stage.replicas(client, SIMULATED_DEPLOYMENT)
        boards = [one["spec"].get("boardName", "") for one in replicas]
        serving = [one for one in replicas if _ready(one) and one["spec"]["boardName"] != lost]
        if lost not in boards and len(serving) == len(taken) and (new := set(boards) - taken):
            return str(new.pop())
        assert stage.clock.monotonic() < deadline, (
            f"the replica of {lost} did not move within {seconds_max:.0f} s; replicas are on {boards}"
        )
        await stage.clock.sleep(0.1)


def _ready(replica: dict[str, Any]) -> bool:
    said = replica.get("status", {}).get("conditions", ())
    return any(one["type"] == conditions.READY and one["status"] == "True" for one in said)


def _body(number: int, tokens: int) -> dict[str, Any]:
    question = f"What is request number {number} about?"
    return {"model": SIMULATED_DEPLOYMENT, "messages": [{"role": "user", "content": question}], "max_tokens": tokens}
