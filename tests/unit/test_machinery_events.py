"""The event recorder over a real store."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

from controller.machinery.events import EVENT_SECONDS_MAX, QUEUE_EVENTS_MAX, EventRecorder
from controller.store.base import decode_item
from controller.store.sql.store import SqlStore
from rkfleet import metric_names
from rkfleet.clock import SystemClock
from rkfleet.kinds import KINDS, Event
from rkfleet.meta import Ref
from rkfleet.metrics import Metrics
from tests.support.clocks import ManualClock
from tests.support.stores import EVENTS, board_ref, model_ref


def record(recorder: EventRecorder, ref: Ref, message: str) -> None:
    recorder.record(ref, f"uid-{ref.name}", "Normal", "Placed", message, kind="Model", api_version="rkfleet.dev/v1alpha1")


async def events(store: SqlStore) -> list[Event]:
    return [decode_item(Event, item) for item in (await store.list(EVENTS)).items]


async def total(store: SqlStore, count: int) -> list[Event]:
    """Wait until so many happenings are counted."""
    found: list[Event] = []
    async with asyncio.timeout(10):
        while sum(event.count for event in found) < count:
            await SystemClock().sleep(0.001)
            found = await events(store)
    return found


def test_the_same_event_is_counted_also_by_the_next_recorder(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        async with SqlStore.open(tmp_path / "store.db", KINDS) as store:
            event = Event()
            for count in (2, 3):
                ids = map(str, itertools.count())
                recorder = EventRecorder(store, clock, lambda ids=ids: next(ids))  # type: ignore[misc]
                async with asyncio.TaskGroup() as tasks:
                    running = tasks.create_task(recorder.run())
                    record(recorder, model_ref("a"), "put on board b")
                    if count == 2:
                        record(recorder, model_ref("a"), "put on board b")
                    (event,) = await total(store, count)
                    running.cancel()
                clock.advance(60)
            assert (event.count, event.reason, event.message, event.metadata.namespace) == (3, "Placed", "put on board b", "default")
            assert (event.first_timestamp, event.last_timestamp) == ("2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z")
            assert (event.involved_object.uid, event.involved_object.kind) == ("uid-a", "Model")

    asyncio.run(scenario())


def test_events_of_cluster_scoped_objects_are_in_the_default_namespace(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with SqlStore.open(tmp_path / "store.db", KINDS) as store, asyncio.TaskGroup() as tasks:
            recorder = EventRecorder(store, ManualClock(), lambda: "id")
            running = tasks.create_task(recorder.run())
            record(recorder, board_ref("b" * 253), "first")
            record(recorder, board_ref("b"), "first")
            record(recorder, board_ref("b"), "second")
            found = await total(store, 3)
            assert {event.metadata.namespace for event in found} == {"default"}
            assert {event.involved_object.namespace for event in found} == {""}
            running.cancel()

    asyncio.run(scenario())


def test_events_that_did_not_happen_for_an_hour_are_deleted(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        async with SqlStore.open(tmp_path / "store.db", KINDS) as store, asyncio.TaskGroup() as tasks:
            recorder = EventRecorder(store, clock, lambda: "id")
            running = tasks.create_task(recorder.run())
            record(recorder, model_ref("a"), "old")
            await total(store, 1)
            clock.advance(EVENT_SECONDS_MAX / 2)
            record(recorder, model_ref("a"), "new")
            await total(store, 2)
            clock.advance(EVENT_SECONDS_MAX / 2 + 1)
            async with asyncio.timeout(10):
                while [event.message for event in await events(store)] != ["new"]:
                    await SystemClock().sleep(0.001)
            running.cancel()

    asyncio.run(scenario())


def test_a_storm_and_a_store_that_is_away_drop_events_and_count_them(tmp_path: Path) -> None:
    async def scenario() -> None:
        metrics = Metrics("controller")
        async with SqlStore.open(tmp_path / "store.db", KINDS) as store:
            recorder = EventRecorder(store, ManualClock(), lambda: "id", metrics=metrics)
            for number in range(QUEUE_EVENTS_MAX + 5):
                record(recorder, model_ref("a"), f"number {number}")
        dropped = f"{metric_names.EVENTS_DROPPED.name} "
        assert dropped + "5.0" in metrics.text().decode()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(recorder.run())
            async with asyncio.timeout(10):
                while dropped + f"{QUEUE_EVENTS_MAX + 5.0}" not in metrics.text().decode():
                    await SystemClock().sleep(0.01)
            running.cancel()

    asyncio.run(scenario())
