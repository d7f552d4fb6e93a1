"""Logs: what a board's workers and its agent wrote, as a stream of plain text, as `kubectl get --raw` and `rkfleet logs` read it.

In: a request for `replicas/NAME/log` or `boards/NAME/log`. Out: lines, asked of the board chunk by chunk. The next chunk is asked for when
the client has taken the one before, so a client that reads slowly holds one chunk here and nothing on the board; what the board forgets
meanwhile is counted and said in the stream. Nothing of a log is stored at the controller.

A line that begins with `rkfleet: ` is not the runtime's: the supervisor, or this module, says something about the stream itself.

Source: Kubernetes `k8s.io/api/core/v1/types.go`, PodLogOptions, for the parameters.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from controller.api.paths import Target
from controller.api.query import LogOptions, log_options
from controller.api.responses import COMMON_HEADERS
from controller.api.scope import token_lapses
from controller.api.streams import body, client_leaves
from controller.store.base import Store, decode_item
from rkfleet.clock import Clock
from rkfleet.errors import BadRequest, DeadlineExceeded, FleetError, Internal, Unavailable
from rkfleet.kinds.replica import Replica
from rkfleet.metric_names import LOG_LINES_DROPPED
from rkfleet.metrics import Metrics
from rkfleet.racing import until_first
from rkfleet.session import LogChunk, LogRequest, LogSource

__all__ = ["Logs", "OpenLog", "no_sessions"]

ANSWER_SECONDS_MAX: Final = 10.0  # A board answers within a round trip and a few chunks of others; longer means that it is going.
FOLLOW_SECONDS_MAX: Final = 3600.0  # As a watch: whoever sits there after an hour asks again, and nobody is followed who is gone.
LAST_WORDS_SECONDS_MAX: Final = 1.0

OWN_WORDS: Final = "rkfleet: "  # As the agent begins what it says in the journal of a worker.

Ask = Callable[[LogRequest], Awaitable[LogChunk]]
"""Asks one board for lines; raises Unavailable with a half sentence when it has left."""

OpenLog = Callable[[str], AbstractContextManager[Ask]]
"""Holds a place to read logs of the board with this name. Raises Unavailable, BadRequest or ResourceExhausted, each with a sentence."""


@contextlib.contextmanager
def no_sessions(board: str) -> Iterator[Ask]:
    """Refuse: this process holds no sessions."""
    raise Unavailable(f"board {board} cannot be asked for logs, because this controller holds no sessions")
    yield


class Logs:
    """Serves the `log` of replicas and boards.

    Attributes:
        open_log: Asks boards.
        clock: Ends what takes too long.
        stopping: When it is set, every log ends.
    """

    def __init__(self, store: Store, open_log: OpenLog, clock: Clock, metrics: Metrics, stopping: asyncio.Event) -> None:
        self._store: Final = store
        self._dropped: Final = metrics.counter(LOG_LINES_DROPPED)
        self.open_log: Final = open_log
        self.clock: Final = clock
        self.stopping: Final = stopping

    async def serve(self, request: Request, target: Target) -> Response:
        """Return the response that streams a log.

        Raises:
            NotFound: There is no such object.
            BadRequest: It has no such log, or a parameter cannot be read.
        """
        options = log_options(request.query_params)
        item = await self._store.get(target.ref)
        if target.kind is not Replica:
            if options.source == "worker" or options.run:
                raise BadRequest(f"board {target.name} has the log of its agent, which has no runs; ask for the log of a replica")
            return LogResponse(self, target.name, LogRequest(request_id=0, source=LogSource.AGENT), options)
        board = decode_item(Replica, item).spec.board_name
        if not board:
            where = f" -n {target.namespace}" if target.namespace != "default" else ""
            raise BadRequest(f"replica {target.name} has no board yet; see why: rkfleet describe replica {target.name}{where}")
        source = LogSource.AGENT if options.source == "agent" else LogSource.WORKER
        return LogResponse(self, board, LogRequest(request_id=0, source=source, replica_uid=item.uid), options)

    def note_dropped(self, lines: int) -> None:
        """Count lines that a reader did not get."""
        self._dropped.inc(lines)


class LogResponse(Response):
    """Sends the lines of one log; made by `Logs.serve`."""

    media_type = "text/plain"

    def __init__(self, logs: Logs, board: str, wanted: LogRequest, options: LogOptions) -> None:
        super().__init__(None, 200, dict(COMMON_HEADERS))
        del self.headers["content-length"]
        self._logs: Final = logs
        self._board: Final = board
        self._options: Final = options
        self._first: Final = msgspec.structs.replace(
            wanted, run=options.run, tail_lines=options.tail_lines, since_seconds=options.since_seconds
        )
        self._bytes_left = options.limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the first of: the log ends, the client leaves, the board leaves, the time is over, the token ends, the server stops.

        Raises:
            FleetError: There is nothing to stream; nothing has been sent then.
        """
        with self._logs.open_log(self._board) as ask:
            chunk = await self._ask(ask, self._first)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            pump, leaves = self._pump(send, ask, chunk), client_leaves(receive)
            stops, lapses = self._logs.stopping.wait(), token_lapses(scope)
            ended = await until_first(pump, leaves, stops, lapses, self._logs.clock.sleep(FOLLOW_SECONDS_MAX))
            if leaves in ended:
                return
            why = f"a log is followed for {FOLLOW_SECONDS_MAX:.0f} s"
            why = "the controller is stopping" if stops in ended else "the token is good no longer" if lapses in ended else why
            with contextlib.suppress(TimeoutError):  # a client that takes nothing takes no last words either
                async with asyncio.timeout(LAST_WORDS_SECONDS_MAX):
                    if pump not in ended:
                        await send(body(self._own_words(f"{why}; ask again")))
                    await send(body(b"", more=False))

    async def _pump(self, send: Send, ask: Ask, chunk: LogChunk) -> None:
        follow, newest = self._options.follow, chunk.newest
        while True:
            await send(body(self._rendered(chunk)))
            if chunk.ended or self._bytes_left == 0 or (not follow and chunk.next >= newest):
                return
            run = chunk.run if self._options.run else 0
            after = chunk.next
            request = msgspec.structs.replace(self._first, run=run, after=after, tail_lines=None, since_seconds=0, wait=follow)
            try:
                chunk = await self._ask(ask, request)
                if chunk.next <= after and not chunk.ended:
                    raise Internal(f"board {self._board} answered with no line and no end; update its agent")
            except FleetError as error:
                await send(body(self._own_words(error.message)))
                return

    async def _ask(self, ask: Ask, request: LogRequest) -> LogChunk:
        """Ask the board; what does not wait for lines has a limit."""
        try:
            async with asyncio.timeout(None if request.wait else ANSWER_SECONDS_MAX):
                chunk = await ask(request)
        except TimeoutError as error:
            why = f"board {self._board} did not answer within {ANSWER_SECONDS_MAX:.0f} s; see: rkfleet describe board {self._board}"
            raise DeadlineExceeded(why) from error
        except Unavailable as error:
            raise Unavailable(f"board {self._board} has left: {error.message}; see: rkfleet describe board {self._board}") from error
        if chunk.refusal:
            raise BadRequest(f"board {self._board} has no such log: {chunk.refusal}")
        return chunk

    def _rendered(self, chunk: LogChunk) -> bytes:
        """Return the lines of a chunk, after a line about those that are missing before it, within `limit_bytes`."""
        pieces = []
        if chunk.dropped:
            self._logs.note_dropped(chunk.dropped)
            pieces.append(self._own_words(f"{chunk.dropped} lines are missing here: a board keeps the last ones only"))
        pieces += [self._line(line.time_milliseconds, line.text) for line in chunk.lines]
        text = b"".join(pieces)
        if self._bytes_left is not None:
            text = text[: self._bytes_left]
            self._bytes_left -= len(text)
        return text

    def _own_words(self, text: str) -> bytes:
        return self._line(int(self._logs.clock.now().timestamp() * 1000), OWN_WORDS + text)

    def _line(self, time_milliseconds: int, text: str) -> bytes:
        if self._options.timestamps:
            moment = datetime.fromtimestamp(time_milliseconds // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            text = f"{moment}.{time_milliseconds % 1000:03}Z {text}"
        return f"{text}\n".encode()
