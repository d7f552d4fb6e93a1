"""Requests to a Kubernetes API: encoded bodies in, bytes of answers out; the only module that imports the official client.

In: method, path, query and body of a request. Out: the bytes of a good answer, a stream of lines, or a `FleetError`. From the official
client come credentials (kubeconfig with its exec plugins, or the service account of a pod), TLS and connections; its typed models are
not used. `store.py` and `watch.py` call this.

A request that the server certainly did not carry out (429, and 401 with credentials that are read anew) is sent again, whatever it is.
One that only reads is sent again after any failure that may pass. Waits and attempts have the limits below; who needs more patience asks
again.

Sources: Kubernetes `client-go/rest/request.go` and `with_retry.go` (what is sent again, Retry-After); RFC 9110, 10.2.3.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlencode

import aiohttp
import msgspec
import yaml
from kubernetes.aio import config
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject

from controller.store.kubernetes.answers import error_of
from rkfleet.clock import Clock
from rkfleet.errors import FailedPrecondition, FleetError, ResourceExhausted, Unauthenticated, Unavailable

__all__ = ["Client", "Lines"]

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]

REQUEST_SECONDS_MAX: Final = 35.0  # kube-apiserver gives up a request after 30 s where a client asks for less than its own 60.
CONNECT_SECONDS_MAX: Final = 10.0  # TCP and TLS; a machine that needs longer is away.
CONNECTIONS_MAX: Final = 32  # Requests at once: kube-apiserver lets a client do about this many before it makes it wait.
ATTEMPTS_MAX: Final = 4  # Of one request. With the waits below a restart of the server's process is outlived, a failure of it is told.
RETRY_SECONDS_MIN: Final = 0.1
RETRY_SECONDS_MAX: Final = 5.0  # Also of what Retry-After asks for: a caller would rather hear of an overload than hang.
LINE_BYTES_MAX: Final = 8 << 20  # An object of 1 MiB may have its bytes escaped (six for one), and has an envelope.
READ_BYTES: Final = 1 << 20  # Of a stream that are read ahead.

_REQUEST_TIMES: Final = aiohttp.ClientTimeout(total=REQUEST_SECONDS_MAX, sock_connect=CONNECT_SECONDS_MAX)
_TROUBLE: Final = (aiohttp.ClientError, TimeoutError, OSError)
_HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # The API stands near; unpacking would cost this event loop more than the network saves.
}


class _Call(msgspec.Struct, frozen=True):
    """One request."""

    method: Method
    path: str
    query: Mapping[str, str]
    body: Any
    media_type: str


class Client:
    """See the module docstring; `open` is the way to one."""

    def __init__(self, configuration: Configuration, load: _Credentials, clock: Clock, chance: random.Random) -> None:
        self._configuration: Final = configuration
        self._load: Final = load
        self._clock: Final = clock
        self._random: Final = chance
        self._base: Final = configuration.host.rstrip("/")
        self._requests: Final = RESTClientObject(_pooled(configuration, CONNECTIONS_MAX))
        self._streams: Final = RESTClientObject(_pooled(configuration, 0))  # As many as watches are open; each has its own connection.

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, kubeconfig: Path | None, context: str, *, clock: Clock, chance: random.Random) -> AsyncIterator[Client]:
        """Read credentials; nothing is asked of the server yet.

        Args:
            kubeconfig: The file; None for the service account of the pod that this runs in.
            context: Which context of the file; empty for its current one.
            clock: For waits.
            chance: Jitter of the waits.

        Raises:
            FailedPrecondition: The credentials cannot be read, or would go over a connection that is not verified.
        """
        configuration, load = Configuration(), _Credentials(kubeconfig, context)
        await load.into(configuration)
        if not configuration.host.startswith("https://") or not configuration.verify_ssl:
            raise FailedPrecondition(
                f"the Kubernetes API {configuration.host} must be https with a certificate that is verified; set certificate-authority in"
                f" {kubeconfig or 'the pod'} and remove insecure-skip-tls-verify"
            )
        client = cls(configuration, load, clock, chance)
        try:
            yield client
        finally:
            await client._requests.close()
            await client._streams.close()

    async def request(
        self, method: Method, path: str, query: Mapping[str, str] | None = None, body: Any = None, *, media_type: str = "application/json"
    ) -> bytes:
        """Send a request and return the body of its answer.

        Args:
            method: Of HTTP.
            path: Below the server's address, from `/api` on.
            query: Parameters.
            body: JSON; None for none.
            media_type: Of the body.

        Raises:
            FleetError: What the server refuses, as its Status says; Unavailable where it cannot be reached.
        """
        call, renewed = _Call(method, path, query or {}, body, media_type), False
        for attempt in range(1, ATTEMPTS_MAX + 1):
            readings = self._load.readings
            try:
                return await self._once(call)
            except Unauthenticated:
                if renewed:
                    raise
                renewed = True
                await self._load.anew(self._configuration, readings)
            except (ResourceExhausted, Unavailable) as error:
                safe = method == "GET" or isinstance(error, ResourceExhausted)
                if not safe or attempt == ATTEMPTS_MAX:
                    raise
                await self._clock.sleep(self.pause_seconds(attempt, error))
        return await self._once(call)

    async def _once(self, call: _Call) -> bytes:
        try:
            response = await self._send(self._requests, call, _REQUEST_TIMES)
            async with response:
                answer = await response.read()
        except _TROUBLE as error:
            raise self._unreachable(call, error) from error
        if response.status >= 300:
            raise error_of(answer, response.status, response.headers.get("retry-after", ""))
        return answer

    async def stream(self, path: str, query: Mapping[str, str], *, silence_seconds_max: float) -> Lines:
        """Open a watch and return its lines; tried once.

        Args:
            path: Of the collection.
            query: Parameters.
            silence_seconds_max: The connection is held to be dead when nothing came for so long.

        Raises:
            FleetError: What the server refuses, as its Status says; Unavailable where it cannot be reached.
        """
        call = _Call("GET", path, query, None, "")
        readings = self._load.readings
        times = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS_MAX, sock_read=silence_seconds_max)
        try:
            response = await self._send(self._streams, call, times)
            if response.status < 300:
                return Lines(response)
            async with response:
                answer = await response.read()
        except _TROUBLE as error:
            raise self._unreachable(call, error) from error
        refusal = error_of(answer, response.status, response.headers.get("retry-after", ""))
        if isinstance(refusal, Unauthenticated):
            await self._load.anew(self._configuration, readings)  # For the next attempt.
        raise refusal

    def pause_seconds(self, attempt: int, error: FleetError) -> float:
        """Return how long to wait after the attempt of this number (from 1) before the next."""
        ceiling = min(RETRY_SECONDS_MIN * 2.0**attempt, RETRY_SECONDS_MAX)
        if isinstance(error, ResourceExhausted):
            return min(float(error.retry_after_seconds), RETRY_SECONDS_MAX) * self._random.uniform(0.5, 1.0)
        return ceiling * self._random.uniform(0.5, 1.0)

    async def _send(self, rest: RESTClientObject, call: _Call, times: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        headers = dict(_HEADERS)
        if (bearer := (await self._configuration.auth_settings()).get("BearerToken")) is not None:
            headers["Authorization"] = str(bearer["value"])
        if call.body is not None:
            headers["Content-Type"] = call.media_type
        url = f"{self._base}{call.path}{'?' + urlencode(call.query) if call.query else ''}"
        answer: Any = await rest.request(call.method, url, headers=headers, body=call.body, _request_timeout=times)  # type: ignore[no-untyped-call]
        response: aiohttp.ClientResponse = answer.response
        return response

    def _unreachable(self, call: _Call, error: Exception) -> Unavailable:
        return Unavailable(f"{call.method} {call.path}: the Kubernetes API {self._base} cannot be reached: {_said(error)}")


class Lines:
    """The lines of an open watch; `close` ends a waiting `next`."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response: Final = response
        self._buffer = bytearray()
        self._lines: list[bytes] = []

    async def next(self) -> bytes | None:
        """Return the next line, or None at the end of the stream.

        Raises:
            Unavailable: The connection broke, or was silent for too long.
        """
        while not self._lines:
            try:
                piece = await self._response.content.readany()
            except _TROUBLE as error:
                raise Unavailable(f"a watch of the Kubernetes API broke: {_said(error)}") from error
            if not piece:
                return None
            self._buffer += piece
            *lines, rest = self._buffer.split(b"\n")
            if len(rest) > LINE_BYTES_MAX:
                raise Unavailable(f"a watch of the Kubernetes API sent a line of more than {LINE_BYTES_MAX} bytes")
            self._buffer = rest
            self._lines = [bytes(line) for line in reversed(lines) if line.strip()]
        return self._lines.pop()

    def close(self) -> None:
        """Close the connection."""
        self._response.close()


class _Credentials:
    """Where the credentials are: read at the start, and again when the server does not take them any more.

    Attributes:
        readings: How often they were read.
    """

    def __init__(self, kubeconfig: Path | None, context: str) -> None:
        self._kubeconfig: Final = kubeconfig
        self._context: Final = context
        self._reading: Final = asyncio.Lock()
        self.readings = 0

    async def anew(self, configuration: Configuration, readings: int) -> None:
        """Read them again, unless somebody did since there were so many readings: many requests are refused at once, one program is run.

        Raises:
            FailedPrecondition: They cannot be read.
        """
        async with self._reading:
            if self.readings == readings:
                await self.into(configuration)

    async def into(self, configuration: Configuration) -> None:
        """Read them.

        Raises:
            FailedPrecondition: They cannot be read.
        """
        self.readings += 1
        try:
            if self._kubeconfig is None:
                config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
                return
            where, context = str(self._kubeconfig), self._context or None
            await config.load_kube_config(where, context, configuration, persist_config=False)  # type: ignore[no-untyped-call]
        except (config.ConfigException, yaml.YAMLError, OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            place = f"kubeconfig {self._kubeconfig}" if self._kubeconfig else "service account of this pod"
            raise FailedPrecondition(f"the {place} cannot be used: {error}; give a kubeconfig with a cluster and a user") from error


def _pooled(configuration: Configuration, connections_max: int) -> Configuration:
    """Return what a pool of connections is made from; 0 connections is no limit."""
    pooled = Configuration()
    for field in ("host", "ssl_ca_cert", "ca_cert_data", "cert_file", "key_file", "tls_server_name", "proxy", "proxy_headers"):
        setattr(pooled, field, getattr(configuration, field))
    pooled.connection_pool_maxsize = connections_max
    pooled.client_session_kwargs = {"read_bufsize": READ_BYTES}
    return pooled


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
