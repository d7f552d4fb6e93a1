"""Watches over HTTPS: where they start, what they carry, how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from controller.api.watch import BOOKMARK_SECONDS
from rkfleet.clock import SystemClock
from rkfleet.kinds import Board
from rkfleet.meta import Ref
from tests.support.api import RunningApi, running_api
from tests.support.objects import BOARDS, DEPLOYMENTS, board, deployment

TABLE = {"accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}
MERGE = {"headers": {"content-type": "application/merge-patch+json"}}


def with_api(tmp_path: Path, test: Callable[[RunningApi], Awaitable[None]], **options: Any) -> None:
    """Run a test against an API of its own."""

    async def run() -> None:
        async with running_api(tmp_path, **options) as api:
            await test(api)

    asyncio.run(run())


def seen(event: Any) -> tuple[str, str]:
    """Return the type of an event and the name of its object."""
    return event["type"], event["object"]["metadata"].get("name", "")


@pytest.mark.parametrize("start", [{}, {"resourceVersion": "0"}])
def test_a_watch_without_a_version_starts_with_what_exists(tmp_path: Path, start: dict[str, str]) -> None:
    async def test(api: RunningApi) -> None:
        await api.call("POST", BOARDS, board("b"))
        await api.call("POST", BOARDS, board("a"))
        async with api.watch(BOARDS, limit="1", **start) as following:  # limit is for lists
            assert [seen(await following()), seen(await following())] == [("ADDED", "a"), ("ADDED", "b")]
            await api.call("POST", BOARDS, board("c"))
            assert seen(await following()) == ("ADDED", "c")

    with_api(tmp_path, test)


def test_a_watch_from_a_list_carries_exactly_what_came_after(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        await api.call("POST", BOARDS, board("a"))
        version = (await api.call("GET", BOARDS)).json()["metadata"]["resourceVersion"]
        await api.call("PATCH", f"{BOARDS}/a", {"metadata": {"labels": {"k": "v"}}}, **MERGE)
        await api.call("PATCH", f"{BOARDS}/a", {"metadata": {"labels": {"k": "v"}}}, **MERGE)  # changes nothing, so nobody sees it
        await api.call("DELETE", f"{BOARDS}/a")
        async with api.watch(BOARDS, resourceVersion=version) as following:
            modified, deleted = await following(), await following()
            assert [seen(modified), seen(deleted)] == [("MODIFIED", "a"), ("DELETED", "a")]
            assert int(deleted["object"]["metadata"]["resourceVersion"]) > int(modified["object"]["metadata"]["resourceVersion"])

    with_api(tmp_path, test)


def test_an_object_that_leaves_the_selection_is_deleted_from_the_watch(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        async with api.watch(BOARDS, labelSelector="site=lab") as following:
            await api.call("POST", BOARDS, board("other", {"site": "roof"}))
            await api.call("POST", BOARDS, board("a", {"site": "lab"}))
            assert seen(await following()) == ("ADDED", "a")
            await api.call("PATCH", f"{BOARDS}/a", {"metadata": {"labels": {"site": "roof"}}}, **MERGE)
            assert seen(await following()) == ("DELETED", "a")
            await api.call("PATCH", f"{BOARDS}/a", {"metadata": {"labels": {"site": "lab"}}}, **MERGE)
            assert seen(await following()) == ("ADDED", "a")
        async with api.watch(f"{BOARDS}/a") as one:  # the path of an object watches only it
            assert seen(await one()) == ("ADDED", "a")
        async with api.watch(BOARDS, fieldSelector="metadata.name!=a") as rest:
            assert seen(await rest()) == ("ADDED", "other")

    with_api(tmp_path, test)


def test_a_watch_of_tables_names_its_columns_once(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        api.client.headers.update(TABLE)
        await api.call("POST", DEPLOYMENTS, deployment("a"))
        async with api.watch(DEPLOYMENTS) as following:
            first = (await following())["object"]
            await api.call("POST", DEPLOYMENTS, deployment("b", replicas=7))
            second = (await following())["object"]
        assert first["columnDefinitions"][0]["name"] == "Name"
        assert second["columnDefinitions"] is None
        (row,) = second["rows"]
        assert (row["cells"][0], 7 in row["cells"], row["object"]["kind"]) == ("b", True, "PartialObjectMetadata")

    with_api(tmp_path, test)


@pytest.mark.parametrize("headers", [{}, TABLE])
def test_a_watch_over_many_objects_misses_none(tmp_path: Path, headers: dict[str, str]) -> None:
    async def test(api: RunningApi) -> None:
        names = [f"b-{number:03}" for number in range(120)]
        for name in names:
            metadata = {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"}
            await api.store.create(Ref(Board.resource.name, "", name), {**board(name), "metadata": metadata})
        api.client.headers.update(headers)
        async with api.watch(BOARDS) as following:
            events = [(await following())["object"] for _ in names]
        if headers:
            assert [bool(event["columnDefinitions"]) for event in events] == [True, *[False] * 119]
            events = [event["rows"][0]["object"] for event in events]
        assert [event["metadata"]["name"] for event in events] == names

    with_api(tmp_path, test)


def test_a_watch_list_ends_its_first_part_with_a_marked_bookmark(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        await api.call("POST", BOARDS, board("a"))
        asked = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
        async with api.watch(BOARDS, **asked) as following:
            assert seen(await following()) == ("ADDED", "a")
            mark = await following()
            assert (mark["type"], mark["object"]["kind"]) == ("BOOKMARK", "Board")
            assert mark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
            version = mark["object"]["metadata"]["resourceVersion"]
            await api.call("POST", BOARDS, board("b"))
            assert seen(await following()) == ("ADDED", "b")
        async with api.watch(BOARDS, resourceVersion=version) as resumed:
            assert seen(await resumed()) == ("ADDED", "b")
        refused = await api.call("GET", BOARDS, params={"watch": "1", "sendInitialEvents": "true"})
        assert (refused.status_code, refused.json()["details"]["causes"][0]["field"]) == (422, "sendInitialEvents")

    with_api(tmp_path, test)


def test_a_watch_ends_when_its_time_is_over_with_a_bookmark(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        await api.call("POST", BOARDS, board("a"))
        async with api.watch(BOARDS, timeoutSeconds="1", allowWatchBookmarks="true") as following:
            added, mark = await following(), await following()
            assert [added["type"], mark["type"], await following()] == ["ADDED", "BOOKMARK", None]
            assert mark["object"]["metadata"]["resourceVersion"] == added["object"]["metadata"]["resourceVersion"]

    with_api(tmp_path, test)


def test_a_version_that_is_compacted_is_told_as_an_error_event(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        page = (await api.call("GET", BOARDS, params={"limit": "1"})).json()
        old = page["metadata"]["resourceVersion"]
        await asyncio.gather(*(api.call("POST", BOARDS, board(f"b-{number}")) for number in range(4)))
        token = (await api.call("GET", BOARDS, params={"limit": "1"})).json()["metadata"]["continue"]
        for number in range(60):
            await api.call("PATCH", f"{BOARDS}/b-0", {"metadata": {"labels": {"n": str(number)}}}, **MERGE)
        async with api.watch(BOARDS, resourceVersion=old) as following:
            error = await following()
            assert (error["type"], error["object"]["code"], error["object"]["reason"]) == ("ERROR", 410, "Expired")
            assert await following() is None
        expired = await api.call("GET", BOARDS, params={"limit": "1", "continue": token})
        assert (expired.status_code, expired.json()["reason"]) == (410, "Expired")

    with_api(tmp_path, test, store_options={"log_events_max": 10})


def test_stopping_the_server_ends_open_watches(tmp_path: Path) -> None:
    """A client sees a clean end, not a broken connection, and the program need not wait for it."""

    async def run() -> None:
        async with running_api(tmp_path) as api, api.watch(BOARDS) as following:
            await api.call("POST", BOARDS, board("a"))
            assert seen(await following()) == ("ADDED", "a")
            api.stopping.set()
            assert await following() is None

    asyncio.run(run())


def test_a_client_that_leaves_gives_its_place_back(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        for _ in range(3):  # each would be refused if the one before still counted
            async with api.watch(BOARDS, resourceVersion="1"):
                refused = await api.call("GET", BOARDS, params={"watch": "true"})
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
                assert "the limit is 1" in refused.json()["message"]
            async with asyncio.timeout(5):
                while b"rkfleet_api_watches 0.0" not in api.metrics.text():
                    await SystemClock().sleep(0.01)

    with_api(tmp_path, test, watches_max=1)


class MinuteIsShort(SystemClock):
    """A clock on which a bookmark's minute passes at once."""

    async def sleep(self, seconds: float) -> None:
        """Wait a hundredth of what is asked for, when it is the minute of bookmarks."""
        await super().sleep(seconds / 1000 if seconds == BOOKMARK_SECONDS else seconds)


def test_a_silent_watch_gets_a_bookmark_every_minute_of_what_was_sent_last(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        version = (await api.call("GET", BOARDS)).json()["metadata"]["resourceVersion"]
        async with api.watch(BOARDS, resourceVersion=version, allowWatchBookmarks="true") as following:
            first = await following()
            assert (first["type"], first["object"]["metadata"]["resourceVersion"]) == ("BOOKMARK", version)
            created = (await api.call("POST", BOARDS, board("a"))).json()["metadata"]["resourceVersion"]
            events = [await following()]
            while events[-1]["type"] == "BOOKMARK":
                events.append(await following())
            assert seen(events[-1]) == ("ADDED", "a")
            assert all(event["object"]["metadata"]["resourceVersion"] == version for event in events[:-1])
            assert (await following())["object"]["metadata"]["resourceVersion"] == created

    with_api(tmp_path, test, clock=MinuteIsShort())


def test_a_watch_that_did_not_ask_for_bookmarks_gets_none(tmp_path: Path) -> None:
    async def test(api: RunningApi) -> None:
        version = (await api.call("GET", BOARDS)).json()["metadata"]["resourceVersion"]
        async with api.watch(BOARDS, resourceVersion=version, timeoutSeconds="1") as following:
            assert await following() is None

    with_api(tmp_path, test, clock=MinuteIsShort())
