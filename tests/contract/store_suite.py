"""What every store keeps; see `controller.store.base`. A subclass gives the fixture `open_store`, which opens one and the same store.

The namespaces `NAMESPACES` exist in it. Uids are asked of what was created, because a server may have given them.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import msgspec
import pytest

from controller.store.base import OBJECT_BYTES_MAX, Selection, Store
from rkfleet.errors import AlreadyExists, BadRequest, Conflict, Expired, FleetError, Invalid, NotFound
from rkfleet.meta import LabelSelector, Ref, ResourceName, parse_selector
from tests.support.stores import (
    BOARDS,
    EVENTS,
    LATER,
    MODELS,
    NOW,
    Json,
    board,
    board_ref,
    body,
    model,
    model_ref,
    take,
    told,
    with_store,
)  # fmt: skip

REPLICAS = ResourceName("replicas.rkfleet.dev")


class Creating:
    """Create and get."""

    @with_store
    async def test_a_created_object_has_a_version_a_generation_and_its_kind(self, store: Store) -> None:
        item = await store.create(model_ref("a"), model("a"))
        obj = body(item)
        assert (obj["apiVersion"], obj["kind"]) == ("rkfleet.dev/v1alpha1", "Model")
        assert obj["metadata"]["namespace"] == "default"
        assert obj["metadata"]["generation"] == 1
        assert obj["metadata"]["resourceVersion"] == item.resource_version
        assert await store.get(model_ref("a")) == item

    @with_store
    async def test_status_is_dropped_on_create_unless_it_is_asked_for(self, store: Store) -> None:
        status = {"observedGeneration": 1}
        assert "status" not in body(await store.create(model_ref("a"), model("a", status=status)))
        assert body(await store.create(model_ref("b"), model("b", status=status), keep_status=True))["status"] == status

    @with_store
    async def test_a_name_is_taken_once(self, store: Store) -> None:
        first = await store.create(model_ref("a"), model("a"))
        with pytest.raises(AlreadyExists, match='"a" already exists'):
            await store.create(model_ref("a"), model("a", uid="other"))
        assert await store.get(model_ref("a")) == first

    @with_store
    async def test_the_same_name_in_another_namespace_is_another_object(self, store: Store) -> None:
        await store.create(model_ref("a", "one"), model("a"))
        await store.create(model_ref("a", "two"), model("a"))
        with pytest.raises(NotFound):
            await store.get(model_ref("a", "three"))

    @with_store
    async def test_what_the_store_sets_cannot_be_brought(self, store: Store) -> None:
        obj = model("a")
        obj["metadata"] |= {"resourceVersion": "77", "generation": 9, "deletionTimestamp": "2026-01-01T00:00:00Z"}
        metadata = body(await store.create(model_ref("a"), obj))["metadata"]
        assert (metadata["generation"], metadata.get("deletionTimestamp")) == (1, None)

    @pytest.mark.parametrize(
        ("ref", "obj", "why"),
        [
            (Ref(MODELS, "", "a"), model("a"), "must have a namespace"),
            (Ref(BOARDS, "default", "a"), board("a"), "cluster-scoped"),
            (model_ref("a"), model("b"), "'b' is not 'a'"),
            (model_ref(""), model(""), "must not be empty"),
            (model_ref("a"), {"spec": {}}, "metadata must be an object"),
            (model_ref("a"), model("a", spec={"family": "x" * OBJECT_BYTES_MAX}), "at most 1048576"),
            (model_ref("a"), model("a", labels={"a": 1}), "must map strings to strings"),  # type: ignore[dict-item]
        ],
    )
    def test_a_wrong_name_or_size_is_invalid(self, open_store, ref: Ref, obj: Json, why: str) -> None:  # type: ignore[no-untyped-def]
        async def scenario() -> None:
            async with open_store() as store:
                with pytest.raises(Invalid, match=why):
                    await store.create(ref, obj)

        asyncio.run(scenario())

    @with_store
    async def test_a_resource_that_nobody_serves_is_not_found(self, store: Store) -> None:
        with pytest.raises(NotFound):
            await store.create(Ref(ResourceName("pods"), "default", "a"), model("a"))
        with pytest.raises(NotFound):
            await store.get(Ref(ResourceName("pods"), "default", "a"))


class Updating:
    """Update and patch."""

    @with_store
    async def test_generation_rises_exactly_when_the_declared_part_changes(self, store: Store) -> None:
        await store.create(model_ref("a"), model("a"))
        labelled = await store.update(model_ref("a"), model("a", labels={"x": "y"}), now=NOW)
        changed = await store.update(model_ref("a"), model("a", labels={"x": "y"}, family="llama"), now=NOW)
        status = await store.update(model_ref("a"), model("a", status={"observedGeneration": 2}), subresource="status", now=NOW)
        assert [body(item)["metadata"]["generation"] for item in (labelled, changed, status)] == [1, 2, 2]

    @with_store
    async def test_spec_and_status_are_written_apart(self, store: Store) -> None:
        await store.create(model_ref("a"), model("a"))
        await store.update(model_ref("a"), model("a", family="gone", status={"observedGeneration": 3}), subresource="status", now=NOW)
        item = await store.update(model_ref("a"), model("a", family="llama", status={"observedGeneration": 4}), now=NOW)
        assert (body(item)["spec"]["family"], body(item)["status"]) == ("llama", {"observedGeneration": 3})
        assert body(await store.update(model_ref("a"), model("a"), now=NOW))["status"] == {"observedGeneration": 3}

    @with_store
    async def test_a_kind_without_the_status_subresource_is_one_piece(self, store: Store) -> None:
        ref = Ref(EVENTS, "default", "e")
        await store.create(ref, model("e", reason="Made", status={"a": 1}))
        item = await store.update(ref, model("e", reason="Changed", status={"a": 2}), now=NOW)
        assert (body(item)["reason"], body(item)["status"]) == ("Changed", {"a": 2})

    @with_store
    async def test_a_stale_version_or_another_uid_conflicts_and_changes_nothing(self, store: Store) -> None:
        first = await store.create(model_ref("a"), model("a"))
        second = await store.update(
            model_ref("a"), model("a", family="llama"), resource_version=first.resource_version, uid=first.uid, now=NOW
        )
        with pytest.raises(Conflict, match="has been modified"):
            await store.update(model_ref("a"), model("a"), resource_version=first.resource_version, now=NOW)
        with pytest.raises(Conflict, match="uid"):
            await store.patch(model_ref("a"), {"spec": {"family": "x"}}, uid="uid-b", now=NOW)
        assert await store.get(model_ref("a")) == second

    @with_store
    async def test_what_is_not_there_cannot_be_changed(self, store: Store) -> None:
        for write in (
            store.update(model_ref("a"), model("a"), now=NOW),
            store.patch(model_ref("a"), {}, now=NOW),
            store.patch_status(model_ref("a"), "uid-a", "model", {}, (), now=NOW),
            store.delete(model_ref("a"), now=NOW),
        ):
            with pytest.raises(NotFound):
                await write

    @with_store
    async def test_identity_and_birth_survive_an_update(self, store: Store) -> None:
        first = body(await store.create(model_ref("a"), model("a")))
        obj: Json = {"apiVersion": "v1", "kind": "Board", "metadata": {"name": "b", "uid": "new", "generation": 7}, "spec": {"family": "x"}}
        second = body(await store.update(model_ref("a"), obj, now=NOW))
        kept = ("name", "namespace", "uid", "creationTimestamp")
        assert {field: second["metadata"][field] for field in kept} == {field: first["metadata"][field] for field in kept}
        assert (second["kind"], second["metadata"]["generation"]) == ("Model", 2)

    @with_store
    async def test_a_write_that_changes_nothing_is_not_seen(self, store: Store) -> None:
        first = await store.create(model_ref("a"), model("a", labels={"x": "y"}))
        watch = await store.watch(MODELS, resource_version=first.resource_version)
        async with aclosing(watch):
            assert await store.update(model_ref("a"), model("a", labels={"x": "y"}), now=LATER) == first
            assert await store.patch(model_ref("a"), {"spec": {"family": "qwen2", "license": None}}, now=LATER) == first
            await store.create(model_ref("b"), model("b"))
            assert told(await take(watch, 1)) == [("ADDED", "b")]

    @with_store
    async def test_what_is_empty_in_metadata_is_not_there(self, store: Store) -> None:
        """As in Kubernetes, so a client that writes out empty lists changes nothing by it."""
        obj = model("a")
        obj["metadata"] |= {"labels": {}, "annotations": {}, "finalizers": [], "ownerReferences": []}
        first = await store.create(model_ref("a"), obj)
        assert body(first)["metadata"].keys().isdisjoint(("labels", "annotations", "finalizers", "ownerReferences"))
        assert await store.update(model_ref("a"), obj, now=LATER) == first

    @with_store
    async def test_one_and_true_are_different_values(self, store: Store) -> None:
        first = await store.create(model_ref("a"), model("a", spec={"number": 1}))
        second = await store.patch(model_ref("a"), {"spec": {"number": True}}, now=NOW)
        assert body(second)["metadata"]["generation"] == 2
        assert first.resource_version != second.resource_version

    @with_store
    async def test_a_merge_patch_keeps_what_it_does_not_name(self, store: Store) -> None:
        await store.create(model_ref("a"), model("a", spec={"family": "qwen2", "unknown": {"deep": [1, 2], "other": 1}}))
        item = await store.patch(model_ref("a"), {"spec": {"family": None, "unknown": {"deep": [3]}}}, now=NOW)
        assert body(item)["spec"] == {"unknown": {"deep": [3], "other": 1}}

    @with_store
    async def test_a_patch_is_bound_to_what_it_expects(self, store: Store) -> None:
        await store.create(board_ref("b"), board("b", status={"session": {"number": 12}}), keep_status=True)
        wrong: list[Json] = [
            {"status.session.number": 11},
            {"status.session.number": None},
            {"status.session": None},
            {"status.soc": "cpu"},
        ]
        for when in wrong:
            with pytest.raises(Conflict, match="expected"):
                await store.patch(board_ref("b"), {"spec": {"unschedulable": True}}, when=when, now=NOW)
        right = {"status.session.number": 12, "status.assignment.number": None}
        assert (
            body(await store.patch(board_ref("b"), {"spec": {"unschedulable": True}}, when=right, now=NOW))["metadata"]["generation"] == 2
        )

    @with_store
    async def test_conditions_without_a_time_get_one_when_their_status_moves(self, store: Store) -> None:
        await store.create(model_ref("a"), model("a"))

        async def ready(status: str, now: object) -> str:
            patch = {"status": {"conditions": [{"type": "Ready", "status": status, "reason": "Because"}]}}
            item = await store.patch(model_ref("a"), patch, subresource="status", now=now)  # type: ignore[arg-type]
            return str(body(item)["status"]["conditions"][0]["lastTransitionTime"])

        assert await ready("True", NOW) == "2026-01-01T00:00:00Z"
        assert await ready("True", LATER) == "2026-01-01T00:00:00Z"
        assert await ready("False", LATER) == "2026-01-01T01:00:00Z"

    @with_store
    async def test_of_many_who_expect_the_same_exactly_one_wins(self, store: Store) -> None:
        uid = (await store.create(board_ref("b"), board("b", status={"session": {"number": 1}}), keep_status=True)).uid

        async def take_session(controller: str) -> str:
            session = {"session": {"controller": controller, "number": 2}}
            try:
                await store.patch_status(board_ref("b"), uid, "session", session, (), when={"status.session.number": 1}, now=NOW)
            except Conflict:
                return ""
            return controller

        won = [name for name in await asyncio.gather(*(take_session(f"c-{number}") for number in range(20))) if name]
        assert won == [body(await store.get(board_ref("b")))["status"]["session"]["controller"]]

    @with_store
    async def test_concurrent_increments_with_conflicts_lose_nothing(self, store: Store) -> None:
        await store.create(model_ref("a"), model("a", spec={"number": 0}))

        async def increment() -> None:
            while True:
                item = await store.get(model_ref("a"))
                number = body(item)["spec"]["number"] + 1
                try:
                    await store.patch(model_ref("a"), {"spec": {"number": number}}, resource_version=item.resource_version, now=NOW)
                except Conflict:
                    continue
                return

        await asyncio.gather(*(increment() for _ in range(20)))
        assert body(await store.get(model_ref("a")))["spec"]["number"] == 20


class OwningStatus:
    """`patch_status`."""

    READY: Json = {"type": "Ready", "status": "True", "reason": "SessionOpen", "message": ""}
    PRESSURE: Json = {"type": "DiskPressure", "status": "False", "reason": "Sufficient", "message": ""}

    @with_store
    async def test_an_owner_replaces_what_it_owns_and_nothing_else(self, store: Store) -> None:
        uid = (await store.create(board_ref("b"), board("b"))).uid
        await store.patch_status(board_ref("b"), uid, "health", {"observedGeneration": 1}, [self.READY], now=NOW)
        await store.patch_status(board_ref("b"), uid, "agent", {"soc": "cpu", "simulated": True}, [self.PRESSURE], now=NOW)
        status = body(await store.patch_status(board_ref("b"), uid, "agent", {"soc": "rk3588"}, [], now=LATER))["status"]
        assert status == {
            "observedGeneration": 1,
            "soc": "rk3588",
            "conditions": [{**self.READY, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        }

    @with_store
    async def test_a_transition_time_moves_with_the_status_only(self, store: Store) -> None:
        uid = (await store.create(board_ref("b"), board("b"))).uid
        times = []
        for status, reason, now in (("True", "SessionOpen", NOW), ("True", "Other", LATER), ("False", "BoardLost", LATER)):
            condition = {**self.READY, "status": status, "reason": reason}
            item = await store.patch_status(board_ref("b"), uid, "health", {}, [condition], now=now)
            times.append(body(item)["status"]["conditions"][0]["lastTransitionTime"])
        assert times == ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"]

    @with_store
    async def test_the_same_status_again_changes_nothing(self, store: Store) -> None:
        uid = (await store.create(board_ref("b"), board("b"))).uid
        first = await store.patch_status(board_ref("b"), uid, "health", {"observedGeneration": 1}, [self.READY], now=NOW)
        assert await store.patch_status(board_ref("b"), uid, "health", {"observedGeneration": 1}, [self.READY], now=LATER) == first
        assert body(first)["metadata"]["generation"] == 1

    @with_store
    async def test_a_namesake_with_another_uid_is_not_found(self, store: Store) -> None:
        await store.create(board_ref("b"), board("b"))
        with pytest.raises(NotFound, match="with uid uid-old"):
            await store.patch_status(board_ref("b"), "uid-old", "health", {}, (), now=NOW)

    @with_store
    async def test_status_of_others_is_refused(self, store: Store) -> None:
        uid = (await store.create(board_ref("b"), board("b"))).uid
        with pytest.raises(Invalid, match="'agent' does not own Ready, session"):
            await store.patch_status(board_ref("b"), uid, "agent", {"session": {}}, [self.READY], now=NOW)
        with pytest.raises(Invalid, match="'nobody' does not own anything"):
            await store.patch_status(board_ref("b"), uid, "nobody", {}, (), now=NOW)

    @with_store
    async def test_a_status_is_bound_to_what_it_expects(self, store: Store) -> None:
        uid = (await store.create(board_ref("b"), board("b", status={"session": {"number": 2}}), keep_status=True)).uid
        with pytest.raises(Conflict, match=r"status.session.number is 2, expected 1"):
            await store.patch_status(board_ref("b"), uid, "health", {}, [self.READY], when={"status.session.number": 1}, now=NOW)


class Deleting:
    """Delete and finalizers."""

    @with_store
    async def test_a_deleted_object_is_gone_and_its_last_state_is_the_answer(self, store: Store) -> None:
        created = await store.create(model_ref("a"), model("a"))
        deleted = await store.delete(model_ref("a"), now=NOW)
        assert body(deleted)["spec"] == body(created)["spec"]
        assert deleted.uid == created.uid
        for use in (store.get(model_ref("a")), store.delete(model_ref("a"), now=NOW)):
            with pytest.raises(NotFound):
                await use

    @with_store
    async def test_a_deletion_is_bound_to_uid_and_version(self, store: Store) -> None:
        item = await store.create(model_ref("a"), model("a"))
        with pytest.raises(Conflict):
            await store.delete(model_ref("a"), uid="uid-b", now=NOW)
        with pytest.raises(Conflict):
            await store.delete(model_ref("a"), resource_version=item.resource_version + "0", now=NOW)
        await store.delete(model_ref("a"), uid=item.uid, resource_version=item.resource_version, now=NOW)

    @with_store
    async def test_finalizers_hold_an_object_until_the_last_is_gone(self, store: Store) -> None:
        obj = model("a")
        obj["metadata"]["finalizers"] = ["x.dev/one", "x.dev/two"]
        await store.create(model_ref("a"), obj)
        marked = body(await store.delete(model_ref("a"), now=NOW))["metadata"]
        assert (bool(marked["deletionTimestamp"]), marked["deletionGracePeriodSeconds"]) == (True, 0)
        again = body(await store.delete(model_ref("a"), now=LATER))["metadata"]
        assert again == marked
        with pytest.raises(Invalid, match="finalizer"):
            await store.patch(model_ref("a"), {"metadata": {"finalizers": ["x.dev/one", "x.dev/three"]}}, now=NOW)
        await store.patch(model_ref("a"), {"metadata": {"finalizers": ["x.dev/two"]}}, now=NOW)
        last = await store.patch(model_ref("a"), {"metadata": {"finalizers": None}}, now=NOW)
        assert "finalizers" not in body(last)["metadata"]
        with pytest.raises(NotFound):
            await store.get(model_ref("a"))

    @pytest.mark.parametrize(("propagation", "finalizer"), [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")])
    def test_garbage_collection_is_asked_by_a_finalizer(self, open_store, propagation, finalizer) -> None:  # type: ignore[no-untyped-def]
        async def scenario() -> None:
            async with open_store() as store:
                await store.create(model_ref("a"), model("a"))
                marked = await store.delete(model_ref("a"), propagation=propagation, now=NOW)
                assert body(marked)["metadata"]["finalizers"] == [finalizer]
                await store.delete(model_ref("a"), propagation="Background", now=NOW)
                with pytest.raises(NotFound):
                    await store.get(model_ref("a"))

        asyncio.run(scenario())

    @with_store
    async def test_a_name_is_free_again_after_deletion(self, store: Store) -> None:
        first = await store.create(model_ref("a"), model("a"))
        await store.delete(model_ref("a"), now=NOW)
        assert (await store.create(model_ref("a"), model("a", uid="second"))).uid != first.uid


class Listing:
    """List, selections and pages."""

    @with_store
    async def test_a_list_is_ordered_by_namespace_and_name(self, store: Store) -> None:
        names = [("b", "1"), ("a", "2"), ("a", "10"), ("a-b", "1"), ("a", "1")]
        for namespace, name in names:
            await store.create(model_ref(name, namespace), model(name))
        await store.create(board_ref("1"), board("1"))
        page = await store.list(MODELS)
        assert [(item.ref.namespace, item.ref.name) for item in page.items] == sorted(names)
        assert [item.ref.name for item in (await store.list(MODELS, Selection(namespace="a"))).items] == ["1", "10", "2"]

    @with_store
    async def test_a_selection_chooses_by_labels_and_fields(self, store: Store) -> None:
        await store.create(model_ref("a"), model("a", labels={"tier": "small"}, spec={"family": "qwen2", "n": 1, "ok": True}))
        await store.create(model_ref("b"), model("b", labels={"tier": "big"}, spec={"family": "llama"}))
        await store.create(model_ref("c", "other"), model("c", spec={"family": "qwen2 two"}))

        async def names(labels: LabelSelector = LabelSelector(), *fields: tuple[tuple[str, ...], str, bool]) -> str:
            return "".join(item.ref.name for item in (await store.list(MODELS, Selection("", labels, fields))).items)

        assert await names(parse_selector("tier in (small,big),tier!=big")) == "a"
        assert await names(parse_selector("!tier")) == "c"
        assert await names(LabelSelector(), (("spec", "family"), "qwen2", True)) == "a"
        assert await names(LabelSelector(), (("spec", "family"), "qwen2 two", True)) == "c"
        assert await names(LabelSelector(), (("spec", "family"), "qwen2", False)) == "bc"
        assert await names(LabelSelector(), (("spec", "n"), "1", True)) == "a"
        assert await names(LabelSelector(), (("spec", "ok"), "true", True)) == "a"
        assert await names(LabelSelector(), (("spec", "absent"), "", True)) == "abc"
        assert await names(LabelSelector(), (("spec", "family", "deeper"), "", False)) == ""
        assert await names(LabelSelector(), (("metadata", "name"), "b", True)) == "b"
        assert await names(LabelSelector(), (("metadata", "namespace"), "default", False)) == "c"

    @with_store
    async def test_replicas_are_chosen_by_their_board_as_it_is_now(self, store: Store) -> None:
        """A field that is asked for often may be found another way; the answer is that of every other field."""

        def on(board: object) -> Selection:
            return Selection(fields=((("spec", "boardName"), str(board), True),))

        async def names(board: object, namespace: str = "") -> str:
            page = await store.list(REPLICAS, msgspec.structs.replace(on(board), namespace=namespace))
            return "".join(item.ref.name for item in page.items)

        for name, placed in (("c", "b-1"), ("a", "b-1"), ("b", "b-2"), ("d", None), ("e", 7), ("f", {"x": 1}), ("g", "")):
            spec = {} if placed is None else {"boardName": placed}
            await store.create(Ref(REPLICAS, "default", name), {**model(name), "spec": spec})
        await store.create(Ref(REPLICAS, "other", "h"), {**model("h"), "spec": {"boardName": "b-1"}})
        assert [await names("b-1"), await names("b-1", "default"), await names("b-2"), await names(7)] == ["ach", "ac", "b", "e"]
        assert [await names(""), await names("b-9")] == ["dfg", ""]
        first = await store.list(REPLICAS, on("b-1"), limit=1)
        await store.patch(Ref(REPLICAS, "default", "c"), {"spec": {"boardName": "b-2"}}, now=NOW)
        await store.delete(Ref(REPLICAS, "default", "b"), now=NOW)
        assert [await names("b-1"), await names("b-2")] == ["ah", "c"]
        rest = await store.list(REPLICAS, on("b-1"), limit=5, continue_token=first.continue_token)
        assert [item.ref.name for item in (*first.items, *rest.items)] == ["a", "c", "h"], "pages show one moment"

    @with_store
    async def test_pages_show_one_moment_although_others_write(self, store: Store) -> None:
        for number in range(10):
            await store.create(model_ref(f"m{number}"), model(f"m{number}"))
        whole = await store.list(MODELS)
        page = await store.list(MODELS, limit=3)
        assert (len(page.items), page.remaining, page.resource_version) == (3, 7, whole.resource_version)
        await store.delete(model_ref("m4"), now=NOW)
        await store.delete(model_ref("m1"), now=NOW)
        await store.create(model_ref("m45"), model("m45"))
        await store.update(model_ref("m7"), model("m7", family="llama"), now=NOW)
        seen, pages = list(page.items), 1
        while page.continue_token:
            page = await store.list(MODELS, limit=3, continue_token=page.continue_token)
            seen += page.items
            pages += 1
            assert page.resource_version == whole.resource_version
        assert (seen, pages, page.remaining) == (list(whole.items), 4, 0)
        watch = await store.watch(MODELS, resource_version=page.resource_version)
        async with aclosing(watch):
            assert told(await take(watch, 4)) == [("DELETED", "m4"), ("DELETED", "m1"), ("ADDED", "m45"), ("MODIFIED", "m7")]

    @with_store
    async def test_pages_of_a_selection_do_not_count_the_rest(self, store: Store) -> None:
        for number in range(6):
            await store.create(model_ref(f"m{number}"), model(f"m{number}", labels={"odd": str(number % 2)}))
        selection = Selection(labels=parse_selector("odd=1"))
        page = await store.list(MODELS, selection, limit=2)
        assert ([item.ref.name for item in page.items], page.remaining) == (["m1", "m3"], None)
        page = await store.list(MODELS, selection, limit=2, continue_token=page.continue_token)
        assert ([item.ref.name for item in page.items], page.continue_token) == (["m5"], "")

    @with_store
    async def test_a_continue_token_of_somebody_else_is_a_bad_request(self, store: Store) -> None:
        for number in range(2):
            await store.create(model_ref(f"m{number}"), model(f"m{number}"))
        token = (await store.list(MODELS, limit=1)).continue_token
        for wrong in ("x", "é", "W10", "bm90IGpzb24"):
            with pytest.raises(BadRequest):
                await store.list(MODELS, limit=1, continue_token=wrong)
        with pytest.raises(BadRequest):
            await store.list(BOARDS, limit=1, continue_token=token)

    @with_store
    async def test_what_was_acknowledged_is_read(self, store: Store) -> None:
        async def write_and_read(number: int) -> None:
            item = await store.create(model_ref(f"m{number}"), model(f"m{number}"))
            assert await store.get(item.ref) == item
            assert item in (await store.list(MODELS)).items
            await store.delete(item.ref, now=NOW)
            assert item.ref not in [found.ref for found in (await store.list(MODELS)).items]

        await asyncio.gather(*(write_and_read(number) for number in range(30)))


class Watching:
    """Watches."""

    @with_store
    async def test_a_watch_delivers_exactly_what_came_after_in_order(self, store: Store) -> None:
        await store.create(model_ref("before"), model("before"))
        start = (await store.list(MODELS)).resource_version
        await asyncio.gather(*(store.create(model_ref(f"m{number}"), model(f"m{number}")) for number in range(20)))
        early = await store.watch(MODELS, resource_version=start)
        await asyncio.gather(*(store.patch(model_ref(f"m{number}"), {"spec": {"n": number}}, now=NOW) for number in range(20)))
        await store.create(board_ref("b"), board("b"))
        await asyncio.gather(*(store.delete(model_ref(f"m{number}"), now=NOW) for number in range(20)))
        late = await store.watch(MODELS, resource_version=start)
        async with aclosing(early), aclosing(late):
            changes = await take(early, 60)
            assert changes == await take(late, 60)
        assert [change.type for change in changes] == ["ADDED"] * 20 + ["MODIFIED"] * 20 + ["DELETED"] * 20
        assert len({change.resource_version for change in changes}) == 60
        assert all(change.item and change.item.resource_version == change.resource_version for change in changes)

    @with_store
    async def test_a_watch_resumes_from_any_version_it_saw(self, store: Store) -> None:
        start = (await store.list(MODELS)).resource_version
        for number in range(5):
            await store.create(model_ref(f"m{number}"), model(f"m{number}"))
        watch = await store.watch(MODELS, resource_version=start)
        async with aclosing(watch):
            changes = await take(watch, 5)
        for seen, change in enumerate(changes[:-1], start=1):
            resumed = await store.watch(MODELS, resource_version=change.resource_version)
            async with aclosing(resumed):
                assert await take(resumed, 5 - seen) == changes[seen:]

    @with_store
    async def test_an_object_that_starts_or_stops_to_match_is_added_or_deleted(self, store: Store) -> None:
        start = (await store.list(MODELS)).resource_version
        watch = await store.watch(MODELS, Selection(labels=parse_selector("on=yes")), resource_version=start)
        async with aclosing(watch):
            await store.create(model_ref("a"), model("a"))
            await store.update(model_ref("a"), model("a", labels={"on": "yes"}), now=NOW)
            await store.update(model_ref("a"), model("a", labels={"on": "yes"}, family="llama"), now=NOW)
            await store.update(model_ref("a"), model("a", labels={"on": "no"}), now=NOW)
            await store.delete(model_ref("a"), now=NOW)
            await store.create(model_ref("b"), model("b", labels={"on": "yes"}))
            await store.delete(model_ref("b"), now=NOW)
            expected = [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a"), ("ADDED", "b"), ("DELETED", "b")]
            assert told(await take(watch, 5)) == expected

    @with_store
    async def test_a_watch_of_one_name_or_namespace_sees_nothing_else(self, store: Store) -> None:
        start = (await store.list(MODELS)).resource_version
        named = await store.watch(MODELS, Selection(fields=((("metadata", "name"), "a", True),)), resource_version=start)
        spaced = await store.watch(MODELS, Selection(namespace="one"), resource_version=start)
        async with aclosing(named), aclosing(spaced):
            for namespace, name in (("one", "a"), ("two", "a"), ("one", "b"), ("two", "b")):
                await store.create(model_ref(name, namespace), model(name))
            assert [str(change.item.ref) for change in await take(named, 2) if change.item] == [
                "models.rkfleet.dev/one/a",
                "models.rkfleet.dev/two/a",
            ]
            assert told(await take(spaced, 2)) == [("ADDED", "a"), ("ADDED", "b")]

    @with_store
    async def test_a_version_from_another_time_is_expired(self, store: Store) -> None:
        item = await store.create(model_ref("a"), model("a"))

        async def watch_from(version: str) -> None:
            """Some stores know at once that a version is too old, others when they are asked for the first change."""
            watch = await store.watch(MODELS, resource_version=version)
            async with aclosing(watch):
                await take(watch, 1)

        with pytest.raises(Expired):
            await watch_from(item.resource_version + "0")
        with pytest.raises(BadRequest):
            await store.watch(MODELS, resource_version="yesterday")

    @with_store
    async def test_a_closed_watch_ends_a_waiting_iteration(self, store: Store) -> None:
        watch = await store.watch(MODELS, resource_version=(await store.list(MODELS)).resource_version)

        async def iterate() -> list[object]:
            return [change async for change in watch]

        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(iterate())
            await store.create(board_ref("b"), board("b"))
            await watch.aclose()
        assert waiting.result() == []

    @with_store
    async def test_a_watch_that_sees_nothing_gets_bookmarks_to_resume_from(self, store: Store) -> None:
        start = (await store.list(BOARDS)).resource_version
        watch = await store.watch(BOARDS, resource_version=start, bookmarks=True)
        async with aclosing(watch):
            for batch in range(3):
                await asyncio.gather(*(store.create(model_ref(f"m{batch}-{n}"), model(f"m{batch}-{n}")) for n in range(400)))
            (bookmark,) = await take(watch, 1)
        assert (bookmark.type, bookmark.item) == ("BOOKMARK", None)
        await store.create(board_ref("b"), board("b"))
        resumed = await store.watch(BOARDS, resource_version=bookmark.resource_version)
        async with aclosing(resumed):
            assert told(await take(resumed, 1)) == [("ADDED", "b")]

    @with_store
    async def test_a_refused_write_is_seen_by_no_watch(self, store: Store) -> None:
        start = (await store.list(MODELS)).resource_version
        results = await asyncio.gather(*(store.create(model_ref("a"), model("a", uid=f"u{n}")) for n in range(10)), return_exceptions=True)
        assert sum(isinstance(result, FleetError) for result in results) == 9
        await store.create(model_ref("b"), model("b"))
        watch = await store.watch(MODELS, resource_version=start)
        async with aclosing(watch):
            assert told(await take(watch, 2)) == [("ADDED", "a"), ("ADDED", "b")]


class StoreSuite(Creating, Updating, OwningStatus, Deleting, Listing, Watching):
    """All of it."""
