"""The session of this board: keeps one stream to the controller, for as long as the agent runs.

In: the identity, the ledger, the reports cell. Out: offers given to the ledger, reports and log sent, grants on demand. `app.py` makes one
and runs it; the loop knows nothing of it, and the board serves just the same while there is no session. With `pump.py` it is what the agent
has of gRPC.

Reconnects are jittered and grow to half a minute. All durations are monotonic, so a machine whose clock jumps keeps its session.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Final

import grpc
import grpc.aio
import msgspec

from agent.session.logs import Logs, NoLogs
from agent.session.pump import Call, Ledger, Pump, Reports
from rkfleet.clock import Clock
from rkfleet.enrolment import server_name
from rkfleet.errors import FailedPrecondition, PermissionDenied, Unavailable
from rkfleet.identity import Identity
from rkfleet.report import BoardFacts
from rkfleet.session import GRANTS_OUTSTANDING_MAX, PROTOCOL_VERSION, Goodbye, GoodbyeReason, Grant, Hello, Welcome
from rkfleet.v1 import agent_pb2_grpc
from rkfleet.wire import MESSAGE_BYTES_MAX

__all__ = ["Connect", "Connection", "Machine", "SessionRunner", "credentials_of", "longest_pause", "open_call"]

RECONNECT_SECONDS_MIN: Final = 1.0  # The first attempt comes somewhere in this second: a restarted controller meets its fleet spread out.
RECONNECT_SECONDS_MAX: Final = 30.0  # 5,000 boards then knock 170 times a second, below the 275 handshakes that one process can do.
RECONNECT_AFTER_SECONDS_MAX: Final = 600.0  # What a Goodbye may ask for; a mistaken controller must not park a board for weeks.
REVOKED_DOUBLINGS_MAX: Final = 8  # Of a minute, which the limit above cuts at the fourth; it only keeps the number small.
STEADY_SECONDS: Final = 10.0  # A session that lasted this long was no failed attempt; the next pause is short again.
GRANT_SECONDS_MAX: Final = 30.0  # The controller signs in a millisecond; longer means that the session is gone or changes hands.

_OPTIONS: Final[list[tuple[str, int | str]]] = [
    ("grpc.enable_retries", 0),  # Reconnecting is this module's business.
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 20_000),  # Finds a controller whose machine is gone without a FIN.
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),  # A new attempt is a new connection, without gRPC's own back-off.
]

_log: Final = logging.getLogger(__name__)

Connect = Callable[[], contextlib.AbstractAsyncContextManager[Call]]
"""Opens a call, closed when the block ends; raises Unavailable if that is not possible now."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What Hello says about the machine: who it is, which boot this is, what it has, and where it serves."""

    machine_id: str
    boot_id: str
    facts: BoardFacts
    serving_url: str


def longest_pause(away_seconds: float) -> float:
    """Return the longest pause before the next attempt of a board that has had no session for `away_seconds`.

    It is as long as the outage so far, so that a board is back after at most twice the outage, and a long one costs few attempts.
    """
    return min(max(away_seconds, RECONNECT_SECONDS_MIN), RECONNECT_SECONDS_MAX)


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """Whether there is a session; `number` is 0 and `reason` says why while there is none."""

    number: int = 0
    reason: str = "no session yet"


class SessionRunner:
    """Keeps the session; `run` it, and ask it for grants.

    Attributes:
        connection: The session as it is now.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        machine: Callable[[], Machine],
        clock: Clock,
        jitter: random.Random,
        ledger: Ledger,
        reports: Reports,
        logs: Logs = NoLogs(),
        on_change: Callable[[], None] = lambda: None,
        on_time: Callable[[datetime], None] = lambda _: None,
        connect: Connect | None = None,
    ) -> None:
        """Take what a session needs.

        Args:
            identity: Name, address, key and certificates of this board.
            machine: Looked up for every Hello.
            clock: Monotonic time only.
            jitter: Spreads reconnects.
            ledger: Where offers go.
            reports: Where reports come from.
            logs: Where lines come from that the controller asks for.
            on_change: Called when `connection` changed; must not block.
            on_time: Told the controller's time when a session begins; must not block.
            connect: How a call is opened; by default `open_call`, with the files of the identity as they are at that moment.
        """
        self._identity: Final = identity
        self._given_connect: Final = connect
        self._machine: Final = machine
        self._clock: Final = clock
        self._jitter: Final = jitter
        self._ledger: Final = ledger
        self._reports: Final = reports
        self._logs: Final = logs
        self._on_change: Final = on_change
        self._on_time: Final = on_time
        self._lost_at: float | None = clock.monotonic()
        self._revoked = 0
        self._grant_slots: Final = asyncio.Semaphore(GRANTS_OUTSTANDING_MAX)
        self._pump: Pump | None = None
        self._taken: Final = asyncio.Event()
        self.connection = Connection()

    async def run(self) -> None:
        """Connect, and connect again, until cancelled; then say Goodbye.

        Raises:
            FailedPrecondition: A file of the identity cannot be read.
        """
        connect = self._given_connect or self._connect()
        away_since = self._clock.monotonic()
        while True:
            began = self._clock.monotonic()
            goodbye = await self._session(connect)
            ended = self._clock.monotonic()
            if ended - began >= STEADY_SECONDS:
                away_since = ended
            at_least = self._at_least(goodbye) if goodbye else 0.0
            pause = self._jitter.uniform(0.0, longest_pause(ended - away_since))
            await self._clock.sleep(at_least * self._jitter.uniform(1.0, 1.5) + pause)

    @property
    def lost_seconds(self) -> float:
        """How long there has been no session; 0 while there is one."""
        return 0.0 if self._lost_at is None else self._clock.monotonic() - self._lost_at

    def _at_least(self, goodbye: Goodbye) -> float:
        """Return how long to stay away after a Goodbye: as long as it asks for, and a board that may not be here longer each time."""
        seconds = goodbye.reconnect_after_seconds
        if goodbye.reason is GoodbyeReason.REVOKED:
            seconds *= 2 ** min(self._revoked, REVOKED_DOUBLINGS_MAX)
            self._revoked += 1
        return min(seconds, RECONNECT_AFTER_SECONDS_MAX)

    def break_off(self) -> None:
        """Break the session off without a Goodbye, as the loss of power does; whoever calls it cancels `run` before it runs again."""
        if self._pump is not None:
            self._pump.break_off()

    async def request_grant(self, digests: tuple[str, ...]) -> Grant:
        """Return sources and a token for these blobs.

        Raises:
            PermissionDenied: The controller refuses; the message says why.
            Unavailable: There was no session, or none that lasted until the answer; ask again later.
        """
        try:
            async with asyncio.timeout(GRANT_SECONDS_MAX), self._grant_slots:
                while (pump := self._pump) is None or not self.connection.number:
                    await self._taken.wait()
                grant = await pump.request_grant(digests)
        except TimeoutError as error:
            raise Unavailable(f"no grant within {GRANT_SECONDS_MAX:.0f} s: {self.connection.reason or 'the controller is slow'}") from error
        if grant.refusal:
            raise PermissionDenied(grant.refusal)
        return grant

    def _connect(self) -> Connect:
        """Return what opens a call with the newest certificates; the first look is now, because a file that is missing ends the agent."""
        identity = self._identity
        credentials_of(identity)
        return lambda: open_call(identity.session_address, identity.fleet_id, credentials_of(identity))

    async def _session(self, connect: Connect) -> Goodbye | None:
        """Hold one session from connecting to its end; return the controller's Goodbye, or None if there was none."""
        goodbye: Goodbye | None = None
        try:
            async with connect() as call:
                pump = Pump(call, self._hello(), self._clock, self._ledger, self._reports, logs=self._logs, on_welcome=self._welcomed)
                self._pump = pump
                try:
                    await pump.run()
                finally:
                    goodbye = pump.goodbye
        except (Unavailable, FailedPrecondition) as error:
            self._lost(f"session with {self._identity.session_address}: {error.message}")
        except Exception as error:  # noqa: BLE001 (the edge of a session: the board goes on serving, and the next one may go better)
            _log.exception("the session met an internal error")
            self._lost(f"internal error of the agent: {error!r}; its log has the cause")
        else:
            assert goodbye is not None
            self._lost(f"{goodbye.reason.value}: {goodbye.message}")
        finally:
            self._taken.clear()
            self._pump = None
        return goodbye

    def _hello(self) -> Hello:
        machine, held = self._machine(), self._ledger.held
        return Hello(
            protocol=PROTOCOL_VERSION,
            fleet_id=self._identity.fleet_id,
            machine_id=machine.machine_id,
            boot_id=machine.boot_id,
            assignment_number=held.number,
            assignment_sha256=held.sha256,
            facts=machine.facts,
            serving_url=machine.serving_url,
            answers_logs=True,
        )

    def _welcomed(self, welcome: Welcome) -> None:
        _log.info("session taken", extra={"number": welcome.session_number})
        self.connection = Connection(number=welcome.session_number, reason="")
        self._lost_at, self._revoked = None, 0
        if welcome.time is not None:
            self._on_time(welcome.time)
        self._taken.set()
        self._on_change()

    def _lost(self, reason: str) -> None:
        if reason != self.connection.reason:
            _log.warning("no session", extra={"reason": reason})
        if self._lost_at is None:
            self._lost_at = self._clock.monotonic()
        self.connection = Connection(reason=reason)
        self._on_change()


@contextlib.asynccontextmanager
async def open_call(address: str, fleet_id: str, credentials: grpc.ChannelCredentials) -> AsyncIterator[Call]:
    """Open the stream to the controller at `address`; the connection is made in the background and closed with the block.

    Several addresses, separated by commas, are tried in turn: of controllers that share a database only the leader answers.
    """
    target = f"ipv4:{address}" if "," in address else address
    options = [*_OPTIONS, ("grpc.ssl_target_name_override", server_name("controller", fleet_id))]
    async with grpc.aio.secure_channel(target, credentials, options=options) as channel:
        yield agent_pb2_grpc.AgentServiceStub(channel).Session()  # type: ignore[no-untyped-call]  # generated


def credentials_of(identity: Identity) -> grpc.ChannelCredentials:
    """Return the credentials in the files of an identity.

    Raises:
        FailedPrecondition: A file cannot be read.
    """
    try:
        return grpc.ssl_channel_credentials(
            root_certificates=identity.ca_file.read_bytes(),
            private_key=identity.key_file.read_bytes(),
            certificate_chain=identity.cert_file.read_bytes(),
        )
    except OSError as error:
        raise FailedPrecondition(f"identity file {error.filename} cannot be read: {error.strerror}") from error
