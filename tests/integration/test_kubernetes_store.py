"""The store over the API of Kubernetes when things go wrong: what its callers see, and what they never notice."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from kubernetes.aio.config import incluster_config

from controller.api.namespaces import ensure_namespace
from controller.store.base import Change, Selection, Watch
from controller.store.kubernetes import client
from controller.store.kubernetes.store import KubernetesStore
from rkfleet.clock import SystemClock, give_way
from rkfleet.errors import BadRequest, Expired, FailedPrecondition, NotFound, ResourceExhausted, Unauthenticated, Unavailable
from rkfleet.meta import Ref, ResourceName
from tests.support.api import RunningApi, new_id, running_api
from tests.support.faulty_app import FaultyApp
from tests.support.kubernetes_stores import ANY_KINDS, open_kubernetes_store, store_over
from tests.support.stores import BOARDS, MODELS, NOW, board, board_ref, body, model, model_ref, take, told
from tests.support.tcp_proxy import TcpProxy, tcp_proxy

REPLICAS = ResourceName("replicas.rkfleet.dev")


class NotingClock(SystemClock):
    """The machine's clock, on which waits are noted and take no time."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await give_way()


class StandingClock(SystemClock):
    """The machine's clock, on which whoever waits once waits for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.waits.set()
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def faulty(folder: Path) -> AsyncIterator[tuple[KubernetesStore, FaultyApp, RunningApi, NotingClock]]:
    faults, clock = FaultyApp(), NotingClock()
    async with (
        asyncio.timeout(30),
        running_api(folder, registry=ANY_KINDS, wrap_app=faults.around) as api,
        store_over(api, clock=clock) as store,
    ):
        yield store, faults, api, clock


@contextlib.asynccontextmanager
async def proxied(folder: Path, **options: Any) -> AsyncIterator[tuple[KubernetesStore, TcpProxy, RunningApi]]:
    async with (
        asyncio.timeout(30),
        running_api(folder, registry=ANY_KINDS, **options) as api,
        tcp_proxy(urlsplit(api.url).port or 0) as proxy,
    ):
        change_kubeconfig(api, lambda text: text.replace(api.url, f"https://127.0.0.1:{proxy.port}"))
        async with store_over(api) as store:
            yield store, proxy, api


def change_kubeconfig(api: RunningApi, change: Callable[[str], str]) -> None:
    api.kubeconfig.write_text(change(api.kubeconfig.read_text()))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await SystemClock().sleep(0.02)


# ---- Requests --------------------------------------------------------------------------------------------------------------------


def test_a_server_that_is_overloaded_is_given_the_time_that_it_asks_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with faulty(tmp_path) as (store, faults, _, clock):
            for _ in range(2):
                faults.refuse("POST", 429, "TooManyRequests", retry_after="3")
            await store.create(board_ref("b"), board("b"))
            assert faults.count("POST") == 3
            assert [1.5 <= wait <= 3 for wait in clock.waits] == [True, True]
            for _ in range(client.ATTEMPTS_MAX):
                faults.refuse("PUT", 429, "TooManyRequests", retry_after="3600")
            with pytest.raises(ResourceExhausted) as refused:
                await store.update(board_ref("b"), board("b", spec={"x": 1}), now=NOW)
            assert refused.value.retry_after_seconds == 3600
            assert max(clock.waits) <= client.RETRY_SECONDS_MAX

    asyncio.run(scenario())


def test_only_reads_are_sent_again_when_it_is_not_known_what_became_of_them(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with faulty(tmp_path) as (store, faults, _, _clock):
            faults.refuse("GET", 503, "ServiceUnavailable")
            assert (await store.list(BOARDS)).items == []
            faults.refuse("POST", 503, "ServiceUnavailable")
            with pytest.raises(Unavailable):
                await store.create(board_ref("b"), board("b"))
            assert (faults.count("GET"), faults.count("POST")) == (2, 1)

    asyncio.run(scenario())


def test_a_server_that_is_away_is_told_after_a_few_attempts(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = NotingClock()
        async with running_api(tmp_path, registry=ANY_KINDS) as api:
            pass
        async with store_over(api, clock=clock) as store:
            with pytest.raises(Unavailable, match="cannot be reached"):
                await store.list(BOARDS)
            assert len(clock.waits) == client.ATTEMPTS_MAX - 1
            with pytest.raises(Unavailable):
                await store.watch(BOARDS, resource_version="1")

    asyncio.run(scenario())


def test_credentials_are_read_anew_when_the_server_does_not_take_them_any_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with faulty(tmp_path) as (_, faults, api, clock):
            good = api.kubeconfig.read_text()
            change_kubeconfig(api, lambda text: text.replace(api.token, "gone"))
            async with store_over(api, clock=clock) as store:
                with pytest.raises(Unauthenticated):
                    await store.list(BOARDS)
                api.kubeconfig.write_text(good)
                assert (await store.create(board_ref("b"), board("b"))).ref.name == "b"
                assert faults.count("POST") == 2

    asyncio.run(scenario())


def test_a_program_that_gives_tokens_is_run_once_for_all_that_are_refused(tmp_path: Path) -> None:
    """A kubeconfig may name a program instead of a token, as those of cloud providers do."""

    async def scenario() -> None:
        async with running_api(tmp_path, registry=ANY_KINDS) as api:
            runs, script = tmp_path / "runs", tmp_path / "give-token"
            credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "TOKEN"}}
            lines = ("#!/bin/sh", f"echo run >> {runs}", f"cat <<END\n{json.dumps(credential)}\nEND", "")
            document = yaml.safe_load(api.kubeconfig.read_text())
            document["users"][0]["user"] = {"exec": {"apiVersion": credential["apiVersion"], "command": str(script)}}
            api.kubeconfig.write_text(yaml.safe_dump(document))
            script.write_text("\n".join(lines).replace("TOKEN", "gone"))
            script.chmod(0o700)
            async with store_over(api) as store:
                script.write_text("\n".join(lines).replace("TOKEN", api.token))
                pages = await asyncio.gather(*(store.list(BOARDS) for _ in range(20)))
                assert len(pages) == 20
                assert runs.read_text().split() == ["run", "run"]

    asyncio.run(scenario())


def test_the_token_of_a_service_account_may_be_replaced_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod's token is rotated by the kubelet; what the store read at its start is refused some day."""

    async def scenario() -> None:
        async with running_api(tmp_path, registry=ANY_KINDS) as api:
            address, token, authority = urlsplit(api.url), tmp_path / "token", tmp_path / "ca.crt"
            cluster = yaml.safe_load(api.kubeconfig.read_text())["clusters"][0]["cluster"]
            authority.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
            monkeypatch.setenv("KUBERNETES_SERVICE_HOST", address.hostname or "")
            monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(address.port))
            monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
            monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(authority))
            token.write_text("old")
            async with KubernetesStore.open(ANY_KINDS, clock=SystemClock(), chance=random.Random(1)) as store:
                token.write_text(api.token)
                watch = await store.watch(BOARDS, resource_version=(await store.list(BOARDS)).resource_version)
                async with aclosing(watch):
                    await store.create(board_ref("b"), board("b"))
                    assert told(await take(watch, 1)) == [("ADDED", "b")]

    asyncio.run(scenario())


def test_no_credential_goes_over_a_connection_that_is_not_verified(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_api(tmp_path / "one", registry=ANY_KINDS) as api, running_api(tmp_path / "two", registry=ANY_KINDS) as other:
            good = api.kubeconfig.read_text()
            document = yaml.safe_load(good)
            document["clusters"][0]["cluster"] |= {"insecure-skip-tls-verify": True}
            for bad in (yaml.safe_dump(document), good.replace("https://", "http://"), "{}", "[", "nothing"):
                api.kubeconfig.write_text(bad)
                with pytest.raises(FailedPrecondition):
                    async with store_over(api):
                        pass
            api.kubeconfig.write_text(good.replace(api.url, other.url))
            async with store_over(api, clock=NotingClock()) as store:
                with pytest.raises(Unavailable, match="certificate"):
                    await store.list(BOARDS)
            with pytest.raises(FailedPrecondition, match="service account"):
                async with KubernetesStore.open(ANY_KINDS, clock=SystemClock(), chance=random.Random(1)):
                    pass

    asyncio.run(scenario())


def test_a_name_that_means_the_way_up_names_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_kubernetes_store(tmp_path) as store:
            kept = await store.create(model_ref("a"), model("a"))
            for wrong in (model_ref(".."), model_ref("."), model_ref("a", ".."), model_ref("a/b"), model_ref("a?b#c%2e")):
                with pytest.raises(NotFound):
                    await store.delete(wrong, now=NOW)
                with pytest.raises(NotFound):
                    await store.get(wrong)
            assert (await store.list(MODELS)).items == [kept]

    asyncio.run(scenario())


def test_a_list_is_read_in_pages_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a page has expired before it is read."""
    monkeypatch.setattr("controller.store.kubernetes.store.PAGE_ITEMS", 4)

    async def scenario() -> None:
        async with faulty(tmp_path) as (store, faults, api, clock):
            await ensure_namespace(api.store, "a-b", clock=clock, ids=new_id)
            await ensure_namespace(api.store, "a", clock=clock, ids=new_id)
            names = [("a", f"m{number}") for number in range(5)] + [("a-b", f"m{number}") for number in range(5)]
            for namespace, name in reversed(names):
                await store.create(model_ref(name, namespace), model(name))
            faults.asked.clear()
            page = await store.list(MODELS)
            assert [(item.ref.namespace, item.ref.name) for item in page.items] == names
            assert faults.count("GET", "continue=") == 2
            assert [await store.get(item.ref) for item in page.items] == list(page.items)
            for _ in range(2):
                faults.refuse("GET", 410, "Expired")
            assert await store.list(MODELS) == page
            for _ in range(3):
                faults.refuse("GET", 410, "Expired")
            with pytest.raises(Expired):
                await store.list(MODELS)

    asyncio.run(scenario())


# ---- Watches ---------------------------------------------------------------------------------------------------------------------


def test_a_watch_outlives_the_ends_that_the_server_puts_to_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        faults = FaultyApp()
        async with running_api(tmp_path, registry=ANY_KINDS, wrap_app=faults.around) as api, store_over(api, watch_seconds=1) as store:
            watch = await store.watch(BOARDS, resource_version=(await store.list(BOARDS)).resource_version)
            async with aclosing(watch), asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(take(watch, 2))
                await store.create(board_ref("a"), board("a"))
                await until(lambda: faults.count("GET", "watch=true") == 2)
                await store.create(board_ref("b"), board("b"))
                assert told(await waiting) == [("ADDED", "a"), ("ADDED", "b")]

    asyncio.run(scenario())


def test_a_watch_outlives_its_connections_without_gap_or_repetition(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with proxied(tmp_path) as (store, proxy, api):
            for namespace in ("default", "one"):
                await ensure_namespace(api.store, namespace, clock=SystemClock(), ids=new_id)
            start = (await store.list(MODELS)).resource_version
            watch = await store.watch(MODELS, Selection(namespace="default"), resource_version=start)
            seen: list[Change] = []
            async with aclosing(watch):
                for round_ in range(6):
                    names = [f"m{round_}-{number}" for number in range(3)]
                    for name in names:
                        await api.store.create(model_ref(name), model(name))
                        await api.store.create(model_ref(name, "one"), model(name))
                    if round_ % 2:
                        proxy.cut()
                        seen += await take(watch, 3)
                    else:
                        seen += await take(watch, 3)
                        proxy.cut()
            stored = (await api.store.list(MODELS, Selection(namespace="default"))).items
            assert [change.item for change in seen] == sorted(stored, key=lambda item: int(item.resource_version))

    asyncio.run(scenario())


def test_a_watch_notices_that_the_other_side_went_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.store.kubernetes.watch.SILENCE_GRACE_SECONDS", -0.5)

    async def scenario() -> None:
        clock = NotingClock()
        async with proxied(tmp_path) as (_, proxy, api), store_over(api, clock=clock, watch_seconds=1) as store:
            watch = await store.watch(BOARDS, resource_version=(await store.list(BOARDS)).resource_version)
            async with aclosing(watch), asyncio.TaskGroup() as tasks:
                proxy.freeze()
                waiting = tasks.create_task(take(watch, 1))
                await api.store.create(board_ref("a"), board("a"))
                await until(lambda: bool(clock.waits))
                proxy.thaw()
                assert told(await waiting) == [("ADDED", "a")]

    asyncio.run(scenario())


def test_a_watch_that_missed_what_was_compacted_is_expired(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with proxied(tmp_path, store_options={"log_events_max": 10}) as (store, proxy, api):
            await ensure_namespace(api.store, "default", clock=SystemClock(), ids=new_id)
            start = (await store.list(BOARDS)).resource_version
            watch = await store.watch(BOARDS, resource_version=start)
            async with aclosing(watch):
                await api.store.create(board_ref("a"), board("a"))
                assert told(await take(watch, 1)) == [("ADDED", "a")]
                proxy.cut()
                for number in range(30):
                    await api.store.create(board_ref(f"b{number}"), board(f"b{number}"))
                    await api.store.delete(board_ref(f"b{number}"), now=NOW)
                with pytest.raises(Expired):
                    await take(watch, 60)
            with pytest.raises(Expired):
                await first_of(await store.watch(BOARDS, resource_version=start))

    asyncio.run(scenario())


def test_a_watch_is_told_when_the_server_stays_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = NotingClock()
        async with contextlib.AsyncExitStack() as stack:
            api = await stack.enter_async_context(running_api(tmp_path, registry=ANY_KINDS))
            async with store_over(api, clock=clock) as store:
                watch = await store.watch(BOARDS, resource_version=(await store.list(BOARDS)).resource_version)
                async with aclosing(watch):
                    await stack.aclose()
                    with pytest.raises(Unavailable):
                        await first_of(watch)

    asyncio.run(scenario())


def test_a_watch_that_waits_to_reconnect_can_be_closed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            api = await stack.enter_async_context(running_api(tmp_path, registry=ANY_KINDS))
            clock = StandingClock()
            async with store_over(api, clock=clock) as store, asyncio.timeout(5):
                watch = await store.watch(BOARDS, resource_version=(await store.list(BOARDS)).resource_version)
                await stack.aclose()
                async with asyncio.TaskGroup() as tasks:
                    waiting = tasks.create_task(first_of(watch))
                    await clock.waits.wait()
                    await watch.aclose()
                assert waiting.result() is None

    asyncio.run(scenario())


def test_a_watch_starts_after_a_version_that_a_list_or_change_had(tmp_path: Path) -> None:
    """To a server no version and 0 mean a watch that begins with what is there, which no caller of a store expects."""

    async def scenario() -> None:
        async with open_kubernetes_store(tmp_path) as store:
            await store.create(board_ref("b"), board("b"))
            with pytest.raises(BadRequest, match="list first"):
                await store.watch(BOARDS, resource_version="")
            with pytest.raises(Expired):
                await store.watch(BOARDS, resource_version="0")

    asyncio.run(scenario())


def test_a_first_status_is_given_also_when_somebody_writes_the_object_meanwhile(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with faulty(tmp_path) as (store, faults, _, _clock):
            faults.refuse("PUT", 409, "Conflict")
            item = await store.create(board_ref("b"), board("b", status={"soc": "cpu"}), keep_status=True)
            assert body(item)["status"] == {"soc": "cpu"}
            assert faults.count("PUT", "/boards/b/status") == 2

    asyncio.run(scenario())


def test_a_watch_over_fields_that_no_server_has_to_know(tmp_path: Path) -> None:
    """An object that starts or stops to match is added or deleted, also one that matched before the watch began."""

    async def scenario() -> None:
        async with open_kubernetes_store(tmp_path) as store:

            async def place(name: str, on: str) -> None:
                await store.patch(Ref(REPLICAS, "default", name), {"spec": {"boardName": on}}, now=NOW)

            for name, on in (("a", "b-1"), ("b", "b-2"), ("c", "b-1")):
                await store.create(Ref(REPLICAS, "default", name), {**model(name), "spec": {"boardName": on}})
            selection = Selection(fields=((("spec", "boardName"), "b-1", True),))
            page = await store.list(REPLICAS, selection)
            assert [item.ref.name for item in page.items] == ["a", "c"]
            watch = await store.watch(REPLICAS, selection, resource_version=page.resource_version)
            async with aclosing(watch):
                await place("a", "b-2")
                await place("b", "b-1")
                await store.patch(Ref(REPLICAS, "default", "b"), {"metadata": {"labels": {"x": "y"}}}, now=NOW)
                await place("a", "b-3")
                await store.delete(Ref(REPLICAS, "default", "a"), now=NOW)
                await store.delete(Ref(REPLICAS, "default", "c"), now=NOW)
                expected = [("DELETED", "a"), ("ADDED", "b"), ("MODIFIED", "b"), ("DELETED", "c")]
                assert told(await take(watch, 4)) == expected
            with pytest.raises(Expired):
                await store.watch(REPLICAS, selection, resource_version=page.resource_version)

    asyncio.run(scenario())


def test_status_is_written_in_the_name_of_its_owner(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with faulty(tmp_path) as (store, faults, _, _clock):
            uid = (await store.create(board_ref("b"), board("b"))).uid
            item = await store.patch_status(board_ref("b"), uid, "agent", {"soc": "cpu"}, [], now=NOW)
            assert body(item)["status"] == {"soc": "cpu"}
            (entry,) = [one for one in body(item)["metadata"]["managedFields"] if one["manager"] == "agent"]
            assert (entry["subresource"], entry["fieldsV1"]) == ("status", {"f:status": {".": {}, "f:soc": {}}})
            assert [one for one in faults.asked if one.method == "PUT"] == [
                ("PUT", "/apis/rkfleet.dev/v1alpha1/boards/b/status", "fieldManager=agent")
            ]

    asyncio.run(scenario())


async def first_of(watch: Watch) -> Change | None:
    async with aclosing(watch):
        async for change in watch:
            return change
    return None
