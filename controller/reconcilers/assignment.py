"""The assignment loop: what a board must run, numbered, offered to its session.

`AssignmentMinter.mint` is called by the hub when a board opens a session and by the reconciler when something that a board runs has
changed. It always plans from a consistent list of the store: from a cache that lags, an assignment could lack a replica that an earlier
one had, and the board would stop it. Woken by Replicas, by the deployments and Models behind them, and by the tuning of Boards. Decisions
are `planning/assignment.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeVar

import msgspec

from controller.planning import events
from controller.planning.actions import Record, WriteStatus
from controller.planning.assignment import Offer, next_number, plan_assignment
from controller.reconcilers.act import Applier
from controller.reconcilers.views import Offers, PresenceReader, by_name
from controller.store.base import Item, Selection, Store, decode_item
from rkfleet.assignment import assignment_sha256, encode_assignment
from rkfleet.errors import Conflict, NotFound
from rkfleet.kinds import Board, Model, ModelDeployment, ModelRevision, Replica
from rkfleet.kinds.base import Object
from rkfleet.meta import Ref

__all__ = ["AssignmentMinter", "AssignmentReconciler"]

T = TypeVar("T", bound=Object)

MINT_ATTEMPTS: Final = 10  # Others write to the Board at most a few times a second; ten lost races in a row are a mistake.


class AssignmentMinter:
    """Numbers assignments by compare-and-set on `Board.status.assignment`.

    Args:
        store: For consistent reads.
        applier: Writes.
    """

    def __init__(self, store: Store, applier: Applier) -> None:
        self._store: Final = store
        self._applier: Final = applier

    async def mint(self, board: str, held_number: int = 0, held_sha256: str = "") -> Offer:
        """Return what the board must run, under a number that the board will take.

        Args:
            board: Its name.
            held_number: Number in the board's ledger as it told in this session; 0 if it told none.
            held_sha256: Its hash.

        Raises:
            NotFound: There is no such Board.
            Conflict: Others wrote to the Board `MINT_ATTEMPTS` times in a row.
            Unavailable: The store cannot write.
        """
        ref = Ref(Board.resource.name, "", board)
        for attempt in range(MINT_ATTEMPTS):
            item = await self._store.get(ref)
            found = decode_item(Board, item)
            body = await self._plan(found)
            sha256 = assignment_sha256(body)
            before = found.status.assignment
            number = next_number(sha256, before.number, before.sha256, held_number, held_sha256)
            if number == before.number:
                return Offer(number=number, body=body, sha256=sha256)
            try:
                await self._applier.apply(tuple(_writes(item, number, sha256, held_number)))
            except Conflict:
                if attempt + 1 == MINT_ATTEMPTS:
                    raise
            else:
                return Offer(number=number, body=body, sha256=sha256)
        raise AssertionError("the last attempt returns or raises")

    async def _plan(self, board: Board) -> bytes:
        page = await self._store.list(Replica.resource.name, Selection(fields=((("spec", "boardName"), board.metadata.name, True),)))
        replicas = [decode_item(Replica, item) for item in page.items]
        deployments = await self._named(ModelDeployment, ((one.metadata.namespace, one.spec.deployment_name) for one in replicas))
        revisions = await self._named(ModelRevision, ((one.metadata.namespace, one.spec.revision_name) for one in replicas))
        models = await self._named(Model, ((one.metadata.namespace, one.spec.template.model) for one in revisions))
        return encode_assignment(plan_assignment(replicas, by_name(deployments), by_name(revisions), by_name(models), board.spec.tuning))

    async def _named(self, kind: type[T], names: Iterable[tuple[str, str]]) -> list[T]:
        found = []
        for namespace, name in sorted(set(names)):
            try:
                found.append(decode_item(kind, await self._store.get(Ref(kind.resource.name, namespace, name))))
            except NotFound:
                continue
        return found


class AssignmentReconciler:
    """See `machinery.reconciler.Reconciler`; the key is a Board. A board without a session gets its assignment when it opens one."""

    def __init__(self, minter: AssignmentMinter, offers: Offers, presence: PresenceReader) -> None:
        self._minter: Final = minter
        self._offers: Final = offers
        self._presence: Final = presence

    async def reconcile(self, key: Ref) -> float | None:
        """Mint what the board must run now, and offer it."""
        if not self._presence.of(key.name).connected:
            return None
        try:
            offer = await self._minter.mint(key.name)
        except NotFound:
            return None
        self._offers.offer(key.name, offer)
        return None


def _writes(board: Item, number: int, sha256: str, held_number: int) -> Iterable[WriteStatus | Record]:
    stored = msgspec.json.decode(board.body).get("status", {}).get("assignment", {})
    yield WriteStatus(
        ref=board.ref,
        uid=board.uid,
        owner="assignment",
        fields={"assignment": {**stored, "number": number, "sha256": sha256}},
        when={f"status.assignment.{name}": stored.get(name) for name in ("number", "sha256", "acceptedNumber", "message")},
    )
    before = stored.get("number", 0)
    if held_number > before:
        told = f"the board holds assignment {held_number} and the store knew of {before} (an older copy was restored?): {number} was minted"
        yield events.record(decode_item(Board, board), events.ASSIGNMENT_REWOUND, told, warning=True)
