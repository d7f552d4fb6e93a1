"""Disk calls in threads."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from rkfleet.disk import in_thread


def test_a_call_that_fails_after_its_caller_was_cancelled_is_not_logged_as_forgotten() -> None:
    """The caller is gone and nobody waits for the error: asyncio has nothing to complain about."""
    complaints: list[dict[str, Any]] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
        go_on = threading.Event()

        def fail() -> None:
            go_on.wait(5.0)
            raise OSError("No space left on device")

        calling = asyncio.ensure_future(in_thread(fail))
        await asyncio.sleep(0)  # noqa: TID251 (lets the call begin)
        calling.cancel()
        asyncio.get_running_loop().call_soon(go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await calling

    asyncio.run(scenario())
    assert complaints == []
