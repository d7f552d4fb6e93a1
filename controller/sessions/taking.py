"""Taking a session: is this board who it says, and if so, it holds the next session number.

In: the name in the certificate and the Hello. Out: `Taken`, written to `Board.status.session` by compare-and-set, or the reason of the
refusal. Called by the hub for every stream. It stands apart because it is the whole of "who may be here": fleet, Board, key, machine.

The key is bound by enrolment and by nothing else: a Board that was deleted and made again by hand admits nobody. The machine is bound by
enrolment, or by the first session when an operator removed the binding. Whoever comes with a copied certificate from another machine is
refused before the holder of the session notices anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from controller.planning.identity import join_again
from controller.store.base import Item, Store, decode_item
from controller.trust.binding import MACHINE_ANNOTATION, Binding, binding_of
from controller.trust.pki import Peer
from rkfleet import conditions
from rkfleet.clock import Clock
from rkfleet.conditions import explain
from rkfleet.errors import BadRequest, Conflict, NotFound, PermissionDenied
from rkfleet.kinds.board import Board
from rkfleet.meta import LABEL_SIMULATED, LABEL_SOC, Ref, check_label_value
from rkfleet.report import BoardFacts
from rkfleet.session import PROTOCOL_VERSION, Hello

__all__ = ["IdentityConflict", "Taken", "board_ref", "labels_of", "take"]

TAKE_ATTEMPTS: Final = 5  # Others write to a Board too; five lost races in a row are a mistake, and the board comes again anyway.


class IdentityConflict(PermissionDenied):
    """A certificate was used from another machine or with another key than its Board is bound to.

    Attributes:
        board: The Board that it claims to be.
        reason: OtherMachine or OtherKey.
    """

    def __init__(self, message: str, board: Item, reason: str) -> None:
        super().__init__(message)
        self.board: Final = board
        self.reason: Final = reason


class Taken(msgspec.Struct, frozen=True):
    """A session that a board holds: the Board's name and uid, and the number that fences every write."""

    board: str
    uid: str
    number: int


def board_ref(name: str) -> Ref:
    """Return the name of a Board object."""
    return Ref(Board.resource.name, "", name)


def labels_of(facts: BoardFacts) -> dict[str, str]:
    """Return the labels that selectors choose boards by."""
    labels = {LABEL_SOC: facts.soc, LABEL_SIMULATED: "true" if facts.simulated else "false"}
    return {key: value for key, value in labels.items() if value and not check_label_value(value)}


async def take(store: Store, peer: Peer, hello: Hello, *, fleet_id: str, controller: str, clock: Clock) -> Taken:
    """Take the session of the board that the certificate names.

    Args:
        store: Where the Board is.
        peer: Whom the verified certificate names.
        hello: What the board said.
        fleet_id: The fleet that this controller serves.
        controller: Identity of this controller process.
        clock: Wall time for the writes.

    Raises:
        BadRequest: The board speaks another protocol.
        IdentityConflict: Another key or another machine than the Board's.
        PermissionDenied: Another fleet, another class of caller, or there is no such Board.
        Conflict: Others wrote to the Board `TAKE_ATTEMPTS` times in a row.
        Unavailable: The store cannot write.
    """
    _check_fleet(peer, hello, fleet_id)
    for attempt in range(TAKE_ATTEMPTS):
        board = await _get(store, peer.name)
        _check_identity(board, peer, hello)
        number = decode_item(Board, board).status.session.number
        try:
            await _bind(store, board, peer, hello, clock)
            session = {"controller": controller, "number": number + 1}
            fence = {"status.session.number": number or None}
            await store.patch_status(board.ref, board.uid, "session", {"session": session}, (), when=fence, now=clock.now())
        except (Conflict, NotFound):  # Written to, or deleted, since it was read.
            if attempt + 1 == TAKE_ATTEMPTS:
                raise
        else:
            return Taken(peer.name, board.uid, number + 1)
    raise AssertionError("the last attempt returns or raises")


def _check_fleet(peer: Peer, hello: Hello, fleet_id: str) -> None:
    if hello.protocol != PROTOCOL_VERSION:
        raise BadRequest(
            f"the board speaks session protocol {hello.protocol}, this controller speaks {PROTOCOL_VERSION}; update the older one"
        )
    if peer.class_ != "boards":
        raise PermissionDenied(f"the certificate is of {peer.class_}/{peer.name}; sessions are for boards")
    for said_by, named in (("certificate", peer.fleet_id), ("ledger", hello.fleet_id)):
        if named != fleet_id:
            raise PermissionDenied(
                f"the board's {said_by} is of fleet {named}, this controller serves {fleet_id}; join again with a new token"
            )


async def _get(store: Store, name: str) -> Item:
    try:
        return await store.get(board_ref(name))
    except NotFound as error:
        raise PermissionDenied(f"board {name} does not exist here (any more), so its key is revoked; {join_again(name)}") from error


def _check_identity(board: Item, peer: Peer, hello: Hello) -> None:
    bound = binding_of(board)
    if not bound.key_sha256:
        raise PermissionDenied(f"board {peer.name} was made by hand and is bound to no key; {join_again(peer.name)}")
    if bound.key_sha256 != peer.key_sha256:
        message = explain(
            f"board {peer.name} joined anew with another key; a certificate over the one before, which is revoked, was used and refused",
            f"kubectl delete board {peer.name} (if the new one is not yours)",
        )
        raise IdentityConflict(message, board, conditions.OTHER_KEY)
    if bound.machine_id and bound.machine_id != hello.machine_id:
        message = explain(
            f"the certificate of board {peer.name} was used by another machine ({hello.machine_id or 'without identity'}) and refused",
            f"kubectl annotate board {peer.name} {MACHINE_ANNOTATION}- (if the board moved there)",
        )
        raise IdentityConflict(message, board, conditions.OTHER_MACHINE)


async def _bind(store: Store, board: Item, peer: Peer, hello: Hello, clock: Clock) -> None:
    """Write binding and labels where they differ."""
    annotations = Binding(peer.key_sha256, hello.machine_id).annotations()
    patch = metadata_patch(board, annotations, labels_of(hello.facts))
    if patch:
        await store.patch(board.ref, patch, resource_version=board.resource_version, now=clock.now())


def metadata_patch(board: Item, annotations: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, Any]:
    """Return the merge patch that gives a Board these annotations and labels; empty when it has them."""
    found = decode_item(Board, board).metadata
    missing = {
        "annotations": {key: value for key, value in annotations.items() if found.annotations.get(key) != value},
        "labels": {key: value for key, value in labels.items() if found.labels.get(key) != value},
    }
    changed = {field: values for field, values in missing.items() if values}
    return {"metadata": changed} if changed else {}
