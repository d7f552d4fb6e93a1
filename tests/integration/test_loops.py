"""The real loops in the real manager over the real store, with a board that is scripted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controller.store.sql.store import SqlStore
from rkfleet import conditions
from rkfleet.kinds import KINDS, Board, Event, Model, ModelDeployment, ModelRevision, Replica
from rkfleet.kinds.board import TAINT_DRAIN
from rkfleet.meta import Ref
from tests.support.loop_bench import Bench, running_loops


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Bench]:
    async with SqlStore.open(folder / "store.db", KINDS) as store, running_loops(store) as bench:
        yield bench


CHAT = {"replicas": 2, "template": {"model": "small"}, "placement": {"boardLostSeconds": 80}}


def test_a_deployment_is_placed_served_rolled_out_and_collected(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as bench:
            await bench.create_model("small", "2Gi")
            await bench.join("b0")
            await bench.join("b1")
            await bench.create(ModelDeployment, "chat", CHAT)
            await bench.until(bench.is_ready)
            first = {one.metadata.uid for one in await bench.all(Replica)}
            assert {one.spec.board_name for one in await bench.all(Replica)} == {"b0", "b1"}

            patch = {"spec": {"template": {"serving": {"contextTokens": 2048}}}}
            ref = Ref(ModelDeployment.resource.name, "default", "chat")
            await bench.store.patch(ref, patch, now=bench.clock.now())
            await bench.until(bench.is_ready)
            replicas = await bench.all(Replica)
            assert not first & {one.metadata.uid for one in replicas}
            assert {one.spec.board_name for one in replicas} == {"b0", "b1"}, "replaced in place"
            assert {one.serving.context_tokens for board in bench.boards.values() for one in board.loaded.values()} == {2048}
            assert [one.spec.revision for one in await bench.all(ModelRevision)] in ([1, 2], [2, 1])

            await bench.store.delete(ref, now=bench.clock.now())

            async def collected() -> bool:
                return not await bench.all(Replica) and not await bench.all(ModelRevision)

            await bench.until(collected)
            reasons = {one.reason for one in await bench.all(Event)}
            assert {"RevisionCreated", "ReplicaCreated", "ReplicaDraining", "Scheduled", "RolloutComplete", "SessionOpen"} <= reasons

    asyncio.run(scenario())


def test_replicas_of_a_lost_board_are_replaced_and_its_return_leaves_them_out(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as bench:
            await bench.create_model("small", "2Gi")
            boards = [await bench.join(f"b{number}") for number in range(3)]
            await bench.create(ModelDeployment, "chat", CHAT)
            await bench.until(bench.is_ready)
            lost = next(board for board in boards if board.loaded)
            bench.disconnect(lost)

            async def unknown() -> bool:
                there = [one for one in await bench.all(Replica) if one.spec.board_name == lost.name]
                said = [conditions.find(one.status.conditions, conditions.READY) for one in there]
                return bool(said) and all(one is not None and one.status == "Unknown" for one in said)

            await bench.until(unknown)
            await bench.until(bench.is_ready)
            assert lost.name not in {one.spec.board_name for one in await bench.all(Replica)}
            assert lost.loaded, "it goes on serving on its own network"
            await bench.connect(lost)
            assert lost.assignment.replicas == ()
            await bench.until(lambda: _is(not lost.loaded))
            assert "BoardLost" in {one.reason for one in await bench.all(Event)}

    asyncio.run(scenario())


def test_a_taint_wakes_the_deployments_of_the_board_that_is_to_be_emptied(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as bench:
            await bench.create_model("small", "2Gi")
            boards = [await bench.join(f"b{number}") for number in range(3)]
            await bench.create(ModelDeployment, "chat", {**CHAT, "strategy": {"maxUnavailable": 0, "maxSurge": 1}})
            await bench.until(bench.is_ready)
            drained = next(board for board in boards if board.loaded)
            spec = {"unschedulable": True, "taints": [{"key": TAINT_DRAIN, "effect": "NoExecute"}]}
            await bench.store.patch(Ref(Board.resource.name, "", drained.name), {"spec": spec}, now=bench.clock.now())

            async def emptied() -> bool:
                named = {one.spec.board_name for one in await bench.all(Replica)}
                return drained.name not in named and not drained.loaded and await bench.is_ready()

            await bench.until(emptied)
            told = [one for one in await bench.all(Event) if one.reason == "ReplicaDraining"]
            assert [one.message.partition(" drains: ")[2] for one in told] == [
                "its board is to be emptied, and another replica serves in its place"
            ]

    asyncio.run(scenario())


@pytest.mark.parametrize("registry_is_up", [True, False])
def test_a_model_says_whether_its_files_are_in_the_registry(tmp_path: Path, registry_is_up: bool) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as bench:
            bench.registry_is_up = registry_is_up
            bench.gone_digests = {f"sha256:{'a' * 64}"}
            await bench.create_model("small", "1Gi")

            async def reason() -> str:
                (model,) = await bench.all(Model)
                found = conditions.find(model.status.conditions, conditions.READY)
                return found.reason if found else ""

            bad = conditions.ARTIFACT_MISSING if registry_is_up else conditions.REGISTRY_UNAVAILABLE
            await bench.until(lambda: _equal(reason(), bad))
            bench.gone_digests, bench.registry_is_up = set(), True
            await bench.until(lambda: _equal(reason(), conditions.ARTIFACTS_PRESENT))

    asyncio.run(scenario())


def test_a_deleted_model_stays_while_replicas_run_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as bench:
            await bench.create_model("small", "1Gi")
            await bench.join("b0")
            await bench.create(ModelDeployment, "chat", {**CHAT, "replicas": 1})
            await bench.until(bench.is_ready)
            await bench.until(lambda: _kept(bench))
            await bench.store.delete(Ref(Model.resource.name, "default", "small"), now=bench.clock.now())
            assert await bench.all(Model)
            await bench.store.delete(Ref(ModelDeployment.resource.name, "default", "chat"), now=bench.clock.now())

            async def gone() -> bool:
                return not await bench.all(Model)

            await bench.until(gone)

    asyncio.run(scenario())


async def _kept(bench: Bench) -> bool:
    return all(one.metadata.finalizers for one in await bench.all(Model))


async def _is(value: object) -> bool:
    return bool(value)


async def _equal(reading: Any, value: object) -> bool:
    return bool(await reading == value)
