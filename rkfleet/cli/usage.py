"""What boards carry and what replicas measure, as rows: the figures of `rkfleet top`.

In: boards, replicas, and the revisions and Models that say what a placed replica reserves. Out: rows for people and for programs. Pure;
`top.py` calls it. Everything is from the API: speeds are what boards report in `status.measured` (the median of recent requests, written
with a transition or every 60 seconds), never a live sample.

Memory is counted as placement counts it: what replicas that are placed there require or were granted, and what workers hold that no Replica
asks for any more; a replica and the successor that waits for its place hold the larger of the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from rkfleet import conditions
from rkfleet.kinds import Board, Replica
from rkfleet.quantity import parse_bytes
from rkfleet.world import World

__all__ = ["BOARD_HEADS", "REPLICA_HEADS", "BoardUsage", "ReplicaUsage", "board_cells", "boards", "replica_cells", "replicas"]

MEBI: Final = 2**20
BOARD_HEADS: Final = ("NAME", "STATUS", "SOC", "SIMULATED", "MEMORY", "MEMORY%", "REPLICAS", "TOKENS/S", "SESSION")
REPLICA_HEADS: Final = ("NAME", "STATUS", "BOARD", "VARIANT", "TTFT", "TOKENS/S", "RESTARTS", "SIMULATED")


class BoardUsage(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One board.

    Attributes:
        status: Reason of its Ready condition; `Cordoned` is said with it.
        reserved_bytes: What placed replicas and running workers hold.
        allocatable_bytes: What replicas may reserve.
        serving: Replicas on it that are Ready.
        tokens_per_second: Sum of what its Ready replicas measured; None where none has measured.
        session: Number of its session, which rises with each; 0 for a board that never came.
    """

    name: str
    status: str
    soc: str
    simulated: bool
    reserved_bytes: int
    allocatable_bytes: int
    replicas: int
    serving: int
    tokens_per_second: float | None
    session: int


class ReplicaUsage(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One replica; the times are None where nothing was measured."""

    namespace: str
    name: str
    status: str
    board: str
    variant: str
    time_to_first_token_seconds: float | None
    tokens_per_second: float | None
    restarts: int
    simulated: bool


def boards(world: World) -> list[BoardUsage]:
    """Return every board, by name."""
    placed: dict[str, list[Replica]] = {}
    for one in world.replicas.values():
        placed.setdefault(one.spec.board_name, []).append(one)
    return [_board(world, world.boards[name], placed.get(name, ())) for name in sorted(world.boards)]


def replicas(world: World, namespace: str = "") -> list[ReplicaUsage]:
    """Return the replicas of a namespace, or of all, by name."""
    found = [one for key, one in sorted(world.replicas.items()) if namespace in ("", key[0])]
    return [_replica(world, one) for one in found]


def board_cells(one: BoardUsage) -> tuple[str, ...]:
    """Return a board as people read it."""
    share = f"{100 * one.reserved_bytes // one.allocatable_bytes}%" if one.allocatable_bytes else ""
    memory = f"{_mebibytes(one.reserved_bytes)}/{_mebibytes(one.allocatable_bytes)}"
    return (
        one.name, one.status, one.soc, _word(one.simulated), memory, share, f"{one.serving}/{one.replicas}", _figure(one.tokens_per_second),
        str(one.session),
    )  # fmt: skip


def replica_cells(one: ReplicaUsage) -> tuple[str, ...]:
    """Return a replica as people read it, without its namespace."""
    first = one.time_to_first_token_seconds
    ttft = "" if first is None else f"{first * 1000:.0f}ms" if first < 1 else f"{first:.2g}s"
    return (one.name, one.status, one.board, one.variant, ttft, _figure(one.tokens_per_second), str(one.restarts), _word(one.simulated))


def _board(world: World, board: Board, placed: Sequence[Replica]) -> BoardUsage:
    ready = conditions.find(board.status.conditions, conditions.READY)
    serving = [one for one in placed if conditions.is_true(one.status.conditions, conditions.READY)]
    rates = [rate for one in serving if one.status.measured and (rate := one.status.measured.decode_tokens_per_second) is not None]
    status = ready.reason if ready else conditions.NEVER_CONNECTED
    return BoardUsage(
        name=board.metadata.name,
        status=f"{status},Cordoned" if board.spec.unschedulable else status,
        soc=board.status.soc,
        simulated=board.status.simulated,
        reserved_bytes=_reserved(world, board, placed),
        allocatable_bytes=parse_bytes(board.status.allocatable.memory),
        replicas=len(placed),
        serving=len(serving),
        tokens_per_second=sum(rates) if rates else None,
        session=board.status.session.number,
    )


def _replica(world: World, one: Replica) -> ReplicaUsage:
    ready = conditions.find(one.status.conditions, conditions.READY) or conditions.find(one.status.conditions, conditions.SCHEDULED)
    board, measured = world.boards.get(one.spec.board_name), one.status.measured
    return ReplicaUsage(
        namespace=one.metadata.namespace,
        name=one.metadata.name,
        status=ready.reason if ready else "",
        board=one.spec.board_name,
        variant=one.spec.variant_name,
        time_to_first_token_seconds=measured.time_to_first_token_seconds if measured else None,
        tokens_per_second=measured.decode_tokens_per_second if measured else None,
        restarts=one.status.restarts,
        simulated=board is not None and board.status.simulated,
    )


def _reserved(world: World, board: Board, placed: Sequence[Replica]) -> int:
    held = {one.uid: parse_bytes(one.memory) for one in board.status.running}
    for one in placed:
        held[one.metadata.uid] = max(_required(world, one), held.get(one.metadata.uid, 0))
    replaces = {one.metadata.uid: one.spec.replaces for one in placed if one.spec.replaces in held}
    return sum(_chain(uid, held, replaces) for uid in held if uid not in replaces)


def _chain(uid: str, held: Mapping[str, int], replaces: Mapping[str, str]) -> int:
    """Return what a replica and those that wait for its place hold: the larger, because never both are loaded."""
    followers = [other for other, before in replaces.items() if before == uid and other != uid]
    return max(held[uid], sum(_chain(other, held, replaces) for other in followers))


def _required(world: World, one: Replica) -> int:
    namespace = one.metadata.namespace
    revision = world.revisions.get((namespace, one.spec.revision_name))
    model = world.models.get((namespace, revision.spec.template.model)) if revision else None
    variants = model.spec.variants if model else ()
    return next((parse_bytes(each.requires.memory) for each in variants if each.name == one.spec.variant_name), 0)


def _mebibytes(count: int) -> str:
    return f"{-(-count // MEBI)}Mi"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:g}" if value < 100 else f"{value:.0f}"


def _word(value: bool) -> str:
    return "true" if value else "false"
