"""The official Python client against the API: it words its requests otherwise than kubectl does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import running_api
from tests.support.objects import deployment


def _use(kubeconfig: Path, cache: Path) -> None:
    """Do what scripts do; runs in a thread, the API serves in the loop."""
    from kubernetes import client, config, dynamic, watch
    from kubernetes.client.exceptions import ApiException
    from kubernetes.dynamic.exceptions import ConflictError, NotFoundError

    with config.new_client_from_config(str(kubeconfig)) as connection:
        dynamic_client = dynamic.DynamicClient(connection, cache_file=str(cache))
        deployments: Any = dynamic_client.resources.get(api_version="rkfleet.dev/v1alpha1", kind="ModelDeployment")
        created = deployments.create(body=deployment(replicas=2), namespace="default")
        assert created.spec.replicas == 2
        with pytest.raises(ConflictError):
            deployments.create(body=deployment(), namespace="default")
        patch = {"spec": {"replicas": 3}}
        patched = deployments.patch(name="qwen", namespace="default", body=patch, content_type="application/merge-patch+json")
        assert patched.metadata.generation == 2
        assert [one.metadata.name for one in deployments.get(namespace="default").items] == ["qwen"]
        assert deployments.scale.get(name="qwen", namespace="default").spec.replicas == 3
        deployments.delete(name="qwen", namespace="default")
        with pytest.raises(NotFoundError):
            deployments.get(name="qwen", namespace="default")

        core = client.CoreV1Api(connection)
        body = client.V1Namespace(metadata=client.V1ObjectMeta(name="lab"))
        assert core.create_namespace(body).status.phase == "Active"
        names = [(event["type"], event["object"].metadata.name) for event in watch.Watch().stream(core.list_namespace, timeout_seconds=1)]
        assert names == [("ADDED", "default"), ("ADDED", "lab")]
        with pytest.raises(ApiException) as gone:
            list(watch.Watch().stream(core.list_namespaced_event, "default", resource_version="99999", timeout_seconds=2))
        assert gone.value.status == 410


def test_the_python_client_works_as_with_a_cluster(tmp_path: Path) -> None:
    async def run() -> None:
        async with running_api(tmp_path) as api:
            await asyncio.to_thread(_use, api.kubeconfig, tmp_path / "discovery")

    asyncio.run(run())
