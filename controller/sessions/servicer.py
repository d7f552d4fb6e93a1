"""The session listener: gRPC with mutual TLS, one bidirectional stream per board.

In: connections of boards. Out: for each stream a verified `Peer` and a decoded link, given to the hub. Called by `app.py`. It is the only
file of the controller that sees gRPC.

Only certificates of the boards' CA get through the handshake. Keepalive pings find peers whose connection is gone without a FIN; the hub's
heartbeats find peers that are connected and do nothing.

Source: gRPC `doc/keepalive.md` for the channel arguments and their interplay.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import Final

import grpc
import grpc.aio

from controller.sessions.hub import Hub
from controller.trust.pki import Peer, Pki, read_peer
from rkfleet import metric_names
from rkfleet.errors import FailedPrecondition, Unauthenticated, Unavailable
from rkfleet.metrics import Metrics
from rkfleet.report import BoardState
from rkfleet.session import BoardMessage, ControllerMessage
from rkfleet.v1 import agent_pb2 as pb
from rkfleet.v1 import agent_pb2_grpc
from rkfleet.wire import MESSAGE_BYTES_MAX, decode_board_message, decode_report, encode_controller_message

__all__ = ["serve_sessions"]

STOP_SECONDS: Final = 1.0  # Goodbyes are said by then; what is left is cut.
STREAMS_PER_CONNECTION_MAX: Final = 4  # A board needs one, and for a moment a second when it comes again.

_OPTIONS: Final[list[tuple[str, int]]] = [
    ("grpc.so_reuseport", 0),  # A second controller on this port must fail, not share boards with the first.
    ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.tsi.max_frame_size", 4_096),  # A buffer of this size for each connection; a report has half of it, and 16 kB is the default.
    ("grpc.keepalive_time_ms", 20_000),  # Twice the heartbeat: a board that reports is not pinged.
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),  # No limit: the pings are the point.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # Boards ping every 20 s; the default of 5 min would call that abuse.
]

_BROKEN: Final = (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError)  # What a dead stream raises, by moment.

Context = grpc.aio.ServicerContext[pb.SessionRequest, pb.SessionResponse]


@contextlib.asynccontextmanager
async def serve_sessions(hub: Hub, pki: Pki, host: str, port: int, metrics: Metrics) -> AsyncIterator[int]:
    """Serve sessions for as long as the block runs, and give it the bound port; at the end every board gets Goodbye SHUTDOWN.

    Raises:
        FailedPrecondition: The address cannot be bound.
    """
    server = grpc.aio.server(options=_OPTIONS)
    agent_pb2_grpc.add_AgentServiceServicer_to_server(_Servicer(hub, metrics), server)  # type: ignore[no-untyped-call]  # generated
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_secure_port(address, _credentials(pki))
    except RuntimeError as error:
        raise FailedPrecondition(f"session listener cannot be bound to {address}: {error}") from error
    await server.start()
    try:
        yield bound
    finally:
        await hub.close()
        await server.stop(STOP_SECONDS)


def _credentials(pki: Pki) -> grpc.ServerCredentials:
    _, key_file = pki.server_files("controller")
    return grpc.ssl_server_credentials(
        [(key_file.read_bytes(), pki.session_pem())],
        root_certificates=pki.ca_pem("boards").encode(),
        require_client_auth=True,
    )


class _Servicer(agent_pb2_grpc.AgentServiceServicer):
    """Gives each stream to the hub."""

    def __init__(self, hub: Hub, metrics: Metrics) -> None:
        self._hub: Final = hub
        self._metrics: Final = metrics

    async def Session(self, request_iterator: object, context: Context) -> None:  # noqa: ARG002, N802 (gRPC's signature and name)
        """Conduct one stream."""
        try:
            peer = _peer(context)
        except Unauthenticated as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, error.message)
        await self._hub.serve(peer, _Link(context, self._metrics))


def _peer(context: Context) -> Peer:
    shown = next(iter(context.auth_context().get("x509_pem_cert", ())), None)
    if shown is None:
        raise Unauthenticated("the caller showed no certificate")
    return read_peer(shown)


class _Link:
    """One stream, decoded; gRPC's errors become Unavailable.

    Most reports are heartbeats that say what the one before said. Their state is not decoded again: it is the very same value, so that
    nobody has to compare it.
    """

    def __init__(self, context: Context, metrics: Metrics) -> None:
        self._context: Final = context
        self._metrics: Final = metrics
        self._state: BoardState | None = None
        self._state_digest = b""

    async def read(self) -> BoardMessage | None:
        """Return the next message, or None when the board closed its direction."""
        try:
            request = await self._context.read()
        except _BROKEN as error:
            raise Unavailable(f"stream of {self._context.peer()} broke: {error}") from error
        if not isinstance(request, pb.SessionRequest):  # grpc.aio.EOF
            return None
        kind = request.WhichOneof("message") or "unknown"
        self._metrics.counter(metric_names.SESSION_MESSAGES, direction="received", message=kind).inc()
        return self._report(request) if kind == "report" else decode_board_message(request)

    def _report(self, request: pb.SessionRequest) -> BoardMessage:
        digest = hashlib.sha256(request.report.state.SerializeToString()).digest()
        if digest == self._state_digest:
            return decode_report(request.report, self._state)
        message = decode_report(request.report)
        self._state, self._state_digest = message.state, digest
        return message

    async def write(self, message: ControllerMessage) -> None:
        """Hand a message to gRPC."""
        encoded = encode_controller_message(message)
        try:
            await self._context.write(encoded)
        except _BROKEN as error:
            raise Unavailable(f"stream of {self._context.peer()} broke: {error}") from error
        self._metrics.counter(metric_names.SESSION_MESSAGES, direction="sent", message=encoded.WhichOneof("message") or "unknown").inc()
