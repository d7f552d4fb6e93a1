"""How a deployment's replicas move: scaling, replacement of lost ones, and the exchange of an old revision for a new one.

In: the wanted numbers (`Goal`) and one `Member` for each Replica. Out: `Moves`: what to create, stage, activate, drain and delete now.
`planning/deployment.py` calls it and turns moves into writes; it is apart so that the rules for numbers stand in one place, without
kinds, conditions and sentences.

A replica's way is Staged -> Serving -> Draining -> gone. Two ways lead from an old replica to its successor:

- *Surge*: while fewer than replicas + maxSurge run, the successor is created Serving, anywhere. Once it is available and one more than
  the wanted number is, an old replica drains.
- *In place* (needs maxUnavailable): the successor is created Staged and `replaces` an old replica; placement puts it on the same board
  if that can hold it, sharing the memory. When its bytes are there the old one drains, is deleted, and the successor is activated. That
  is the usual way where a board holds one model.

A replica whose board is to be emptied (`evicted`) goes the same two ways, whatever its revision; placement keeps its successor off that
board. That is done also while revisions are not exchanged (paused, or a template that cannot be used); then the successor has the
revision of the one that it replaces. A staged successor on such a board is dropped and staged again elsewhere.

What holds after every move, whatever the members say:

- Serving replicas are never more than replicas + maxSurge by our hand. Staged ones hold only bytes and are not counted.
- A replica is drained in a rollout only if replicas - maxUnavailable others are available, or if it has been broken for a while; by
  scaling down the unavailable go first and as many as are wanted stay.
- A new slot is the lowest number that no replica of the deployment has, so two planners with the same view create the same name.

A replica is *available* when it is Ready, its board is in session, and it has been so for `SETTLE_SECONDS` (progress.py) and for
`spec.minReadySeconds`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from controller.planning.actions import Value
from rkfleet.kinds.replica import Activation

__all__ = ["Creation", "Goal", "Member", "Moves", "plan_rollout", "resolve_strategy"]

STAGED_AHEAD: Final = 1  # Successors fetched beyond those that may be exchanged now: the next download overlaps the current load.


class Goal(Value, frozen=True, kw_only=True):
    """What is wanted.

    Attributes:
        revision: Name of the revision to reach; empty while there is none.
        rolling: Whether replicas of other revisions are to be exchanged (not paused, and the template is usable). Those whose board is
            to be emptied are exchanged in any case.
        max_unavailable: Replicas that may be missing.
        max_surge: Replicas that may serve above `replicas`.
    """

    revision: str
    replicas: int
    max_unavailable: int
    max_surge: int
    rolling: bool = True

    @property
    def minimum(self) -> int:
        """Available replicas that our own hand must leave."""
        return max(self.replicas - self.max_unavailable, 0)


class Member(Value, frozen=True, kw_only=True):
    """One Replica as the rollout sees it.

    Attributes:
        slot: Its ordinal.
        replaces: Uid of the replica whose place it takes; empty for none.
        placed: It has a board.
        unschedulable: Placement has looked and found no board.
        staged: Its bytes are on the board.
        elsewhere: It is placed on another board than the replica that it replaces, and holds room of its own there.
        reported: Its board has spoken of it.
        ready: It says it serves.
        broken: It has not served for so long that it is no longer expected to come back by itself.
        available: Ready, settled, and its board is in session.
        drained: Nothing runs on it any more.
        absent: Its board has no session at the moment.
        lost: Its board has been without a session so long that nothing is expected from it.
        gone: As lost, and long enough that the replica is to be replaced.
        evicted: Its board is to be emptied.
        deleting: Somebody deleted it and a finalizer holds it.
    """

    uid: str
    name: str
    slot: int
    revision: str
    activation: Activation = "Serving"
    replaces: str = ""
    placed: bool = False
    unschedulable: bool = False
    staged: bool = False
    elsewhere: bool = False
    reported: bool = True
    ready: bool = False
    broken: bool = False
    available: bool = False
    drained: bool = False
    absent: bool = False
    lost: bool = False
    gone: bool = False
    evicted: bool = False
    deleting: bool = False


class Creation(Value, frozen=True, kw_only=True):
    """A replica to create: Serving anywhere, or Staged in the place of the replica with uid `replaces`.

    Attributes:
        revision: What it runs; empty for the revision of the goal.
    """

    slot: int
    revision: str = ""
    activation: Activation = "Serving"
    replaces: str = ""


class Moves(Value, frozen=True, kw_only=True):
    """What to do now, by uid; deletions come first, creations last.

    Attributes:
        delete: With the reason.
        drain: With the reason.
        after: The members as they will be, the created ones included.
    """

    delete: tuple[tuple[str, str], ...] = ()
    activate: tuple[str, ...] = ()
    drain: tuple[tuple[str, str], ...] = ()
    create: tuple[Creation, ...] = ()
    after: tuple[Member, ...] = ()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.delete) + len(self.activate) + len(self.drain) + len(self.create)


def resolve_strategy(replicas: int, max_unavailable: int | str, max_surge: int | str) -> tuple[int, int]:
    """Return (maxUnavailable, maxSurge) as numbers: percentages of `replicas`, the first rounded down, the second up; not both 0.

    Source: Kubernetes `pkg/controller/deployment/util/deployment_util.go`, ResolveFenceposts and MaxUnavailable.
    """
    surge = _share(max_surge, replicas, up=True)
    unavailable = min(_share(max_unavailable, replicas, up=False), replicas)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return unavailable, surge


def _share(value: int | str, replicas: int, *, up: bool) -> int:
    text = str(value)
    if not text.endswith("%"):
        return int(text)
    hundredths = int(text[:-1]) * replicas
    return -(-hundredths // 100) if up else hundredths // 100


def plan_rollout(goal: Goal, members: Sequence[Member]) -> Moves:
    """Return the moves that are allowed now; none when the members are as wanted or something must happen elsewhere first."""
    work = _Work(goal, sorted(members, key=lambda member: (member.slot, member.name)))
    # Each turn but the last moves something, and what has moved moves once more at most.
    for _ in range(2 * (len(members) + goal.replicas + goal.max_surge) + 2):
        if not work.step():
            return work.moves()
    raise AssertionError(f"no end of moves for {goal} and {members}")


class _Work:
    """Members and counts as they will be after the moves so far; lives for one call of `plan_rollout`."""

    def __init__(self, goal: Goal, members: Sequence[Member]) -> None:
        self._goal: Final = goal
        self._slots: Final = {member.slot for member in members}  # Also of those deleted now: a name is not reused in one breath.
        self._next_slot = 0  # Every lower one is taken.
        self._members = {member.uid: member for member in members if not member.deleting}
        self._successors: Final[dict[str, Member]] = {}  # The first one staged for each place, by the uid that it replaces.
        for member in self._members.values():
            if member.activation == "Staged":
                self._successors.setdefault(member.replaces, member)
        self._delete: Final[list[tuple[str, str]]] = []
        self._activate: Final[list[str]] = []
        self._drain: Final[list[tuple[str, str]]] = []
        self._create: Final[dict[str, Creation]] = {}  # By the uid of the member that stands for it until it has one of its own.

    def moves(self) -> Moves:
        return Moves(
            delete=tuple(self._delete),
            activate=tuple(self._activate),
            drain=tuple(self._drain),
            create=tuple(self._create.values()),
            after=tuple(self._members.values()),
        )

    # What is there.

    def _where(self, holds: Callable[[Member], bool]) -> list[Member]:
        return [member for member in self._members.values() if holds(member)]

    def _serving(self) -> list[Member]:
        return self._where(lambda member: member.activation == "Serving")

    def _draining(self) -> list[Member]:
        return self._where(lambda member: member.activation == "Draining")

    def _is_old(self, member: Member) -> bool:
        return member.evicted or member.revision != self._goal.revision

    def _old(self) -> list[Member]:
        return [member for member in self._serving() if self._is_old(member)]

    def _exchanged(self) -> list[Member]:
        """Those of the old that another replica is to take over from now, in the order in which that is done."""
        chosen = [member for member in self._serving() if (self._is_old(member) if self._goal.rolling else member.evicted)]
        return sorted(chosen, key=self._exchange_order)

    def _exchange_order(self, member: Member) -> tuple[bool, bool, bool, int]:
        return (member.ready, not member.evicted, member.uid in self._successors, member.slot)

    def _successor_revision(self, member: Member) -> str:
        """Return the revision of the replica that takes over from this one."""
        return self._goal.revision if self._goal.rolling else member.revision

    def _waits_for_predecessor(self, member: Member) -> bool:
        predecessor = self._members.get(member.replaces)
        return member.activation == "Staged" and predecessor is not None and predecessor.activation == "Serving"

    def _takeovers(self) -> list[Member]:
        """Successors whose predecessor drains or is gone: they are what serves next in its place."""
        return self._where(lambda member: member.activation == "Staged" and not self._waits_for_predecessor(member))

    def _running(self) -> int:
        """Replicas that serve or will without another decision."""
        return len(self._serving()) + len(self._takeovers())

    def _staying(self) -> list[Member]:
        """Replicas that will be there when every exchange of now is done."""
        if self._goal.rolling:
            return self._where(lambda member: not self._is_old(member) and member.activation != "Draining")
        return self._where(lambda member: not member.evicted and (member.activation == "Serving" or self._moves_in(member)))

    def _moves_in(self, member: Member) -> bool:
        """Whether a staged replica will serve although revisions are not exchanged."""
        if member.activation != "Staged":
            return False
        return not self._waits_for_predecessor(member) or self._members[member.replaces].evicted

    def _available(self) -> int:
        return sum(member.available for member in self._serving())

    # What is done.

    def _remove(self, member: Member, why: str) -> None:
        del self._members[member.uid]
        self._forget_successor(member)
        if self._create.pop(member.uid, None) is None:
            self._delete.append((member.uid, why))
        if member.uid in self._activate:
            self._activate.remove(member.uid)

    def _retire(self, member: Member, why: str) -> None:
        """Take a replica away in the gentlest way that can end: what has served drains first."""
        silent = not member.placed or not member.reported
        if silent or member.activation == "Staged" or member.lost or member.uid in self._activate:
            self._remove(member, why)
            return
        self._drain.append((member.uid, why))
        self._replace(member, "Draining")

    def _replace(self, member: Member, activation: Activation) -> None:
        self._forget_successor(member)
        self._members[member.uid] = msgspec.structs.replace(member, activation=activation)

    def _forget_successor(self, member: Member) -> None:
        if self._successors.get(member.replaces) is member:
            del self._successors[member.replaces]

    # The steps, in order.

    def step(self) -> bool:
        """Go through all steps once; return whether something was moved, because one step may open the way for an earlier one."""
        before = self.moves().count
        self.delete_finished()
        self.delete_useless_successors()
        self.scale_down()
        self.activate_for_the_unplaced()
        self.activate_successors()
        if self._goal.revision:
            self.delete_unheard_of()
            self.create_missing()
            self.drain_exchanged_by_surge()
            self.drain_exchanged_in_place()
            self.stage_successors()
        return self.moves().count != before

    def delete_finished(self) -> None:
        """Delete what is replaced because its board is lost, and what has drained or cannot be waited for."""
        for member in list(self._members.values()):
            if member.gone:
                self._remove(member, "its board is lost")
            elif member.activation == "Draining" and (member.drained or member.lost or not member.placed or not member.reported):
                silent = member.placed and not member.lost
                self._remove(
                    member, "it is drained" if member.drained else "its board never spoke of it" if silent else "its board is lost"
                )

    def delete_useless_successors(self) -> None:
        """Delete staged bytes that nobody will use: of another revision, a second one for one place, or more than are wanted."""
        staged = self._where(lambda member: member.activation == "Staged")
        for member in staged:
            if member.evicted:
                self._remove(member, "its board is to be emptied")
            elif not self._is_wanted_successor(member):
                self._remove(member, "its revision is no longer wanted")
            elif member.replaces in self._members and self._successors.get(member.replaces) is not member:
                self._remove(member, "another replica takes the same place")
            elif self._goal.max_unavailable == 0 and self._waits_for_predecessor(member):
                self._remove(member, "nothing may be replaced in place (maxUnavailable is 0)")
        self._delete_excess(lambda member: member.activation == "Serving" and not member.placed and member.unschedulable)
        self._delete_excess(self._waits_for_predecessor)

    def _is_wanted_successor(self, member: Member) -> bool:
        """Whether a staged replica is of the revision that its place is to have."""
        if not self._waits_for_predecessor(member):
            return member.revision == self._goal.revision or not self._goal.rolling
        predecessor = self._members[member.replaces]
        moves_only = predecessor.evicted and not self._goal.rolling
        return self._is_old(predecessor) and member.revision == (predecessor.revision if moves_only else self._goal.revision)

    def _delete_excess(self, chosen: Callable[[Member], bool]) -> None:
        staying = self._staying()
        excess = len(staying) - self._goal.replicas
        candidates = [member for member in staying if chosen(member)]
        for member in sorted(candidates, key=lambda one: -one.slot)[: max(excess, 0)]:
            self._remove(member, "enough others are there")

    def scale_down(self) -> None:
        """Take away what is above the wanted number: the unplaced and unready first, old before new, then the highest slot."""
        if self._goal.rolling:
            for member in [one for one in self._old() if not one.placed]:  # None of them is evicted.
                self._remove(member, "its revision is no longer wanted")
        old = len(self._old())
        excess = self._running() - self._goal.replicas
        for member in sorted(self._serving() + self._takeovers(), key=self._worth):
            if excess <= (self._goal.max_surge if old else 0):
                return
            if member.uid not in self._members:
                continue  # It went with the one that it was to replace.
            old -= member.activation == "Serving" and self._is_old(member)
            excess -= 1
            self._retire(member, "fewer replicas are wanted")
            if successor := self._successors.get(member.uid):
                self._remove(successor, "its place is no longer wanted")

    def _worth(self, member: Member) -> tuple[bool, bool, int, bool, int]:
        """Order of sacrifice; the unsettled are worth more than the unready because clients may be using them."""
        is_new = not self._is_old(member)
        return (member.placed, member.activation == "Serving", member.ready + member.available, is_new, -member.slot)

    def delete_unheard_of(self) -> None:
        """Delete old replicas that their board was never told of: they hold room that a successor may need, and serve nobody."""
        if self._goal.rolling:
            for member in [one for one in self._old() if one.broken and not one.reported]:
                self._remove(member, "its board never spoke of it")

    def drain_exchanged_by_surge(self) -> None:
        """Drain old replicas for which one more than the wanted number is available."""
        available, excess = self._available(), self._running() - self._goal.replicas
        for member in self._exchanged():
            if excess <= 0:
                return
            if member.broken or available - member.available >= self._goal.replicas:
                available -= member.available
                excess -= member.uid not in self._successors  # With a successor, that runs in its place.
                self._retire(member, _why(member, "another replica serves in its place"))

    def drain_exchanged_in_place(self) -> None:
        """Drain old replicas whose successor has its bytes, as far as enough others are available."""
        available = self._available()
        for member in self._exchanged():
            successor = self._successors.get(member.uid)
            if successor is None or not successor.staged or successor.absent or (member.absent and not member.evicted):
                continue
            if member.broken or available - member.available >= self._goal.minimum:
                available -= member.available
                self._retire(member, _why(member, f"{successor.name} takes its place"))

    def activate_for_the_unplaced(self) -> None:
        """Let a successor that holds room on another board than its predecessor's serve instead of one that finds none.

        Otherwise both would wait for ever: the one for room, the other for its predecessor, which may not go before more are available.
        """
        unplaced = self._where(
            lambda one: one.activation == "Serving" and not one.placed and one.unschedulable and one.revision == self._goal.revision
        )
        holders = self._where(lambda one: one.elsewhere and not one.absent and self._waits_for_predecessor(one))
        for member, holder in zip(unplaced, holders, strict=False):
            self._remove(member, f"{holder.name} has the room that it would need")
            self._activate.append(holder.uid)
            self._replace(holder, "Serving")

    def activate_successors(self) -> None:
        """Let successors serve whose predecessor is gone, as far as the number that may serve allows."""
        room = self._goal.replicas + self._goal.max_surge - len(self._serving())
        for member in self._takeovers():
            if member.replaces not in self._members and room > 0:
                room -= 1
                self._activate.append(member.uid)
                self._replace(member, "Serving")

    def create_missing(self) -> None:
        """Create what is missing, and the surge of a rollout while what drains leaves room for it."""
        goal = self._goal
        running, draining, exchanged = self._running(), len(self._draining()), self._exchanged()
        # How many may be created beyond the wanted number, and what they are to be: one for each that is exchanged and has none yet.
        surge = max(min(goal.max_surge - draining, len(exchanged)), 0)
        staying = len(self._staying())
        while running < goal.replicas or (staying < goal.replicas and running < goal.replicas + surge):
            above = running - goal.replicas
            self._add("Serving", self._successor_revision(exchanged[above]) if above >= 0 else goal.revision)
            running += 1
            staying += 1

    def stage_successors(self) -> None:
        """Have the next successors fetch their bytes in the place of old replicas."""
        in_flight = len(self._where(lambda member: member.activation == "Staged"))
        usable = sum(not (one.unschedulable and one.activation == "Serving") for one in self._staying())
        most = self._goal.max_unavailable + STAGED_AHEAD if self._goal.max_unavailable else 0
        for member in self._exchanged():
            if in_flight >= most or usable >= self._goal.replicas:
                return
            if member.placed and (member.evicted or not member.absent) and member.uid not in self._successors:
                self._add("Staged", self._successor_revision(member), replaces=member.uid)
                in_flight += 1
                usable += 1

    def _add(self, activation: Activation, revision: str, replaces: str = "") -> None:
        while self._next_slot in self._slots:
            self._next_slot += 1
        slot, uid = self._next_slot, f"slot {self._next_slot}"
        self._slots.add(slot)
        named = "" if revision == self._goal.revision else revision
        self._create[uid] = Creation(slot=slot, revision=named, activation=activation, replaces=replaces)
        self._members[uid] = Member(
            uid=uid,
            name=f"{revision}-{slot}",
            slot=slot,
            revision=revision,
            activation=activation,
            replaces=replaces,
        )
        if activation == "Staged":
            self._successors.setdefault(replaces, self._members[uid])


def _why(member: Member, why: str) -> str:
    return f"its board is to be emptied, and {why}" if member.evicted else why
