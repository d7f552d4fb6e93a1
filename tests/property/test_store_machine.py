"""The store against a plain dictionary: whatever is done to it, in whatever order, across restarts."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from controller.store.base import Selection, Watch
from controller.store.sql.store import SqlStore
from rkfleet.errors import AlreadyExists, Conflict, Expired, NotFound
from rkfleet.kinds import KINDS
from rkfleet.meta import LabelSelector
from tests.support.stores import BOARDS, NOW, board, board_ref, body

NAMES = st.sampled_from(["a", "b", "c", "d"])
SPECS = st.fixed_dictionaries({}, optional={"unschedulable": st.booleans(), "note": st.sampled_from(["x", "y"])})
LABELS = st.dictionaries(st.sampled_from(["k", "l"]), st.sampled_from(["1", "2"]), max_size=2)
SOCS = st.sampled_from(["rk3588", "rk3576", "cpu"])
LOG_EVENTS = 15


class Known(msgspec.Struct):
    """What the dictionary holds of an object."""

    uid: str
    version: str
    spec: dict[str, Any]
    labels: dict[str, str]
    generation: int = 1
    soc: str = ""
    deleting: bool = False
    held: bool = False


class StoreMachine(RuleBasedStateMachine):
    """Each rule does the same to both and compares."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        self.known: dict[str, Known] = {}
        self.log: list[tuple[str, str, str]] = []  # Version, type and name of every change.
        self.uids = 0
        self.open()

    def teardown(self) -> None:
        self.close()
        self.runner.close()
        shutil.rmtree(self.directory)

    def open(self) -> None:
        self.stack = contextlib.AsyncExitStack()
        context = SqlStore.open(self.directory / "store.db", KINDS, log_events_max=LOG_EVENTS)
        self.store: SqlStore = self.runner.run(self.stack.enter_async_context(context))

    def close(self) -> None:
        self.runner.run(self.stack.aclose())

    def saw(self, type: str, name: str, item: Any) -> None:
        self.log.append((item.resource_version, type, name))
        if name in self.known:
            self.known[name].version = item.resource_version

    @initialize()
    def empty(self) -> None:
        assert self.runner.run(self.store.list(BOARDS)).items == []

    @rule(name=NAMES, spec=SPECS, labels=LABELS, held=st.booleans())
    def create(self, name: str, spec: dict[str, Any], labels: dict[str, str], held: bool) -> None:
        self.uids += 1
        obj = board(name, spec=spec, status={"soc": "ignored"})
        obj["metadata"] |= {"uid": f"u{self.uids}", "labels": labels, **({"finalizers": ["x.dev/hold"]} if held else {})}
        try:
            item = self.runner.run(self.store.create(board_ref(name), obj))
        except AlreadyExists:
            assert name in self.known
            return
        assert name not in self.known
        self.known[name] = Known(f"u{self.uids}", item.resource_version, spec, labels, held=held)
        self.saw("ADDED", name, item)

    @rule(name=NAMES, spec=SPECS, labels=LABELS, stale=st.booleans())
    def update(self, name: str, spec: dict[str, Any], labels: dict[str, str], stale: bool) -> None:
        known = self.known.get(name)
        version = "1000000" if stale else known.version if known else ""
        obj = board(name, spec=spec, status={"soc": "ignored"})
        obj["metadata"] |= {"labels": labels, **({"finalizers": ["x.dev/hold"]} if known and known.held else {})}
        try:
            item = self.runner.run(self.store.update(board_ref(name), obj, resource_version=version, now=NOW))
        except NotFound:
            assert known is None
            return
        except Conflict:
            assert stale
            return
        assert known is not None
        assert not stale
        if item.resource_version == known.version:
            assert (known.spec, known.labels) == (spec, labels)
            return
        assert (known.spec, known.labels) != (spec, labels)
        known.generation += known.spec != spec
        known.spec, known.labels = spec, labels
        self.saw("MODIFIED", name, item)

    @rule(name=NAMES, soc=SOCS, right=st.booleans())
    def report(self, name: str, soc: str, right: bool) -> None:
        known = self.known.get(name)
        uid = known.uid if known and right else "somebody"
        before = known.soc if known and known.soc else None
        try:
            item = self.runner.run(
                self.store.patch_status(board_ref(name), uid, "agent", {"soc": soc}, (), when={"status.soc": before}, now=NOW)
            )
        except NotFound:
            assert known is None or not right
            return
        assert known is not None
        if known.soc != soc:
            known.soc = soc
            self.saw("MODIFIED", name, item)
        assert item.resource_version == known.version

    @rule(name=NAMES)
    def release(self, name: str) -> None:
        known = self.known.get(name)
        try:
            item = self.runner.run(self.store.patch(board_ref(name), {"metadata": {"finalizers": None}}, now=NOW))
        except NotFound:
            assert known is None
            return
        assert known is not None
        if known.held:
            known.held = False
            if known.deleting:
                del self.known[name]
            self.saw("DELETED" if known.deleting else "MODIFIED", name, item)

    @rule(name=NAMES, right=st.booleans())
    def delete(self, name: str, right: bool) -> None:
        known = self.known.get(name)
        try:
            item = self.runner.run(self.store.delete(board_ref(name), uid=known.uid if known and right else "somebody", now=NOW))
        except NotFound:
            assert known is None
            return
        except Conflict:
            assert not right
            return
        assert known is not None
        if not known.held:
            del self.known[name]
            self.saw("DELETED", name, item)
        elif not known.deleting:
            known.deleting = True
            self.saw("MODIFIED", name, item)

    @rule()
    def reopen(self) -> None:
        self.close()
        self.open()

    @precondition(lambda self: self.log)
    @rule(data=st.data())
    def watch(self, data: st.DataObject) -> None:
        """From every point of the past: exactly what came after, or Expired when it is too long ago."""
        seen = data.draw(st.integers(0, len(self.log)))
        version = self.log[seen - 1][0] if seen else "0"
        try:
            watch = self.runner.run(self.store.watch(BOARDS, resource_version=version))
        except Expired:
            assert len(self.log) - seen > LOG_EVENTS
            return
        assert self.runner.run(read(watch, len(self.log) - seen)) == self.log[seen:]

    @rule(labels=LABELS, limit=st.integers(1, 3))
    def pages(self, labels: dict[str, str], limit: int) -> None:
        selection, token, found = Selection(labels=LabelSelector(match_labels=labels)), "", []
        while True:
            page = self.runner.run(self.store.list(BOARDS, selection, limit=limit, continue_token=token))
            assert len(page.items) <= limit
            found += [item.ref.name for item in page.items]
            token = page.continue_token
            if not token:
                break
        assert found == sorted(name for name, known in self.known.items() if labels.items() <= known.labels.items())

    @invariant()
    def same(self) -> None:
        page = self.runner.run(self.store.list(BOARDS))
        assert page.resource_version == (self.log[-1][0] if self.log else "0")
        assert [item.ref.name for item in page.items] == sorted(self.known)
        for item in page.items:
            obj, known = body(item), self.known[item.ref.name]
            metadata = obj["metadata"]
            assert item.resource_version == metadata["resourceVersion"] == known.version
            assert (obj["spec"], obj.get("status", {}).get("soc", "")) == (known.spec, known.soc)
            assert (item.labels, metadata["uid"], metadata["generation"]) == (known.labels, known.uid, known.generation)
            assert ("deletionTimestamp" in metadata) == known.deleting
            assert self.runner.run(self.store.get(item.ref)) == item


async def read(watch: Watch, count: int) -> list[tuple[str, str, str]]:
    changes: list[tuple[str, str, str]] = []
    async with contextlib.aclosing(watch), asyncio.timeout(10):
        while len(changes) < count:
            change = await anext(aiter(watch))
            assert change.item is not None
            changes.append((change.resource_version, str(change.type), change.item.ref.name))
    return changes


class TestStoreMachine(StoreMachine.TestCase):  # type: ignore[misc,valid-type]
    settings = settings(max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
