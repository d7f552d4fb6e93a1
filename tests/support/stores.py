"""Stores for tests: objects to put in, watches read with a deadline, and async tests that are given a store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any

import msgspec

from controller.store.base import Change, Item, Store, Watch
from rkfleet.meta import Ref, ResourceName

Json = dict[str, Any]
OpenStore = Callable[[], AbstractAsyncContextManager[Store]]

VARIANT = {
    "name": "cpu",
    "soc": "any",
    "dtype": "q4",
    "runtime": "llamacpp",
    "contextTokens": 1024,
    "artifact": {"files": [{"path": "m.gguf", "digest": "sha256:" + "0" * 64, "sizeBytes": 1, "role": "weight"}]},
}

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = datetime(2026, 1, 1, 1, tzinfo=UTC)
NAMESPACES = ("default", "one", "two", "a", "a-b", "b", "other")  # What the suite of all stores writes into.
MODELS = ResourceName("models.rkfleet.dev")
BOARDS = ResourceName("boards.rkfleet.dev")
EVENTS = ResourceName("events")


def with_store(test: Callable[[Any, Store], Awaitable[None]]) -> Callable[[Any, OpenStore], None]:
    """Make a test of an async method that takes a store; the store comes from the fixture `open_store`."""

    def run(self: Any, open_store: OpenStore) -> None:
        async def scenario() -> None:
            async with open_store() as store, asyncio.timeout(30):
                await test(self, store)

        asyncio.run(scenario())

    run.__name__, run.__doc__, run.__qualname__ = test.__name__, test.__doc__, test.__qualname__
    return run


def model_ref(name: str, namespace: str = "default") -> Ref:
    return Ref(MODELS, namespace, name)


def board_ref(name: str) -> Ref:
    return Ref(BOARDS, "", name)


def model(name: str, *, uid: str = "", family: str = "qwen2", labels: dict[str, str] | None = None, **more: Any) -> Json:
    """A Model as a caller of the store would bring it; the store does not look into the spec."""
    metadata = {"name": name, "uid": uid or f"uid-{name}", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": labels or {}}
    return {"metadata": metadata, "spec": {"family": family, "variants": [VARIANT]}, **more}


def board(name: str, **more: Any) -> Json:
    return {"metadata": {"name": name, "uid": f"uid-{name}", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}, **more}


def body(item: Item) -> Json:
    obj: Json = msgspec.json.decode(item.body)
    return obj


async def take(watch: Watch, count: int) -> list[Change]:
    """Return the next changes of a watch; fails if they do not come."""
    changes: list[Change] = []
    async with asyncio.timeout(10):
        async for change in watch:
            changes.append(change)
            if len(changes) == count:
                break
    assert len(changes) == count
    return changes


def told(changes: list[Change]) -> list[tuple[str, str]]:
    """Return type and name of each change."""
    return [(change.type, change.item.ref.name if change.item else "") for change in changes]
