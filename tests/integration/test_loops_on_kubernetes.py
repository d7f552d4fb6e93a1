"""The real loops over the API of Kubernetes, which is here the product's own: admission, HTTPS and its rules stand between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

from rkfleet.kinds import KINDS, Board, Event, Model, ModelDeployment, ModelRevision, Namespace, Replica
from rkfleet.meta import Ref
from tests.support.api import RunningApi, running_api
from tests.support.kubernetes_stores import store_over
from tests.support.loop_bench import Bench, running_loops
from tests.support.sim_board import model_spec
from tests.support.tcp_proxy import tcp_proxy

CHAT = {"replicas": 2, "template": {"model": "small"}, "placement": {"boardLostSeconds": 80}}


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[Bench, RunningApi]]:
    async with running_api(folder) as api, store_over(api, KINDS, watch_seconds=1) as store, running_loops(store) as bench:
        yield bench, api


async def apply(api: RunningApi, path: str, manifest: dict[str, object]) -> None:
    response = await api.call("POST", path, manifest)
    assert response.status_code == 201, response.text


def test_a_deployment_is_placed_rolled_out_and_collected(tmp_path: Path) -> None:
    """Users apply through the API; the loops see and write through it alone, across ends of their watches."""

    async def scenario() -> None:
        async with running(tmp_path) as (bench, api):
            root = "/apis/rkfleet.dev/v1alpha1/namespaces/default"
            await apply(api, f"{root}/models", {"metadata": {"name": "small"}, "spec": model_spec("2Gi")})
            await bench.join("b0")
            await bench.join("b1")
            await apply(api, f"{root}/modeldeployments", {"metadata": {"name": "chat"}, "spec": CHAT})
            await bench.until(bench.is_ready)
            first = {one.metadata.uid for one in await bench.all(Replica)}
            assert {one.spec.board_name for one in await bench.all(Replica)} == {"b0", "b1"}

            patch = {"spec": {"template": {"serving": {"contextTokens": 2048}}}}
            merge = {"content-type": "application/merge-patch+json"}
            response = await api.call("PATCH", f"{root}/modeldeployments/chat", patch, headers=merge)
            assert response.status_code == 200, response.text
            await bench.until(bench.is_ready)
            replicas = await bench.all(Replica)
            assert not first & {one.metadata.uid for one in replicas}
            assert {one.spec.board_name for one in replicas} == {"b0", "b1"}, "replaced in place"
            assert sorted(one.spec.revision for one in await bench.all(ModelRevision)) == [1, 2]

            response = await api.call("DELETE", f"{root}/modeldeployments/chat")
            assert response.status_code == 200, response.text

            async def collected() -> bool:
                return not await bench.all(Replica) and not await bench.all(ModelRevision)

            await bench.until(collected)
            reasons = {one.reason for one in await bench.all(Event)}
            assert {"RevisionCreated", "ReplicaCreated", "ReplicaDraining", "Scheduled", "RolloutComplete", "SessionOpen"} <= reasons

    asyncio.run(scenario())


def test_a_namespace_is_emptied_and_goes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (bench, api):
            await apply(api, "/api/v1/namespaces", {"metadata": {"name": "lab"}})
            root = "/apis/rkfleet.dev/v1alpha1/namespaces/lab"
            await apply(api, f"{root}/models", {"metadata": {"name": "small"}, "spec": model_spec("1Gi")})
            await bench.join("b0")
            await apply(api, f"{root}/modeldeployments", {"metadata": {"name": "chat"}, "spec": {**CHAT, "replicas": 1}})

            async def placed() -> bool:
                return [one.spec.board_name for one in await bench.all(Replica)] == ["b0"]

            await bench.until(placed)
            assert (await api.call("DELETE", "/api/v1/namespaces/lab")).status_code == 200

            async def gone() -> bool:
                return "lab" not in {one.metadata.name for one in await bench.all(Namespace)}

            await bench.until(gone)
            assert [await bench.all(kind) for kind in (Replica, ModelRevision, ModelDeployment, Model)] == [[], [], [], []]
            assert await bench.store.get(Ref(Board.resource.name, "", "b0"))

    asyncio.run(scenario())


def test_the_loops_outlive_connections_that_break(tmp_path: Path) -> None:
    """Whatever becomes of single requests and watches: what was declared is reached, and no replica is made twice."""

    async def scenario() -> None:
        async with running_api(tmp_path) as api, tcp_proxy(urlsplit(api.url).port or 0) as proxy:
            api.kubeconfig.write_text(api.kubeconfig.read_text().replace(api.url, f"https://127.0.0.1:{proxy.port}"))
            async with store_over(api, KINDS) as store, running_loops(api.store, store) as bench:
                root = "/apis/rkfleet.dev/v1alpha1/namespaces/default"
                await apply(api, f"{root}/models", {"metadata": {"name": "small"}, "spec": model_spec("1Gi")})
                for number in range(3):
                    await bench.join(f"b{number}")
                cuts = 0

                async def cut() -> None:
                    nonlocal cuts
                    while True:
                        proxy.cut()
                        cuts += 1
                        await bench.clock.sleep(4.0)

                async with asyncio.TaskGroup() as tasks:
                    cutting = tasks.create_task(cut())
                    await apply(api, f"{root}/modeldeployments", {"metadata": {"name": "chat"}, "spec": {**CHAT, "replicas": 3}})
                    for context_tokens in (2048, 512):
                        await bench.until(bench.is_ready, seconds=40)
                        patch = {"spec": {"template": {"serving": {"contextTokens": context_tokens}}}}
                        merge = {"content-type": "application/merge-patch+json"}
                        response = await api.call("PATCH", f"{root}/modeldeployments/chat", patch, headers=merge)
                        assert response.status_code == 200, response.text
                    await bench.until(bench.is_ready, seconds=40)
                    cutting.cancel()
                assert cuts > 5
                assert sorted(one.spec.board_name for one in await bench.all(Replica)) == ["b0", "b1", "b2"]
                assert sorted(one.spec.revision for one in await bench.all(ModelRevision)) == [1, 2, 3]
                assert {one.serving.context_tokens for board in bench.boards.values() for one in board.loaded.values()} == {512}

    asyncio.run(scenario())
