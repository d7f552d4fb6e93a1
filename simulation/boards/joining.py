"""How simulated boards join: one join token each, asked for by an operator's kubeconfig, and the enrolment that every board makes.

In: a kubeconfig and, per board, its name, directory and machine id. Out: its `Identity`. Called by `simulation/boards/app.py`. It is the
enrolment client of real boards (`rkfleet.enroll`), called in a thread instead of a child process: a hundred children would take minutes.
"""

from __future__ import annotations

import asyncio
import logging
import random
from pathlib import Path
from typing import Any, Final

from rkfleet.client import ApiClient, Cluster, find_kubeconfig, load_cluster
from rkfleet.clock import Clock
from rkfleet.disk import in_thread
from rkfleet.enroll import enroll
from rkfleet.enrolment import JOIN_TOKENS_PATH
from rkfleet.errors import FleetError, NotFound
from rkfleet.identity import Enrolment, Identity, load_identity
from rkfleet.renew import renew
from rkfleet.renewal import Renewal

__all__ = ["Joining"]

Json = dict[str, Any]

TOGETHER_MAX: Final = 2  # Enrolments at a time: each is two handshakes and two signatures, and the threads also serve the boards' disks.
TOKEN_SECONDS: Final = 600  # A token is used at once, or after a controller that restarts is back.
RETRY_SECONDS_MIN: Final = 0.5
RETRY_SECONDS_MAX: Final = 15.0

_log = logging.getLogger(__name__)


class Joining:
    """Gets identities for the boards of one host."""

    def __init__(self, kubeconfig: Path, controller: str, clock: Clock, jitter: random.Random) -> None:
        """Take the operator's kubeconfig, and the API's URL for boards where it is not the kubeconfig's."""
        self._kubeconfig: Final = kubeconfig
        self._controller: Final = controller
        self._clock: Final = clock
        self._jitter: Final = jitter
        self._turns: Final = asyncio.Semaphore(TOGETHER_MAX)
        self._waits: Final[dict[str, str]] = {}
        self._tokens: Final[dict[str, Json]] = {}

    def why(self, name: str) -> str:
        """Return what a board's enrolment waits for; empty for nothing."""
        return self._waits.get(name, "")

    async def ensure(self, name: str, directory: Path, machine_id: str) -> Identity:
        """Return the identity in this directory, enrolling first if there is none; waits for a controller that is away.

        Raises:
            PermissionDenied: The kubeconfig's user may not make join tokens, or the controller refuses the board.
            Conflict: Another machine has joined under this name.
        """
        try:
            return await self._ensure(name, directory, machine_id)
        finally:
            self._waits.pop(name, None)

    async def renew(self, directory: Path, renewal: Renewal) -> None:
        """Renew the certificates in this directory, in turn with the enrolments.

        Raises:
            FleetError: It failed; the message says why.
        """
        async with self._turns:
            await in_thread(renew, directory, renewal)

    async def _ensure(self, name: str, directory: Path, machine_id: str) -> Identity:
        pause = RETRY_SECONDS_MIN
        while (found := load_identity(directory)) is None:
            try:
                async with self._turns:
                    await self._enroll(name, directory, machine_id)
            except FleetError as error:
                if not error.retryable and not isinstance(error, NotFound):  # a kubeconfig may still be written by the controller
                    raise
                self._waits[name] = error.message
                _log.warning("enrolment waits: %s", error.message)
                await self._clock.sleep(self._jitter.uniform(pause / 2, pause))
                pause = min(2 * pause, RETRY_SECONDS_MAX)
        return found

    async def _enroll(self, name: str, directory: Path, machine_id: str) -> None:
        cluster = load_cluster(find_kubeconfig(self._kubeconfig))
        answer = self._tokens.get(name) or await self._ask_token(cluster)
        self._tokens[name] = answer  # one that was not used up is good for the next try, so that tries leave no tokens behind
        enrolment = Enrolment(
            role="board",
            name=name,
            controller=self._controller or cluster.server,
            token=answer["token"],
            ca_pin=answer["caPin"],
            machine_id=machine_id,
        )
        try:
            await in_thread(enroll, directory, enrolment)
        except FleetError as error:
            if not error.retryable:
                del self._tokens[name]  # used up, expired, or of another fleet
            raise
        del self._tokens[name]

    async def _ask_token(self, cluster: Cluster) -> Json:
        async with ApiClient(cluster, self._clock) as api:
            answer: Json = await api.request("POST", JOIN_TOKENS_PATH, body={"role": "board", "lifetimeSeconds": TOKEN_SECONDS})
        return answer
