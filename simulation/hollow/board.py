"""One hollow board: its identity, its machine and its session with the controller.

In: an `Enrolled` and a scenario. Out: a board in session, which can be cut off for a while (`cut`). The session is the shipped agent's own
(`agent.session`), over gRPC with mutual TLS, on a connection of its own; `app.py` makes one of these for each board.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, cast

import grpc
import grpc.aio

from agent.session.pump import Call
from agent.session.runner import Machine, SessionRunner, open_call
from rkfleet.clock import Clock
from rkfleet.errors import Unavailable
from rkfleet.identity import Identity
from rkfleet.v1 import agent_pb2 as pb
from simulation.hollow.agenda import Agenda
from simulation.hollow.identities import Enrolled
from simulation.hollow.machine import HollowMachine, facts_of
from simulation.hollow.scenario import Scenario

__all__ = ["HollowBoard"]


class HollowBoard:
    """One board.

    Attributes:
        name: Its name.
        soc: Its chip.
        machine: What it plays.
    """

    def __init__(
        self, enrolled: Enrolled, soc: str, *, scenario: Scenario, clock: Clock, agenda: Agenda, jitter: random.Random, boot_id: str,
        hands: asyncio.Semaphore,
    ) -> None:  # fmt: skip
        """Make the board.

        Args:
            enrolled: Who it is.
            soc: Its chip.
            scenario: What it plays.
            clock: Time.
            agenda: What is due on it.
            jitter: Spreads its reconnects.
            boot_id: Of the boot that this process is to it.
            hands: Held from the first packet of a connection until the controller's first answer. Boards have a processor each for their
                handshake and these have one together: all at once would be slower than any board waits.
        """
        self.name: Final = enrolled.name
        self.soc: Final = soc
        self._enrolled: Final = enrolled
        self._clock: Final = clock
        self._hands: Final = hands
        self._cut_until = 0.0
        self._calls: Final[set[_Cuttable]] = set()
        facts = facts_of(soc)
        self.machine: Final = HollowMachine(enrolled.name, facts, scenario, clock, agenda)
        shown = Machine(machine_id=enrolled.machine_id, boot_id=boot_id, facts=facts, serving_url="")
        self._session: Final = SessionRunner(
            identity=Identity(
                fleet_id=enrolled.fleet_id,
                name=enrolled.name,
                controller="",
                session_address=enrolled.session_address,
                directory=Path(),  # There is none: `_connect` brings the key along.
            ),
            machine=lambda: shown,
            clock=clock,
            jitter=jitter,
            ledger=self.machine,
            reports=self.machine.reports,
            connect=self._connect,
        )

    @property
    def in_session(self) -> bool:
        """Whether the controller has taken the session."""
        return self._session.connection.number > 0

    @property
    def away(self) -> bool:
        """Whether the scenario keeps it from the controller now."""
        return self._clock.monotonic() < self._cut_until

    async def run(self) -> None:
        """Keep the session until cancelled."""
        await self._session.run()

    def cut(self, seconds: float) -> None:
        """Break the connection without a word, as a network does, and let no other one be made for so many seconds."""
        self._cut_until = max(self._cut_until, self._clock.monotonic() + seconds)
        for call in tuple(self._calls):
            call.cut()

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncIterator[Call]:
        async with contextlib.AsyncExitStack() as hand:
            await hand.enter_async_context(self._hands)
            if self.away:
                raise Unavailable("the scenario keeps this board away")
            credentials = grpc.ssl_channel_credentials(
                root_certificates=self._enrolled.ca_pem.encode(),
                private_key=self._enrolled.key_pem.encode(),
                certificate_chain=self._enrolled.certificate_pem.encode(),
            )
            async with open_call(self._enrolled.session_address, self._enrolled.fleet_id, credentials) as call:
                cuttable = _Cuttable(call, hand)
                self._calls.add(cuttable)
                try:
                    yield cast("Call", cuttable)
                finally:
                    self._calls.discard(cuttable)


class _Lost(grpc.RpcError):
    """The connection is gone."""

    def __str__(self) -> str:
        return "the scenario cut the connection"


class _Cuttable:
    """A call that can be broken from this side and then looks as if the network had done it."""

    def __init__(self, call: Call, hand: contextlib.AsyncExitStack) -> None:
        self._call: Final = call
        self._hand: Final = hand  # Let go of with the first answer.
        self._is_cut = False

    def cut(self) -> None:
        """Break it."""
        self._is_cut = True
        self._call.cancel()

    async def read(self) -> Any:
        """See `grpc.aio.StreamStreamCall`."""
        with self._lost():
            response = await self._call.read()
        await self._hand.aclose()
        return response

    async def write(self, request: pb.SessionRequest) -> None:
        """See `grpc.aio.StreamStreamCall`."""
        with self._lost():
            await self._call.write(request)

    async def done_writing(self) -> None:
        """See `grpc.aio.StreamStreamCall`."""
        with self._lost():
            await self._call.done_writing()

    async def details(self) -> str:
        """See `grpc.aio.StreamStreamCall`."""
        return await self._call.details()

    async def code(self) -> grpc.StatusCode:
        """See `grpc.aio.StreamStreamCall`."""
        return await self._call.code()

    @contextlib.contextmanager
    def _lost(self) -> Any:
        """To those who read and write, gRPC tells of a call cancelled on this side as if they were cancelled themselves."""
        try:
            yield
        except asyncio.CancelledError as error:
            if not self._is_cut:
                raise
            raise _Lost from error
