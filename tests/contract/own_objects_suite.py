"""What a store keeps that holds the objects itself, beyond what every store keeps: the caller's time and identity, and one counter."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from controller.store.base import Store
from rkfleet.errors import BadRequest, Conflict, Expired, Invalid
from tests.contract.store_suite import StoreSuite
from tests.support.stores import BOARDS, LATER, MODELS, NOW, Json, body, model, model_ref, take, with_store


class OwnObjectsSuite(StoreSuite):
    """All of both."""

    @with_store
    async def test_identity_and_time_are_the_callers(self, store: Store) -> None:
        item = await store.create(model_ref("a"), model("a", uid="second"))
        assert (item.uid, body(item)["metadata"]["creationTimestamp"]) == ("second", "2026-01-01T00:00:00Z")
        with pytest.raises(Conflict, match="uid is second, expected uid-b"):
            await store.patch(model_ref("a"), {"spec": {"family": "x"}}, uid="uid-b", now=NOW)
        with pytest.raises(Invalid, match="must be set by the caller of create"):
            await store.create(model_ref("b"), {"metadata": {"name": "b"}})

    @with_store
    async def test_an_object_is_marked_at_the_callers_time_and_no_other_generation(self, store: Store) -> None:
        obj: Json = model("a")
        obj["metadata"]["finalizers"] = ["x.dev/one"]
        await store.create(model_ref("a"), obj)
        marked = body(await store.delete(model_ref("a"), now=LATER))["metadata"]
        assert (marked["deletionTimestamp"], marked["generation"]) == ("2026-01-01T01:00:00Z", 1)
        with pytest.raises(Invalid, match="no new finalizers"):
            await store.patch(model_ref("a"), {"metadata": {"finalizers": ["x.dev/one", "x.dev/three"]}}, now=NOW)

    @with_store
    async def test_a_deletion_has_a_version_of_its_own(self, store: Store) -> None:
        created = await store.create(model_ref("a"), model("a"))
        assert (await store.delete(model_ref("a"), now=NOW)).resource_version != created.resource_version

    @with_store
    async def test_versions_are_one_rising_counter(self, store: Store) -> None:
        start = (await store.list(MODELS)).resource_version
        await asyncio.gather(*(store.create(model_ref(f"m{number}"), model(f"m{number}")) for number in range(20)))
        await asyncio.gather(*(store.delete(model_ref(f"m{number}"), now=NOW) for number in range(20)))
        watch = await store.watch(MODELS, resource_version=start)
        async with aclosing(watch):
            versions = [int(change.resource_version) for change in await take(watch, 40)]
        assert versions == sorted(set(versions))
        with pytest.raises(Expired):
            await store.watch(MODELS, resource_version=str(versions[-1] + 1))

    @with_store
    async def test_a_continue_token_says_whose_it_is(self, store: Store) -> None:
        for name in ("a", "b"):
            await store.create(model_ref(name), model(name))
        token = (await store.list(MODELS, limit=1)).continue_token
        with pytest.raises(BadRequest, match=r"not for boards\.rkfleet\.dev"):
            await store.list(BOARDS, limit=1, continue_token=token)
