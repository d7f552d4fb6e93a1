"""Lists are made without holding the event loop."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from controller.api.negotiation import Form
from controller.api.views import SLICE_ITEMS, View
from controller.store.base import Item, Page
from rkfleet.clock import SystemClock, give_way
from rkfleet.kinds import Board
from rkfleet.meta import Ref


def _item(number: int) -> Item:
    metadata = {"name": f"b-{number}", "uid": str(number), "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z"}
    body = msgspec.json.encode({"apiVersion": "rkfleet.dev/v1alpha1", "kind": "Board", "metadata": metadata, "spec": {}})
    return Item(Ref(Board.resource.name, "", f"b-{number}"), str(number), "1", {}, body)


@pytest.mark.parametrize(("form", "field"), [("object", "items"), ("metadata", "items"), ("table", "rows")])
@pytest.mark.parametrize("count", [0, 1, SLICE_ITEMS, SLICE_ITEMS * 4 + 1])
def test_a_list_has_every_item_and_other_tasks_run_while_it_is_made(form: Form, field: str, count: int) -> None:
    turns = 0

    async def other_work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await give_way()

    async def run() -> dict[str, Any]:
        items = [_item(number) for number in range(count)]
        view = View(Board, form, "Metadata", SystemClock())
        async with asyncio.TaskGroup() as group:
            other = group.create_task(other_work())
            pieces = await view.page(Page(items, "7", "token", 3))
            other.cancel()
        answer: dict[str, Any] = msgspec.json.decode(b"".join(pieces))
        return answer

    answer = asyncio.run(run())
    assert len(answer[field]) == count
    assert answer["metadata"] == {"resourceVersion": "7", "continue": "token", "remainingItemCount": 3}
    assert turns >= count // SLICE_ITEMS
