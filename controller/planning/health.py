"""Whether boards take part: the `Ready` condition of a Board, of its Replicas while it is away, and which boards count as lost.

In: Boards and what the sessions know about their presence. Out: for the health loop a `Plan`, for the deployment loop a `BoardsView`.
Presence is in the memory of the process that holds the sessions, in monotonic time, so neither a jump of the wall clock nor a restart
of the controller makes boards look lost: after a start every board first has its time to come back.

A replica is replaced after its deployment's `boardLostSeconds`. When more than 55% and at least 3 boards of a site are away, it is the
site's network or our own that is broken, and replacing would only load the rest: replacement stops there.

Source: Kubernetes `pkg/controller/nodelifecycle` (unhealthy zone threshold 55%, at least 3 nodes).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from controller.planning import events
from controller.planning.actions import Action, Plan, Value, WriteStatus
from controller.planning.deployment import BoardsView
from rkfleet import conditions
from rkfleet.conditions import Condition, condition, explain
from rkfleet.kinds.board import Board
from rkfleet.kinds.replica import Replica
from rkfleet.meta import LABEL_SITE

__all__ = ["LOST_SECONDS", "SILENT_SECONDS", "Presence", "plan_health", "view_boards"]

LOST_SECONDS: Final = 60.0  # A board that reboots is back within this, and so is every board after a restart of the controller.
# The last report is better evidence than none while a connection is taken up again (restart of the controller, a lost cell); after this
# the board's Replicas are Unknown, and gateways pass them over.
SILENT_SECONDS: Final = 15.0
SITE_LOST_SHARE_MAX: Final = 0.55
SITE_LOST_BOARDS_MIN: Final = 3
STOP_RETRY_SECONDS: Final = 5.0  # That enough boards are back is an event of other boards, which wakes other deployments.

_OF_THE_AGENT: Final = (conditions.ARTIFACT_AVAILABLE, conditions.LOADED, conditions.DRAINED, conditions.READY)


class Presence(Value, frozen=True, kw_only=True):
    """What the sessions know about one board.

    Attributes:
        connected: It has a session now.
        seconds: Since it came or went; for one that was never here since this process started.
        seen: It was here since this process started.
    """

    connected: bool
    seconds: float
    seen: bool


# ---- For the health loop -------------------------------------------------------------------------------------------------------


def plan_health(board: Board, presence: Presence, replicas: Iterable[Replica]) -> Plan:
    """Return the writes that make conditions say what is known about a board now."""
    ready = _ready(board, presence)
    actions: list[Action] = []
    before = conditions.find(board.status.conditions, conditions.READY)
    if not _same(before, ready) or board.status.observed_generation != board.metadata.generation:
        actions.append(
            WriteStatus(
                ref=board.ref,
                uid=board.metadata.uid,
                owner="health",
                fields={"observedGeneration": board.metadata.generation},
                conditions=(ready,),
                when={"status.session.number": board.status.session.number or None},
            )
        )
        if before is None or before.reason != ready.reason:
            actions.append(events.record(board, ready.reason, ready.message, warning=ready.status == "False"))
    if not presence.connected and presence.seconds >= SILENT_SECONDS:
        for replica in replicas:
            actions.extend(_silence(replica, ready))
    steps = [step - presence.seconds for step in (SILENT_SECONDS, LOST_SECONDS) if step > presence.seconds]
    return Plan(actions=tuple(actions), again_after_seconds=min(steps, default=None) if not presence.connected else None)


def _ready(board: Board, presence: Presence) -> Condition:
    name, generation = board.metadata.name, board.metadata.generation
    if board.status.session.number == 0:  # Also while a session of a Board that was deleted, of the same name, is not over yet.
        message = explain(f"Board {name} has enrolled and never opened a session", _start(name))
        return condition(conditions.READY, "Unknown", conditions.NEVER_CONNECTED, message, generation)
    if presence.connected:
        return condition(conditions.READY, "True", conditions.SESSION_OPEN, f"Board {name} is in session.", generation)
    if presence.seconds < LOST_SECONDS:
        message = f"Board {name} has no session and is expected back within {LOST_SECONDS:.0f} s."
        return condition(conditions.READY, "Unknown", conditions.AWAITING_RECONNECT, message, generation)
    message = explain(
        f"Board {name} has had no session for more than {LOST_SECONDS:.0f} s", "systemctl status rkfleet-agent (on the board)"
    )
    return condition(conditions.READY, "False", conditions.BOARD_LOST, message, generation)


def _start(board: str) -> str:
    return f"rkfleet agent run --name {board} ... (on the board, with the arguments that it joined with)"


def _silence(replica: Replica, board: Condition) -> Iterable[Action]:
    """Say Unknown for everything that only the board could know."""
    said = []
    for type in _OF_THE_AGENT:
        found = conditions.find(replica.status.conditions, type)
        if found is not None or type == conditions.READY:
            message = explain(
                f"Nothing is known, because board {replica.spec.board_name} has no session",
                f"kubectl describe board {replica.spec.board_name}",
            )
            said.append(condition(type, "Unknown", board.reason, message, found.observed_generation if found else 0))
    if all(_same(conditions.find(replica.status.conditions, one.type), one) for one in said):
        return
    # On the version that was seen: a report that came in between is newer than this silence.
    version = {"metadata.resourceVersion": replica.metadata.resource_version}
    yield WriteStatus(ref=replica.ref, uid=replica.metadata.uid, owner="health", conditions=tuple(said), when=version)


def _same(before: Condition | None, after: Condition) -> bool:
    if before is None:
        return False
    return (before.status, before.reason, before.message) == (after.status, after.reason, after.message)


# ---- For the deployment loop ---------------------------------------------------------------------------------------------------


def view_boards(
    boards: Sequence[Board], presences: Mapping[str, Presence], lost_seconds: float, named: Iterable[str] = (), missing: Iterable[str] = ()
) -> BoardsView:
    """Return which boards are absent, lost and gone, as one deployment sees it.

    Args:
        boards: All Boards.
        presences: By board name; one that is not in it is absent since nobody knows when.
        lost_seconds: The deployment's `boardLostSeconds`.
        named: Boards that its replicas are on; only these have deadlines worth waking for.
        missing: Boards that its replicas name and that certainly do not exist.
    """
    away = {name: one for name, one in presences.items() if not one.connected}
    if not away:
        return BoardsView(absent=frozenset(missing), lost=frozenset(missing), gone=frozenset(missing))
    stopped = _stopped_sites(boards, away)
    site_of = {board.metadata.name: board.metadata.labels.get(LABEL_SITE, "") for board in boards}
    limits = {name: lost_seconds if one.seen else max(lost_seconds, LOST_SECONDS) for name, one in away.items()}
    expired = {name for name, one in away.items() if one.seconds >= limits[name]}
    held = {name for name in expired if site_of.get(name, "") in stopped}
    watched = set(named) & set(away)
    deadlines = [limit - away[name].seconds for name in watched for limit in (limits[name], LOST_SECONDS) if limit > away[name].seconds]
    if held & watched:
        deadlines.append(STOP_RETRY_SECONDS)
    sites = sorted({site_of.get(name, "") for name in held & set(named)})
    return BoardsView(
        absent=frozenset(away) | frozenset(missing),
        lost=frozenset(name for name, one in away.items() if one.seconds >= LOST_SECONDS) | expired | frozenset(missing),
        gone=frozenset(expired - held) | frozenset(missing),
        stopped="; ".join(stopped[site] for site in sites),
        next_seconds=min(deadlines, default=None),
    )


def _stopped_sites(boards: Sequence[Board], away: Mapping[str, Presence]) -> dict[str, str]:
    """Return the sites where too many boards are away to blame the boards, each with the sentence that says so."""
    members: dict[str, list[bool]] = {}
    for board in boards:
        if board.status.session.number or board.metadata.name not in away:  # One that never came is no loss.
            members.setdefault(board.metadata.labels.get(LABEL_SITE, ""), []).append(board.metadata.name in away)
    stopped = {}
    for site, gone in members.items():
        if sum(gone) >= SITE_LOST_BOARDS_MIN and sum(gone) > SITE_LOST_SHARE_MAX * len(gone):
            where = f"site {site}" if site else "the fleet"
            stopped[site] = f"{sum(gone)} of {len(gone)} boards of {where} are away, so nothing is replaced there"
    return stopped
