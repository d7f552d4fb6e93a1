"""The controller's pump over a link that takes a message when the test says so."""

from __future__ import annotations

import asyncio

from controller.sessions import goodbyes
from controller.sessions.stream import Stream
from rkfleet.clock import SystemClock
from rkfleet.report import BoardFacts
from rkfleet.session import BoardMessage, ControllerMessage, Goodbye, Hello, Welcome

HELLO = Hello(protocol=1, fleet_id="f", machine_id="m", boot_id="b", assignment_number=0, assignment_sha256="", facts=BoardFacts(soc="cpu"))
WELCOME = Welcome(fleet_id="f", session_number=1, heartbeat_seconds=10.0, report_interval_seconds_min=0.25)


class SlowLink:
    """Brings a Hello, and holds each message until `may_go` is set."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[BoardMessage | None] = asyncio.Queue()
        self.incoming.put_nowait(HELLO)
        self.writing = asyncio.Event()
        self.may_go = asyncio.Event()
        self.written: list[ControllerMessage] = []

    async def read(self) -> BoardMessage | None:
        return await self.incoming.get()

    async def write(self, message: ControllerMessage) -> None:
        self.writing.set()
        await self.may_go.wait()
        self.written.append(message)


def test_a_goodbye_is_said_also_when_another_message_is_being_written() -> None:
    """A board that is told why its session ends comes back when it was asked to, instead of taking it for a broken link."""

    async def scenario() -> list[ControllerMessage]:
        link = SlowLink()
        stream = Stream(link, SystemClock(), heartbeat_seconds=10.0)
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            tasks.create_task(stream.run())
            await stream.news.wait()
            stream.welcome(WELCOME)
            await link.writing.wait()
            stream.leave(goodbyes.shutdown())
            link.may_go.set()
        return link.written

    welcome, goodbye = asyncio.run(scenario())
    assert welcome == WELCOME
    assert isinstance(goodbye, Goodbye)
