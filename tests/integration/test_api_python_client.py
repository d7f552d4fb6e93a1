"""The official Python client against the API: it words its requests otherwise than kubectl does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import RunningApi, running_api
from tests.support.objects import deployment

WAIT_SECONDS = 15
MERGE = {"headers": {"content-type": "application/merge-patch+json"}}


def with_client(directory: Path, use: Callable[[Any, Path], None], **options: Any) -> None:
    """Do what scripts do, in a thread; the API serves in the loop."""

    async def run() -> None:
        async with running_api(directory, **options) as api:
            await asyncio.to_thread(_connected, api.kubeconfig, directory / "discovery", use)

    asyncio.run(run())


def _connected(kubeconfig: Path, cache: Path, use: Callable[[Any, Path], None]) -> None:
    from kubernetes import config

    with config.new_client_from_config(str(kubeconfig)) as connection:
        use(connection, cache)


def _deployments(connection: Any, cache: Path) -> Any:
    from kubernetes import dynamic

    client = dynamic.DynamicClient(connection, cache_file=str(cache))
    return client.resources.get(api_version="rkfleet.dev/v1alpha1", kind="ModelDeployment")


def test_the_dynamic_client_writes_and_reads(tmp_path: Path) -> None:
    def use(connection: Any, cache: Path) -> None:
        from kubernetes.dynamic.exceptions import ConflictError, NotFoundError

        deployments = _deployments(connection, cache)
        created = deployments.create(body=deployment(replicas=2), namespace="default")
        assert created.spec.replicas == 2
        with pytest.raises(ConflictError):
            deployments.create(body=deployment(), namespace="default")
        patch = {"spec": {"replicas": 3}}
        patched = deployments.patch(name="qwen", namespace="default", body=patch, content_type="application/merge-patch+json")
        assert patched.metadata.generation == 2
        assert [one.metadata.name for one in deployments.get(namespace="default").items] == ["qwen"]
        status = {"apiVersion": "rkfleet.dev/v1alpha1", "kind": "ModelDeployment", "status": {"replicas": 3}}
        by_status = {"name": "qwen", "namespace": "default", "content_type": "application/merge-patch+json"}
        assert deployments.status.patch(body=status, **by_status).status.replicas == 3
        assert deployments.scale.get(name="qwen", namespace="default").spec.replicas == 3
        scaled = deployments.scale.patch(body={"spec": {"replicas": 4}}, **by_status)
        assert (scaled.kind, scaled.spec.replicas) == ("Scale", 4)
        replaced = deployments.get(name="qwen", namespace="default").to_dict()
        replaced["spec"]["replicas"] = 5
        assert deployments.replace(body=replaced, namespace="default").spec.replicas == 5
        with pytest.raises(ConflictError):
            deployments.replace(body=replaced, namespace="default")  # its version is not the newest any more
        deployments.delete(name="qwen", namespace="default")
        with pytest.raises(NotFoundError):
            deployments.get(name="qwen", namespace="default")

    with_client(tmp_path, use)


def test_the_dynamic_client_applies_on_the_server(tmp_path: Path) -> None:
    def use(connection: Any, cache: Path) -> None:
        from kubernetes.dynamic.exceptions import ConflictError

        deployments = _deployments(connection, cache)
        mine = {"namespace": "default", "name": "qwen", "field_manager": "script"}
        applied = deployments.server_side_apply(body=deployment(replicas=2, paused=True), **mine)
        assert [entry.manager for entry in applied.metadata.managedFields] == ["script"]
        again = deployments.server_side_apply(body=deployment(replicas=2, paused=True), **mine)
        assert again.metadata.resourceVersion == applied.metadata.resourceVersion
        left_out = deployments.server_side_apply(body=deployment(replicas=3), **mine)
        assert (left_out.spec.replicas, left_out.spec.paused) == (3, False)
        with pytest.raises(ConflictError):
            deployments.server_side_apply(body=deployment(replicas=9), **{**mine, "field_manager": "other"})
        forced = deployments.server_side_apply(body=deployment(replicas=9), force_conflicts=True, **{**mine, "field_manager": "other"})
        assert forced.spec.replicas == 9

    with_client(tmp_path, use)


def test_typed_and_dynamic_clients_watch(tmp_path: Path) -> None:
    def use(connection: Any, cache: Path) -> None:
        from kubernetes import client, watch
        from kubernetes.client.exceptions import ApiException

        core = client.CoreV1Api(connection)
        body = client.V1Namespace(metadata=client.V1ObjectMeta(name="lab"))
        assert core.create_namespace(body).status.phase == "Active"
        names = [(event["type"], event["object"].metadata.name) for event in watch.Watch().stream(core.list_namespace, timeout_seconds=1)]
        assert names == [("ADDED", "default"), ("ADDED", "lab")]
        with pytest.raises(ApiException) as gone:
            list(watch.Watch().stream(core.list_namespaced_event, "default", resource_version="99999", timeout_seconds=2))
        assert gone.value.status == 410
        deployments = _deployments(connection, cache)
        deployments.create(body=deployment(), namespace="default")
        events = deployments.watch(namespace="default", timeout=1)
        assert [(event["type"], event["object"].metadata.name) for event in events] == [("ADDED", "qwen")]

    with_client(tmp_path, use)


def test_typed_clients_keep_secrets_and_configmaps(tmp_path: Path) -> None:
    def use(connection: Any, cache: Path) -> None:
        from kubernetes import client

        core = client.CoreV1Api(connection)
        metadata = client.V1ObjectMeta(name="keys")
        core.create_namespaced_secret("default", client.V1Secret(metadata=metadata, string_data={"password": "geheim"}))
        assert core.read_namespaced_secret("keys", "default").data == {"password": "Z2VoZWlt"}
        core.create_namespaced_config_map("default", client.V1ConfigMap(metadata=metadata, data={"a": "b"}))
        core.patch_namespaced_config_map("keys", "default", {"data": {"a": None, "c": "d"}})  # a strategic merge patch
        assert core.read_namespaced_config_map("keys", "default").data == {"c": "d"}

    with_client(tmp_path, use)


def test_an_informer_recovers_from_a_compaction(tmp_path: Path) -> None:
    """It was away while its place in the log was compacted: it lists again and misses neither what came nor what went."""

    def use(connection: Any, cache: Path) -> None:
        from kubernetes import client
        from kubernetes.client.exceptions import ApiException
        from kubernetes.informer import SharedInformer

        core = client.CoreV1Api(connection)

        def make(name: str) -> None:
            core.create_namespaced_config_map("default", client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name)))

        informer = SharedInformer(core.list_namespaced_config_map, namespace="default")
        changed = threading.Condition()
        for kind in ("ADDED", "MODIFIED", "DELETED"):
            informer.add_event_handler(kind, lambda _: _notify(changed))
        errors: list[Any] = []
        informer.add_event_handler("ERROR", errors.append)

        def until(*names: str) -> None:
            with changed:
                assert changed.wait_for(lambda: {one.metadata.name for one in informer.cache.list()} == set(names), WAIT_SECONDS)

        def stop(name: str) -> None:
            stopping = threading.Thread(target=informer.stop)
            stopping.start()
            make(name)  # The thread that reads a watch sees only at an event that it is to stop.
            stopping.join()

        informer.start()
        try:
            for name in ("stays", "goes"):
                make(name)
            until("stays", "goes")
            stop("while-away")
            core.delete_namespaced_config_map("goes", "default")
            for number in range(60):
                core.patch_namespaced_config_map("stays", "default", {"data": {"n": str(number)}})
            informer.start()
            until("stays", "while-away")
            assert [error.status for error in errors if isinstance(error, ApiException)] == [410]
        finally:
            stop("last")

    with_client(tmp_path, use, store_options={"log_events_max": 10})


def _notify(changed: threading.Condition) -> None:
    with changed:
        changed.notify_all()


def test_of_two_candidates_one_leads_until_it_fails(tmp_path: Path) -> None:
    def use(connection: Any, cache: Path) -> None:
        from kubernetes import client
        from kubernetes.leaderelection import electionconfig, leaderelection
        from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock

        leases = client.CoordinationV1Api(connection)
        leads = {name: threading.Event() for name in ("one", "two")}
        fail = {name: threading.Event() for name in leads}
        stopped = {name: threading.Event() for name in leads}

        def candidate(name: str) -> threading.Thread:
            def lead() -> None:
                leads[name].set()
                fail[name].wait(WAIT_SECONDS)
                raise RuntimeError("the work of the leader failed")

            lock = LeaseLock("work", "default", name)
            lock.api_instance = leases
            timing = {"lease_duration": 2, "renew_deadline": 1.5, "retry_period": 1}
            chosen = electionconfig.Config(lock, onstarted_leading=lead, onstopped_leading=stopped[name].set, **timing)
            thread = threading.Thread(target=leaderelection.LeaderElection(chosen).run)
            thread.start()
            return thread

        def holder() -> str:
            return str(leases.read_namespaced_lease("work", "default").spec.holder_identity)

        first = candidate("one")
        assert leads["one"].wait(WAIT_SECONDS)
        second = candidate("two")
        assert (holder(), leads["two"].is_set()) == ("one", False)
        fail["one"].set()
        assert leads["two"].wait(WAIT_SECONDS)
        assert (holder(), stopped["one"].is_set()) == ("two", True)
        fail["two"].set()
        first.join()
        second.join()

    with_client(tmp_path, use)


async def _use_async(api: RunningApi) -> None:
    from kubernetes.aio import client, config, dynamic, watch

    settings = client.Configuration()
    await config.load_kube_config(config_file=str(api.kubeconfig), client_configuration=settings)
    async with client.ApiClient(settings) as connection:
        dynamic_client = await dynamic.DynamicClient(connection)
        deployments = await dynamic_client.resources.get(api_version="rkfleet.dev/v1alpha1", kind="ModelDeployment")
        created = await deployments.create(body=deployment(replicas=2), namespace="default")
        assert created.spec.replicas == 2
        core = client.CoreV1Api(connection)
        version = (await core.list_namespace()).metadata.resource_version
        watching = watch.Watch()
        await core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name="lab")))
        async with watching.stream(core.list_namespace, resource_version=version, timeout_seconds=5) as events:
            async for event in events:
                assert (event["type"], event["object"].metadata.name) == ("ADDED", "lab")
                break
        await deployments.delete(name="qwen", namespace="default")
        assert (await deployments.get(namespace="default")).items == []


def test_the_asynchronous_client_works_too(tmp_path: Path) -> None:
    async def run() -> None:
        async with running_api(tmp_path) as api:
            await _use_async(api)

    asyncio.run(run())
