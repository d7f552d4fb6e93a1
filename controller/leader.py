"""What only one controller does at a time: it holds the boards' sessions and runs the loops.

In: the store in the hands of a leader, and the parts that every controller has. Out: work until it is cancelled, because the controller
stops or leads no more. Everything here is made anew for each term, so nothing of an old one is believed. Made by `app.py`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from controller.api.logs import Ask
from controller.config import Config
from controller.machinery.events import EventRecorder
from controller.machinery.manager import Manager
from controller.outages import Outages
from controller.reconcilers.act import Applier
from controller.reconcilers.assignment import AssignmentMinter
from controller.reconcilers.loops import Loops, add_loops
from controller.sessions.hub import Hub
from controller.sessions.seams import Seams
from controller.sessions.servicer import serve_sessions
from controller.store.base import Store
from controller.trust.pki import Pki
from controller.trust.pull_tokens import GrantIssuer, TokenSigner
from controller.trust.tokens import Tokens
from rkfleet.clock import Clock
from rkfleet.kinds import KINDS
from rkfleet.metrics import Metrics
from rkfleet.registry_client import RegistryClient

__all__ = ["Leader"]


class Leader:
    """The work of one term."""

    def __init__(
        self,
        *,
        config: Config,
        identity: str,
        clock: Clock,
        ids: Callable[[], str],
        chance: random.Random,
        metrics: Metrics,
        pki: Pki,
        tokens: Tokens,
        signer: TokenSigner,
        store: Store,
        registry: RegistryClient,
        outages: Outages,
    ) -> None:
        self._config: Final = config
        self._metrics: Final = metrics
        self._pki: Final = pki
        self._events: Final = EventRecorder(store, clock, ids, metrics=metrics)
        self._manager: Final = Manager(clock=clock, random=chance, metrics=metrics)
        applier = Applier(store, clock, ids, self._events)
        minter = AssignmentMinter(store, applier)
        seams = Seams(
            store=store,
            clock=clock,
            jitter=chance,
            new_uid=ids,
            minter=minter,
            issuer=GrantIssuer(signer, config.registry_url, lambda board: self._hub.assignment_of(board)),  # noqa: PLW0108 (made below)
            tokens=tokens,
            record=self._events.record,
            metrics=metrics,
            on_presence=lambda board: self._loops.wake_board(board),  # noqa: PLW0108 (made below)
            samples=outages,
        )
        self._hub: Final = Hub(fleet_id=pki.fleet_id, controller=identity, seams=seams)
        self._loops: Final[Loops] = add_loops(
            self._manager,
            store,
            KINDS,
            clock=clock,
            random=chance,
            applier=applier,
            minter=minter,
            sessions=self._hub,
            offers=self._hub,
            identities=self._hub,
            blobs=registry,
            metrics=metrics,
        )

    @property
    def synced(self) -> bool:
        """Whether the loops have seen everything once."""
        return self._manager.synced

    def open_log(self, board: str) -> AbstractContextManager[Ask]:
        """Hold a place to read logs of a board; see `controller.api.logs.OpenLog`."""
        return self._hub.open_log(board)

    async def run(self) -> None:
        """Hold sessions and run the loops until cancelled.

        Raises:
            FailedPrecondition: The port of the sessions is taken.
        """
        config = self._config
        async with serve_sessions(self._hub, self._pki, config.host, config.grpc_port, self._metrics), asyncio.TaskGroup() as tasks:
            tasks.create_task(self._events.run())
            tasks.create_task(self._manager.run())
