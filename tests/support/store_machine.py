"""A store against a plain dictionary: whatever is done to it, in whatever order, over restarts, compaction and pages read meanwhile.

A subclass says by `opened` how its store is opened; `tests/property/test_store_machine.py` has one for each. The dictionary is `Known` by
name, and a list of every change; each rule does the same to both and compares.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, precondition, rule

from controller.store.base import Item, Page, Selection, Store, Watch
from rkfleet.errors import AlreadyExists, Conflict, Expired, NotFound
from rkfleet.meta import LabelSelector
from tests.support.stores import BOARDS, NOW, board, board_ref, body

__all__ = ["LOG_EVENTS", "StoreMachine"]

NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
SPECS = st.fixed_dictionaries({}, optional={"unschedulable": st.booleans(), "note": st.sampled_from(["x", "y"])})
LABELS = st.dictionaries(st.sampled_from(["k", "l"]), st.sampled_from(["1", "2"]), max_size=2)
SOCS = st.sampled_from(["rk3588", "rk3576", "cpu"])
HOLD, FOREGROUND, ORPHAN = "x.dev/hold", "foregroundDeletion", "orphan"
PROPAGATIONS = st.sampled_from(["Background", "Background", "Foreground", "Orphan"])
LOG_EVENTS = 15
READ_SECONDS_MAX = 10.0
WATCHES_MAX = 4

Propagation = Literal["Background", "Foreground", "Orphan"]
Told = tuple[str, str, str]
T = TypeVar("T")


class Known(msgspec.Struct, frozen=True):
    """What the dictionary holds of an object."""

    uid: str
    version: str
    spec: dict[str, Any]
    labels: dict[str, str]
    generation: int = 1
    soc: str = ""
    finalizers: frozenset[str] = frozenset()
    deleting: bool = False


class Happened(msgspec.Struct, frozen=True):
    """One change; `labels` are those before and after it, None for no object."""

    version: str
    type: str
    name: str
    labels: tuple[dict[str, str] | None, dict[str, str] | None]


class Reading(msgspec.Struct, frozen=True):
    """A list that is read page by page: what it must still show, and how many changes there were when it began."""

    page: Page
    rest: tuple[tuple[str, str], ...]
    selection: Selection
    limit: int
    began: int


class Following(msgspec.Struct, frozen=True):
    """A watch that is open, from so many changes on."""

    watch: Watch
    labels: dict[str, str]
    start: int
    opening: int


class StoreMachine(RuleBasedStateMachine):
    """See the module."""

    readings = Bundle("readings")
    followings = Bundle("followings")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        self.known: dict[str, Known] = {}
        self.log: list[Happened] = []
        self.uids = 0
        self.openings = 0
        self.open_watches: list[Watch] = []
        self.reopened_at = 0  # Changes before this were made by a process that is gone.
        self.open()
        self.start = self.do(self.store.list(BOARDS)).resource_version

    def opened(self) -> AbstractAsyncContextManager[Store]:
        """Open the store of this example, with an event log of `LOG_EVENTS`."""
        raise NotImplementedError

    def teardown(self) -> None:
        self.close()
        self.runner.close()
        shutil.rmtree(self.directory)

    @property
    def store(self) -> Store:
        """The store; several that are one may take turns."""
        return self.opened_store

    def open(self) -> None:
        self.stack = contextlib.AsyncExitStack()
        self.opened_store = self.do(self.stack.enter_async_context(self.opened()))

    def close(self) -> None:
        for watch in self.open_watches:
            self.do(watch.aclose())
        self.open_watches.clear()
        self.do(self.stack.aclose())

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def became(self, name: str, item: Item, **now: Any) -> None:
        """Note that a write changed an object, or made it."""
        before = self.known.get(name)
        after = Known(item.uid, **{"version": item.resource_version, **now}) if before is None else _replaced(before, item, now)
        self.known[name] = after
        labels = (before.labels if before else None, after.labels)
        self.log.append(Happened(item.resource_version, "MODIFIED" if before else "ADDED", name, labels))

    def went(self, name: str) -> None:
        """Note that an object is gone; with which version only a list tells everywhere."""
        gone = self.known.pop(name)
        version = self.do(self.store.list(BOARDS)).resource_version
        assert version != gone.version
        self.log.append(Happened(version, "DELETED", name, (gone.labels, None)))

    @initialize()
    def empty(self) -> None:
        assert list(self.do(self.store.list(BOARDS)).items) == []

    @rule(name=NAMES, spec=SPECS, labels=LABELS, held=st.booleans())
    def create(self, name: str, spec: dict[str, Any], labels: dict[str, str], held: bool) -> None:
        self.uids += 1
        obj = board(name, spec=spec, status={"soc": "ignored"})
        obj["metadata"] |= {"uid": f"u{self.uids}", "labels": labels, **({"finalizers": [HOLD]} if held else {})}
        try:
            item = self.do(self.store.create(board_ref(name), obj))
        except AlreadyExists:
            assert name in self.known
            return
        assert name not in self.known
        self.became(name, item, spec=spec, labels=labels, finalizers=frozenset({HOLD} if held else ()))

    @rule(name=NAMES, spec=SPECS, labels=LABELS, stale=st.booleans())
    def update(self, name: str, spec: dict[str, Any], labels: dict[str, str], stale: bool) -> None:
        known = self.known.get(name)
        version = "1000000" if stale else known.version if known else ""
        obj = board(name, spec=spec, status={"soc": "ignored"})
        obj["metadata"] |= {"labels": labels, "finalizers": sorted(known.finalizers) if known else []}
        try:
            item = self.do(self.store.update(board_ref(name), obj, resource_version=version, now=NOW))
        except NotFound:
            assert known is None
            return
        except Conflict:
            assert stale
            return
        assert known is not None
        assert not stale
        changed = (known.spec, known.labels) != (spec, labels)
        assert changed == (item.resource_version != known.version)
        if changed:
            self.became(name, item, spec=spec, labels=labels, generation=known.generation + (known.spec != spec))

    @rule(name=NAMES, note=st.sampled_from(["x", "y", None]), wanted=st.sampled_from(["x", "y", None, "any"]))
    def patch(self, name: str, note: str | None, wanted: str | None) -> None:
        """Only where the note is what is wanted of it."""
        known = self.known.get(name)
        when = {} if wanted == "any" else {"spec.note": wanted}
        try:
            item = self.do(self.store.patch(board_ref(name), {"spec": {"note": note}}, when=when, now=NOW))
        except NotFound:
            assert known is None
            return
        except Conflict:
            assert known is not None
            assert known.spec.get("note") != wanted
            return
        assert known is not None
        assert wanted in ("any", known.spec.get("note"))
        spec = {key: value for key, value in {**known.spec, "note": note}.items() if value is not None}
        assert (spec != known.spec) == (item.resource_version != known.version)
        if spec != known.spec:
            self.became(name, item, spec=spec, generation=known.generation + 1)

    @rule(name=NAMES, soc=SOCS, right=st.booleans())
    def report(self, name: str, soc: str, right: bool) -> None:
        known = self.known.get(name)
        uid = known.uid if known and right else "somebody"
        before = known.soc if known and known.soc else None
        try:
            item = self.do(self.store.patch_status(board_ref(name), uid, "agent", {"soc": soc}, (), when={"status.soc": before}, now=NOW))
        except NotFound:
            assert known is None or not right
            return
        assert known is not None
        if known.soc != soc:
            self.became(name, item, soc=soc)
        assert item.resource_version == self.known[name].version

    @rule(name=NAMES, soc=SOCS)
    def replace_status(self, name: str, soc: str) -> None:
        """What else the object says is not taken over."""
        known = self.known.get(name)
        obj = board(name, spec={"note": "ignored"}, status={"soc": soc})
        try:
            item = self.do(self.store.update(board_ref(name), obj, subresource="status", now=NOW))
        except NotFound:
            assert known is None
            return
        assert known is not None
        if known.soc != soc:
            self.became(name, item, soc=soc)

    @rule(name=NAMES)
    def release(self, name: str) -> None:
        known = self.known.get(name)
        try:
            item = self.do(self.store.patch(board_ref(name), {"metadata": {"finalizers": None}}, now=NOW))
        except NotFound:
            assert known is None
            return
        assert known is not None
        if known.finalizers and known.deleting:
            self.went(name)
        elif known.finalizers:
            self.became(name, item, finalizers=frozenset())

    @rule(name=NAMES, right=st.booleans(), propagation=PROPAGATIONS)
    def delete(self, name: str, right: bool, propagation: Propagation) -> None:
        known = self.known.get(name)
        uid = known.uid if known and right else "somebody"
        try:
            item = self.do(self.store.delete(board_ref(name), uid=uid, propagation=propagation, now=NOW))
        except NotFound:
            assert known is None
            return
        except Conflict:
            assert not right
            return
        assert known is not None
        asked = {"Background": set[str](), "Foreground": {FOREGROUND}, "Orphan": {ORPHAN}}[propagation]
        finalizers = frozenset((known.finalizers - {FOREGROUND, ORPHAN}) | asked)
        if not finalizers:
            self.went(name)
        elif not known.deleting or finalizers != known.finalizers:
            self.became(name, item, deleting=True, finalizers=finalizers)

    @rule()
    def reopen(self) -> None:
        self.close()
        self.openings += 1
        self.reopened_at = len(self.log)
        self.open()

    @precondition(lambda self: self.log)
    @rule(data=st.data(), labels=LABELS)
    def look_back(self, data: st.DataObject, labels: dict[str, str]) -> None:
        """From every point of the past: exactly what came after, or Expired when it is too long ago."""
        seen = data.draw(st.integers(0, len(self.log)))
        wanted = self.told(seen, labels)
        try:
            watch = self.do(self.store.watch(BOARDS, _selection(labels), resource_version=self.version_at(seen)))
            assert self.do(_read(watch, len(wanted))) == wanted
        except Expired:
            assert self.may_be_too_old(seen, labels)

    @precondition(lambda self: len(self.open_watches) < WATCHES_MAX)
    @rule(target=followings, labels=LABELS)
    def follow(self, labels: dict[str, str]) -> Following:
        """Open a watch that stays open while others write."""
        watch = self.do(self.store.watch(BOARDS, _selection(labels), resource_version=self.version_at(len(self.log))))
        self.open_watches.append(watch)
        return Following(watch, labels, len(self.log), self.openings)

    @rule(following=consumes(followings))
    def catch_up(self, following: Following) -> None:
        if following.opening != self.openings:
            return  # It ended with the store.
        wanted = self.told(following.start, following.labels)
        self.open_watches.remove(following.watch)
        try:
            assert self.do(_read(following.watch, len(wanted))) == wanted
        except Expired:
            assert self.may_be_too_old(following.start, following.labels)

    @rule(target=readings, labels=LABELS, limit=st.integers(1, 3))
    def first_page(self, labels: dict[str, str], limit: int) -> Any:
        selection = _selection(labels)
        page = self.do(self.store.list(BOARDS, selection, limit=limit))
        chosen = tuple((name, known.version) for name, known in sorted(self.known.items()) if labels.items() <= known.labels.items())
        return self.turned(Reading(page, chosen, selection, limit, len(self.log)))

    @rule(target=readings, reading=consumes(readings))
    def next_page(self, reading: Reading) -> Any:
        """However much was written since, it shows the moment of the first page, or says that this is too long ago."""
        try:
            token = reading.page.continue_token
            page = self.do(self.store.list(BOARDS, reading.selection, limit=reading.limit, continue_token=token))
        except Expired:
            assert self.may_be_too_old(reading.began, {"any": ""})
            return multiple()
        assert page.resource_version == reading.page.resource_version
        return self.turned(msgspec.structs.replace(reading, page=page))

    def turned(self, reading: Reading) -> Any:
        """Hold a page against what it must show; return what is still to be read."""
        found = [(item.ref.name, item.resource_version) for item in reading.page.items]
        assert found == list(reading.rest[: reading.limit])
        rest = reading.rest[reading.limit :]
        assert bool(reading.page.continue_token) == bool(rest)
        return msgspec.structs.replace(reading, rest=rest) if rest else multiple()

    @invariant()
    def same(self) -> None:
        page = self.do(self.store.list(BOARDS))
        assert page.resource_version == self.version_at(len(self.log))
        assert [item.ref.name for item in page.items] == sorted(self.known)
        for item in page.items:
            obj, known = body(item), self.known[item.ref.name]
            metadata = obj["metadata"]
            assert item.resource_version == metadata["resourceVersion"] == known.version
            assert (obj["spec"], obj.get("status", {}).get("soc", "")) == (known.spec, known.soc)
            assert (item.labels, metadata["uid"], metadata["generation"]) == (known.labels, known.uid, known.generation)
            assert ("deletionTimestamp" in metadata, frozenset(metadata.get("finalizers", ()))) == (known.deleting, known.finalizers)
            assert self.do(self.store.get(item.ref)) == item

    def version_at(self, changes: int) -> str:
        """Return the version after so many changes."""
        return self.log[changes - 1].version if changes else self.start

    def may_be_too_old(self, seen: int, labels: dict[str, str]) -> bool:
        """Whether the log may not tell any more what came after; of labels, it does not know what was there before a restart."""
        return len(self.log) - seen > LOG_EVENTS or (bool(labels) and seen < self.reopened_at)

    def told(self, seen: int, labels: dict[str, str]) -> list[Told]:
        """Return what a watch over labels tells of the changes after the first ones."""
        told = []
        for one in self.log[seen:]:
            was, is_ = (there is not None and labels.items() <= there.items() for there in one.labels)
            if was or is_:
                told.append((one.version, "MODIFIED" if was and is_ else "ADDED" if is_ else "DELETED", one.name))
        return told


def _selection(labels: dict[str, str]) -> Selection:
    return Selection(labels=LabelSelector(match_labels=labels))


def _replaced(before: Known, item: Item, now: dict[str, Any]) -> Known:
    assert item.uid == before.uid
    assert item.resource_version != before.version
    return msgspec.structs.replace(before, version=item.resource_version, **now)


async def _read(watch: Watch, count: int) -> list[Told]:
    """Read so many changes and end the watch."""
    changes: list[Told] = []
    async with contextlib.aclosing(watch), asyncio.timeout(READ_SECONDS_MAX):
        while len(changes) < count:
            change = await anext(aiter(watch))
            assert change.item is not None
            changes.append((change.resource_version, str(change.type), change.item.ref.name))
    return changes
