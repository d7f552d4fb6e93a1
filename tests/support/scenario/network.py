"""The network between boards and the controller: everything of a gRPC stream but gRPC.

In: encoded messages of the shipped pump and the shipped hub. Out: the same bytes at the other end, later, in order within one stream, or
the end of the stream. A `Cable` is the way between one board and the controller's machine; it can be cut in either direction. A `Wire` is
one TCP connection with one stream on it.

What a TCP connection can do is done here, and nothing else: bytes of one stream never overtake or repeat each other, but bytes of an old
stream may arrive long after a new one has begun, a cut holds them back, an end that was killed resets the connection, and one whose
machine lost its power says nothing at all. An end whose peer does not answer pings finds that out after 20 to 30 s, as the keepalive
options of both sides say. A writer waits when 64 KiB are under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from controller.trust.pki import Peer
from rkfleet.errors import Unavailable
from rkfleet.session import BoardMessage, ControllerMessage
from rkfleet.v1 import agent_pb2 as pb
from rkfleet.wire import decode_board_message, encode_controller_message
from tests.support.scenario.virtual import PROCESS, Process, VirtualLoop

WINDOW_BYTES = 64 << 10  # HTTP/2's initial flow-control window.
CONNECT_SECONDS_MAX = 20.0  # gRPC's own limit for one attempt.
PING_SECONDS = (20.0, 30.0)  # keepalive_time and + keepalive_timeout of both sides.

WORLD = contextvars.Context()  # The network belongs to no process.

Heard = Callable[[str, str, Any], None]


class _Pipe:
    """One direction of a wire: segments in order, each due at a moment, held back while the cable is cut."""

    def __init__(self, wire: Wire, upward: bool) -> None:
        self._wire = wire
        self._upward = upward
        self._segments: deque[tuple[str, bytes]] = deque()
        self._due = 0.0
        self._moving = False
        self.under_way = 0
        self.drained = asyncio.Event()
        self.target: End

    def push(self, kind: str, body: bytes = b"") -> None:
        loop, cable = self._wire.loop, self._wire.cable
        seconds = cable.chance.uniform(*cable.latency) + len(body) / cable.bytes_per_second
        self._segments.append((kind, body))
        self.under_way += len(body)
        if not self._moving and self._wire.established:
            self._due = max(self._due, loop.time() + seconds)
            self._move(self._due)

    def start(self) -> None:
        if self._segments and not self._moving:
            self._move(self._wire.loop.time())

    def _move(self, when: float) -> None:
        self._moving = True
        self._wire.loop.call_at(when, self._arrive, context=WORLD)

    def _arrive(self) -> None:
        loop, cable = self._wire.loop, self._wire.cable
        self._moving = False
        if not cable.passes(self._upward):
            return  # `Cable.heal` starts it again.
        if loop.time() < self._wire.late_until:
            self._move(self._wire.late_until)
            return
        if self._segments:
            kind, body = self._segments.popleft()
            self.target.take(kind, body)
        if self._segments:
            seconds = cable.chance.uniform(0.0, cable.latency[1] / 4) + len(self._segments[0][1]) / cable.bytes_per_second
            self._move(loop.time() + seconds)


class End:
    """One end of a wire, in one process."""

    def __init__(self, out: _Pipe) -> None:
        self._out = out
        self._in: deque[tuple[str, bytes]] = deque()
        self._news = asyncio.Event()
        self.incoming: _Pipe
        self.broken = ""
        self.status = ""
        self.on_broken: Callable[[], None] = lambda: None

    def take(self, kind: str, body: bytes) -> None:
        """The network has brought something."""
        if kind == "reset":
            self.break_(body.decode() or "connection reset", tell=False)
            return
        self._in.append((kind, body))
        self._news.set()

    def break_(self, why: str, *, tell: bool = True) -> None:
        """This end is gone; the other one is told if the machine still can."""
        if self.broken:
            return
        self.broken = why
        if tell:
            self._out.push("reset", b"the peer reset the connection")
        self._news.set()
        self._out.drained.set()
        self.on_broken()

    async def read(self) -> bytes | None:
        """Return the next message, None at the end; raises ConnectionError when the wire is broken."""
        while True:
            if self._in:
                kind, body = self._in.popleft()
                self.incoming.under_way -= len(body)
                self.incoming.drained.set()
                if kind == "message":
                    return body
                self.status = body.decode()
                return None
            if self.broken:
                raise ConnectionError(self.broken)
            self._news.clear()
            await self._news.wait()

    async def write(self, body: bytes) -> None:
        """Hand a message to the wire, waiting while too much is under way."""
        while self._out.under_way > WINDOW_BYTES and not self.broken:
            self._out.drained.clear()
            await self._out.drained.wait()
        if self.broken:
            raise ConnectionError(self.broken)
        self._out.push("message", body)

    def finish(self, status: str = "") -> None:
        """Say that nothing more comes from here."""
        if not self.broken:
            self._out.push("end", status.encode())


class Wire:
    """One connection with one stream."""

    def __init__(self, cable: Cable, loop: VirtualLoop) -> None:
        self.cable, self.loop = cable, loop
        self.established = False
        self.late_until = 0.0
        self.number = cable.next_number()
        self.session: tuple[str, int] | None = None  # Board and number, once taken.
        up, down = _Pipe(self, upward=True), _Pipe(self, upward=False)
        self.board, self.controller = End(up), End(down)
        up.target, down.target = self.controller, self.board
        self.board.incoming, self.controller.incoming = down, up
        self.pipes = (up, down)

    def establish(self) -> None:
        self.established = True
        for pipe in self.pipes:
            pipe.start()

    @property
    def over(self) -> bool:
        return bool(self.board.broken and self.controller.broken)

    def forget_pings(self, since: float) -> None:
        """Both ends find out, each after its own time, that nobody has answered since then."""
        for end in (self.board, self.controller):
            after = since + self.cable.chance.uniform(*PING_SECONDS)
            self.loop.call_at(max(after, self.loop.time()), self._ping_lost, end, since, context=WORLD)

    def _ping_lost(self, end: End, since: float) -> None:
        if self.cable.cut_since == since or (end is self.controller and self.cable.board_dark_since == since):
            end.break_("keepalive: no answer to a ping for 10 s")


class Cable:
    """The way between one board and the controller's machine."""

    def __init__(self, board: str, loop: VirtualLoop, chance: random.Random) -> None:
        self.board = board
        self.chance = chance
        self.latency = (0.001, 0.02)
        self.bytes_per_second = 1e6
        self.up, self.down, self.registry = True, True, True
        self.cut_since: float | None = None
        self.board_dark_since: float | None = None
        self.wires: list[Wire] = []
        self._loop = loop
        self._numbers = 0

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def passes(self, upward: bool) -> bool:
        return self.up if upward else self.down

    @property
    def whole(self) -> bool:
        return self.up and self.down

    def cut(self, *, up: bool, down: bool, registry: bool = True) -> None:
        """Let nothing pass in the named directions; `registry` says whether the way to the registry is cut with it."""
        self.registry = self.registry and not registry
        self.up, self.down = self.up and not up, self.down and not down
        if self.cut_since is None and not self.whole:
            self.cut_since = self._loop.time()
            self.wires = [wire for wire in self.wires if not wire.over]
            for wire in self.wires:
                wire.forget_pings(self.cut_since)

    def heal(self, late: tuple[float, float] = (0.0, 0.2)) -> None:
        """Let everything pass; what was held back in old connections comes within `late` seconds, behind whatever is sent anew."""
        self.up = self.down = self.registry = True
        self.cut_since = None
        for wire in self.wires:
            wire.late_until = self._loop.time() + self.chance.uniform(*late)
            for pipe in wire.pipes:
                if not pipe._moving and pipe._segments and wire.established:
                    pipe._move(wire.late_until)

    def hold(self, seconds: float) -> list[Wire]:
        """Hold back what is under way in the connections that are open now, and return them; others are not touched."""
        self.wires = [wire for wire in self.wires if not wire.over]
        for wire in self.wires:
            wire.late_until = self._loop.time() + seconds
        return list(self.wires)

    def release(self, wires: list[Wire]) -> None:
        """Let what was held back in these connections come now."""
        for wire in wires:
            wire.late_until = self._loop.time()
            for pipe in wire.pipes:
                self._loop.call_soon(pipe._arrive, context=WORLD)

    def darken(self) -> None:
        """The board's machine lost its power: its connections are open at the other end only."""
        self.board_dark_since = self._loop.time()
        for wire in self.wires:
            wire.board.broken = wire.board.broken or "power"
            wire.forget_pings(self.board_dark_since)


class Network:
    """All cables, and who listens at the controller's machine.

    Attributes:
        listener: The controller process and what serves a stream there; None while nobody listens.
    """

    def __init__(self, loop: VirtualLoop, fleet_id: str) -> None:
        self._loop = loop
        self._fleet_id = fleet_id
        self.cables: dict[str, Cable] = {}
        self.listener: tuple[Process, Any] | None = None
        self.heard: Heard = lambda board, what, message: None

    def cable(self, board: str, chance: random.Random) -> Cable:
        self.cables[board] = Cable(board, self._loop, chance)
        return self.cables[board]

    @contextlib.asynccontextmanager
    async def call(self, board: str) -> AsyncIterator[Call]:
        """What the board's agent gets for dialling: a call, as gRPC gives it at once, before anybody has answered."""
        wire = Wire(self.cables[board], self._loop)
        process = PROCESS.get()
        assert process is not None

        def reset() -> None:
            if not wire.board.broken:  # Its machine has power: the kernel closes what the dead had open.
                wire.board.break_("killed")

        process.ended.append(reset)
        self._dial(board, wire)
        try:
            yield Call(wire.board, lambda message: self.heard(board, f"{board} hears", message))
        finally:
            wire.board.break_("cancelled")
            process.ended.remove(reset)

    def _dial(self, board: str, wire: Wire) -> None:
        cable = self.cables[board]
        if not cable.whole:
            self._loop.call_later(CONNECT_SECONDS_MAX, wire.board.break_, "failed to connect: timed out", context=WORLD)
            return
        seconds = 3 * cable.chance.uniform(*cable.latency) + cable.latency[0]
        self._loop.call_later(seconds, self._answer, board, wire, context=WORLD)

    def _answer(self, board: str, wire: Wire) -> None:
        cable = self.cables[board]
        if wire.board.broken:
            return
        if not cable.whole:
            self._loop.call_later(CONNECT_SECONDS_MAX, wire.board.break_, "failed to connect: timed out", context=WORLD)
            return
        if self.listener is None:
            wire.board.break_("failed to connect: connection refused", tell=False)
            return
        process, hub = self.listener
        cable.wires = [one for one in cable.wires if not one.over]
        cable.wires.append(wire)
        wire.establish()
        peer = Peer(self._fleet_id, "boards", board, f"key-of-{board}")
        link = Link(wire.controller, lambda message: self.heard(board, f"controller hears{_old(wire)}", message))
        task = process.spawn(_serve(hub, peer, link, wire), name=f"stream of {board}", setting=(STREAM, wire))

        def lost() -> None:
            # gRPC cancels the handler of a connection that is gone; what it reads first is a matter of chance.
            if not task.done():
                process.run(self._loop.call_later, cable.chance.choice((0.0, 0.5)), task.cancel)

        wire.controller.on_broken = lost
        process.ended.append(lambda: wire.controller.break_("killed"))


def _old(wire: Wire) -> str:
    """Return what to add about a stream that another session has taken the place of."""
    others = [one.session[1] for one in wire.cable.wires if one.session is not None]
    return f" in old session {wire.session[1]}" if wire.session and others and wire.session[1] < max(others) else ""


STREAM: contextvars.ContextVar[Wire | None] = contextvars.ContextVar("stream", default=None)


async def _serve(hub: Any, peer: Peer, link: Link, wire: Wire) -> None:
    await hub.serve(peer, link)
    wire.controller.finish("OK")


class Link:
    """The controller's end, as `controller.sessions.stream.Link` wants it: what the servicer makes of a gRPC context."""

    def __init__(self, end: End, heard: Callable[[Any], None]) -> None:
        self._end = end
        self._heard = heard

    async def read(self) -> BoardMessage | None:
        try:
            body = await self._end.read()
        except ConnectionError as error:
            raise Unavailable(str(error)) from error
        if body is None:
            return None
        message = decode_board_message(pb.SessionRequest.FromString(body))
        self._heard(message)
        return message

    async def write(self, message: ControllerMessage) -> None:
        try:
            await self._end.write(encode_controller_message(message).SerializeToString(deterministic=True))
        except ConnectionError as error:
            raise Unavailable(str(error)) from error


class Call:
    """The board's end, as `agent.session.pump.Call` wants it: the part of gRPC's stream call that the pump uses."""

    def __init__(self, end: End, heard: Callable[[Any], None]) -> None:
        self._end = end
        self._heard = heard

    async def read(self) -> Any:
        try:
            body = await self._end.read()
        except ConnectionError as error:
            raise _rpc_error(error) from error
        if body is None:
            return grpc.aio.EOF
        response = pb.SessionResponse.FromString(body)
        self._heard(response)
        return response

    async def write(self, message: pb.SessionRequest) -> None:
        try:
            await self._end.write(message.SerializeToString(deterministic=True))
        except ConnectionError as error:
            raise _rpc_error(error) from error

    async def done_writing(self) -> None:
        self._end.finish()

    async def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.OK if self._end.status == "OK" else grpc.StatusCode.UNAVAILABLE

    async def details(self) -> str:
        return "" if self._end.status == "OK" else self._end.status


def _rpc_error(error: ConnectionError) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details=str(error))
