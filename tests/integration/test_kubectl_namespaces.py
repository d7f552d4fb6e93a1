"""Deleting a namespace takes everything in it along, and kubectl waits for it."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from controller.machinery.cache import Cache
from controller.machinery.manager import Manager
from controller.machinery.reconciler import Source, itself
from controller.reconcilers.act import Applier
from controller.reconcilers.garbage import GarbageReconciler
from controller.reconcilers.loops import OWNING_BUILT_INS, garbage_keys
from controller.reconcilers.namespaces import NamespaceReconciler
from controller.reconcilers.views import make_metadata_views
from rkfleet.clock import SystemClock
from rkfleet.kinds import KINDS, Namespace
from tests.support.api import new_id, running_api
from tests.support.kubectl import Kubectl
from tests.support.objects import GROUP_PATH, deployment, namespace

CORE = "/api/v1/namespaces/default"


class _Silent:
    """Takes events and forgets them."""

    def record(self, *arguments: Any, **keywords: Any) -> None:
        return


@pytest.mark.kubectl
def test_a_namespace_goes_after_everything_in_it(tmp_path: Path) -> None:
    async def run() -> None:
        clock = SystemClock()
        async with running_api(tmp_path) as api:
            kubectl = Kubectl(api.kubeconfig, tmp_path / "home")
            manager = Manager(clock=clock, random=random.Random(1))
            reconciler = NamespaceReconciler(api.store, KINDS, Applier(api.store, clock, new_id, _Silent()))
            namespaces = Cache(api.store, Namespace, clock=clock, random=random.Random(2))
            manager.add("namespace", reconciler, Source(namespaces, itself))
            running = asyncio.ensure_future(manager.run())
            try:
                await api.call("POST", "/api/v1/namespaces", namespace("lab"))
                inside = f"{GROUP_PATH}/namespaces/lab/modeldeployments"
                held = deployment("held", namespace="lab")
                held["metadata"]["finalizers"] = ["x.dev/hold"]
                for body in (held, deployment("plain", namespace="lab")):
                    assert (await api.call("POST", inside, body)).status_code == 201
                await kubectl.ok("create", "secret", "generic", "s", "--from-literal=k=v", "-n", "lab")
                await kubectl.ok("create", "configmap", "c", "-n", "lab")
                async with kubectl.started("delete", "namespace", "lab") as deleting, api.watch(inside) as following:
                    seen = [(await following())["type"] for _ in range(4)]
                    assert sorted(seen) == ["ADDED", "ADDED", "DELETED", "MODIFIED"]
                    terminating = (await api.call("GET", "/api/v1/namespaces/lab")).json()
                    assert terminating["status"]["phase"] == "Terminating"
                    assert (await api.call("POST", inside, deployment("late", namespace="lab"))).status_code == 403
                    merge = {"headers": {"content-type": "application/merge-patch+json"}}
                    await api.call("PATCH", f"{inside}/held", {"metadata": {"finalizers": None}}, **merge)
                    async with asyncio.timeout(10):
                        assert await deleting.wait() == 0
                assert (await api.call("GET", "/api/v1/namespaces/lab")).status_code == 404
                for kind in ("secrets", "configmaps"):
                    assert (await api.call("GET", f"/api/v1/{kind}")).json()["items"] == []
            finally:
                running.cancel()
                await asyncio.wait([running])

    asyncio.run(run())


@pytest.mark.kubectl
def test_built_in_kinds_own_and_are_owned(tmp_path: Path) -> None:
    """The three policies of a deletion end for them as for the fleet's own kinds."""

    async def run() -> None:
        clock = SystemClock()
        async with running_api(tmp_path) as api:
            kubectl = Kubectl(api.kubeconfig, tmp_path / "home")
            manager = Manager(clock=clock, random=random.Random(1))
            caches = make_metadata_views(api.store, OWNING_BUILT_INS, clock=clock, random=random.Random(2))
            garbage = GarbageReconciler(caches, api.store, KINDS, Applier(api.store, clock, new_id, _Silent()))
            manager.add("garbage", garbage, *(Source(cache, garbage_keys(garbage, KINDS)) for cache in caches))
            running = asyncio.ensure_future(manager.run())
            try:
                for policy in ("foreground", "background", "orphan"):
                    owner = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": policy}}
                    uid = (await api.call("POST", f"{CORE}/configmaps", owner)).json()["metadata"]["uid"]
                    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": policy, "uid": uid, "blockOwnerDeletion": True}
                    owned = {"metadata": {"name": policy, "ownerReferences": [reference]}, "stringData": {"k": "v"}}
                    async with api.watch(f"{CORE}/secrets") as following:
                        await api.call("POST", f"{CORE}/secrets", {"apiVersion": "v1", "kind": "Secret", **owned})
                        await kubectl.ok("delete", "configmap", policy, f"--cascade={policy}", "--timeout=10s")
                        last = "MODIFIED" if policy == "orphan" else "DELETED"
                        while (seen := await following())["type"] != last:
                            assert seen["type"] == "ADDED"
                    assert bool(seen["object"]["metadata"].get("ownerReferences")) == (policy != "orphan")
            finally:
                running.cancel()
                await asyncio.wait([running])

    asyncio.run(run())
