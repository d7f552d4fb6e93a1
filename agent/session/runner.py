"""The session of this board: keeps one stream to the controller, for as long as the agent runs.

In: the identity, the ledger, the reports cell. Out: offers given to the ledger, reports and log sent, grants on demand. `app.py` makes one
and runs it; the loop knows nothing of it, and the board serves just the same while there is no session. With `pump.py` it is what the agent
has of gRPC.

Reconnects are jittered and grow to half a minute. All durations are monotonic, so a machine whose clock jumps keeps its session.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

import grpc
import grpc.aio
import msgspec

from agent.session.pump import Call, Ledger, Pump, Reports
from rkfleet.clock import Clock
from rkfleet.enrolment import server_name
from rkfleet.errors import FailedPrecondition, PermissionDenied, Unavailable
from rkfleet.identity import Identity
from rkfleet.report import BoardFacts
from rkfleet.session import GRANTS_OUTSTANDING_MAX, PROTOCOL_VERSION, Goodbye, Grant, Hello, Welcome
from rkfleet.v1 import agent_pb2_grpc
from rkfleet.wire import MESSAGE_BYTES_MAX

__all__ = ["Connection", "Dial", "Machine", "SessionRunner", "longest_pause", "prepare_dialling"]

Dial = Callable[[], AbstractAsyncContextManager[Call]]
"""Opens one stream for as long as the block runs; whether anybody answers shows in the call."""

RECONNECT_SECONDS_MIN: Final = 1.0  # The first attempt comes somewhere in this second: a restarted controller meets its fleet spread out.
RECONNECT_SECONDS_MAX: Final = 30.0  # 5,000 boards then knock 170 times a second, below the 275 handshakes that one process can do.
RECONNECT_AFTER_SECONDS_MAX: Final = 600.0  # What a Goodbye may ask for; a mistaken controller must not park a board for weeks.
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


def prepare_dialling(identity: Identity) -> Dial:
    """Return how to open a stream to this board's controller, over gRPC with mutual TLS.

    Raises:
        FailedPrecondition: A file of the identity cannot be read.
    """
    credentials = _credentials(identity)
    options = [*_OPTIONS, ("grpc.ssl_target_name_override", server_name("controller", identity.fleet_id))]

    @asynccontextmanager
    async def dial() -> AsyncIterator[Call]:
        async with grpc.aio.secure_channel(identity.session_address, credentials, options=options) as channel:
            stub = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
            yield stub.Session()

    return dial


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
        on_change: Callable[[], None] = lambda: None,
        connect: Callable[[Identity], Dial] = prepare_dialling,
    ) -> None:
        """Take what a session needs.

        Args:
            identity: Name, address, key and certificates of this board.
            machine: Looked up for every Hello.
            clock: Monotonic time only.
            jitter: Spreads reconnects.
            ledger: Where offers go.
            reports: Where reports come from.
            on_change: Called when `connection` changed; must not block.
            connect: Prepares how streams are opened; called once, when the runner starts.
        """
        self._identity: Final = identity
        self._machine: Final = machine
        self._clock: Final = clock
        self._jitter: Final = jitter
        self._ledger: Final = ledger
        self._reports: Final = reports
        self._on_change: Final = on_change
        self._connect: Final = connect
        self._grant_slots: Final = asyncio.Semaphore(GRANTS_OUTSTANDING_MAX)
        self._pump: Pump | None = None
        self._taken: Final = asyncio.Event()
        self.connection = Connection()

    async def run(self) -> None:
        """Connect, and connect again, until cancelled; then say Goodbye.

        Raises:
            FailedPrecondition: A file of the identity cannot be read.
        """
        dial = self._connect(self._identity)
        away_since = self._clock.monotonic()
        while True:
            began = self._clock.monotonic()
            goodbye = await self._session(dial)
            ended = self._clock.monotonic()
            if ended - began >= STEADY_SECONDS:
                away_since = ended
            at_least = min(goodbye.reconnect_after_seconds, RECONNECT_AFTER_SECONDS_MAX) if goodbye else 0.0
            pause = self._jitter.uniform(0.0, longest_pause(ended - away_since))
            await self._clock.sleep(at_least * self._jitter.uniform(1.0, 1.5) + pause)

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

    async def _session(self, dial: Dial) -> Goodbye | None:
        """Hold one session from connecting to its end; return the controller's Goodbye, or None if there was none."""
        async with dial() as call:
            pump = Pump(call, self._hello(), self._clock, self._ledger, self._reports, on_welcome=self._welcomed)
            self._pump = pump
            try:
                await pump.run()
            except Unavailable as error:
                self._lost(f"session with {self._identity.session_address}: {error.message}")
            else:
                assert pump.goodbye is not None
                self._lost(f"{pump.goodbye.reason.value}: {pump.goodbye.message}")
            finally:
                self._taken.clear()
                self._pump = None
        return pump.goodbye

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
        )

    def _welcomed(self, welcome: Welcome) -> None:
        _log.info("session taken", extra={"number": welcome.session_number})
        self.connection = Connection(number=welcome.session_number, reason="")
        self._taken.set()
        self._on_change()

    def _lost(self, reason: str) -> None:
        if reason != self.connection.reason:
            _log.warning("no session", extra={"reason": reason})
        self.connection = Connection(reason=reason)
        self._on_change()


def _credentials(identity: Identity) -> grpc.ChannelCredentials:
    try:
        return grpc.ssl_channel_credentials(
            root_certificates=identity.ca_file.read_bytes(),
            private_key=identity.key_file.read_bytes(),
            certificate_chain=identity.cert_file.read_bytes(),
        )
    except OSError as error:
        raise FailedPrecondition(f"identity file {error.filename} cannot be read: {error.strerror}") from error
