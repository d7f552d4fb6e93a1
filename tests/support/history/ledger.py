"""The one order of changes that a history tells of, put together from everything that anybody saw.

In: a history. Out: for each revision who made it, what the object was after it, and between which moments it was committed; and what
cannot be: two stories of one revision, an object that nobody wrote, a refused write that is there, a write that is there twice.

Revisions of the store under test are dense: each is one change, so one that nobody saw (a hole) can only be a write whose answer was lost
(a ghost), or a deletion that was acknowledged without a revision.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from tests.support.history.records import Connection, Delivery, History, Operation, Seen, selects

__all__ = ["Change", "Ledger", "make_ledger"]


class Change(msgspec.Struct, kw_only=True):
    """One change of one object.

    Attributes:
        order: Its revision; for a deletion whose revision nobody saw, half above the last one of the object.
        seen: The object after it; for a deletion its last state.
        author: The write that made it, where that is certain.
        begun: It was not there before.
        completed: Everybody who asks after this sees it.
    """

    order: float
    seen: Seen
    deleted: bool
    author: Operation | None
    begun: float
    completed: float

    @property
    def placed(self) -> bool:
        """Whether its revision is known."""
        return self.order == self.seen.revision

    def __str__(self) -> str:
        return f"{'deletion' if self.deleted else 'state'} {self.seen.author} of {self.seen.name} at {self.order:g}"


class Ledger(msgspec.Struct, kw_only=True):
    """See the module.

    Attributes:
        changes: All, by order.
        chains: Those of each object.
        holes: Revisions that nobody saw.
        ghosts: Writes by object that may have been done, unseen.
        faults: What cannot be.
    """

    changes: Sequence[Change]
    chains: Mapping[str, Sequence[Change]]
    holes: frozenset[int]
    ghosts: Mapping[str, Sequence[Operation]]
    faults: Sequence[str]

    def may_hide(self, name: str, before: float, low: float, high: float = math.inf, verbs: Sequence[str] = ()) -> bool:
        """Whether an unseen write of this object, begun before this moment, may have been done between two revisions."""
        return any(low < hole < high for hole in self.holes) and any(
            ghost.invoked <= before and (not verbs or ghost.verb in verbs) for ghost in self.ghosts.get(name, ())
        )


def make_ledger(history: History) -> Ledger:
    """Put the changes of a history in order."""
    return _Making(history).made()


class _Making:
    def __init__(self, history: History) -> None:
        self._history = history
        self._faults: list[str] = []
        self._found: dict[int, Change] = {}
        self._top = history.base
        self._never_seen = 0  # Objects of which only the deletion is known.

    def made(self) -> Ledger:
        for revision, seen, deleted, at in _sightings(self._history):
            self._note(revision, seen, deleted, at)
        ghosts = self._credit_writes()
        acknowledged = self._acknowledged_deletions()
        self._credit_deletions(ghosts, acknowledged)
        placed = sorted(self._found.values(), key=lambda change: change.order)
        answered = [(int(change.order), change.author.returned) for change in placed if change.deleted and change.author is not None]
        _squeeze(placed, [*answered, *((revision, at) for revision, _, _, at in _sightings(self._history))])
        unplaced = self._unplaced(placed, acknowledged, ghosts)
        changes = sorted([*placed, *unplaced], key=lambda change: change.order)
        holes = frozenset(range(self._history.base + 1, self._top + 1)) - self._found.keys()
        chains: dict[str, list[Change]] = defaultdict(list)
        for change in changes:
            chains[change.seen.name].append(change)
            if change.begun > change.completed:
                self._faults.append(f"order: {change} was there at {change.completed:.6f}, what is before it began at {change.begun:.6f}")
        hidden = len(unplaced) + self._never_seen + sum(map(len, ghosts.values()))
        if len(holes) > hidden:
            self._faults.append(f"holes: nobody saw {len(holes)} revisions ({sorted(holes)[:9]}), at most {hidden} writes can be unseen")
        return Ledger(changes=changes, chains=chains, holes=holes, ghosts=ghosts, faults=self._faults)

    def _note(self, revision: int, seen: Seen | None, deleted: bool, at: float) -> None:
        self._top = max(self._top, revision)
        if seen is None:
            return
        found = self._found.get(revision)
        if found is None:
            self._found[revision] = Change(order=revision, seen=seen, deleted=deleted, author=None, begun=-math.inf, completed=at)
        elif (found.seen, found.deleted) != (seen, deleted):
            self._faults.append(
                f"agreement: revision {revision} is {found.seen} (deleted: {found.deleted}) and {seen} (deleted: {deleted})"
            )
        else:
            found.completed = min(found.completed, at)

    def _credit_writes(self) -> dict[str, list[Operation]]:
        """Find the author of every state; return the unknown writes that made none."""
        authors = {one.value: one for one in self._history.operations if one.value}
        made: dict[str, int] = {}
        for revision, change in sorted(self._found.items()):
            if change.deleted:
                continue
            author = authors.get(change.seen.author)
            if author is None or author.name != change.seen.name or (author.verb == "patch") != bool(change.seen.note):
                self._faults.append(f"phantom: {change} was written by nobody")
                continue
            if author.outcome not in ("ok", "unknown"):
                self._faults.append(f"refused: {change} is there, but its {author.verb} was answered with {author.outcome}")
            if author.value in made:
                self._faults.append(f"twice: {author.verb} {author.value} made revision {made[author.value]} and {revision}")
            made[author.value] = revision
            change.author, change.begun = author, author.invoked
        ghosts: dict[str, list[Operation]] = defaultdict(list)
        for one in self._history.operations:
            if one.writes and one.outcome == "unknown" and one.value not in made:
                ghosts[one.name].append(one)
        return ghosts

    def _credit_deletions(self, ghosts: dict[str, list[Operation]], acknowledged: Mapping[str, Operation]) -> None:
        """Find the author of every deletion; of unknown ones only that there are enough of them."""
        for change in sorted(self._found.values(), key=lambda change: change.order):
            if not change.deleted:
                continue
            author = acknowledged.get(change.seen.uid)
            if author is not None:
                change.author, change.begun = author, author.invoked
                continue
            name = change.seen.name
            able = [one for one in ghosts[name] if one.verb == "delete" and one.invoked <= change.completed]
            able = [one for one in able if one.uid in ("", change.seen.uid)]
            if not able:
                self._faults.append(f"phantom: {change} was made by nobody")
                continue
            change.begun = min(one.invoked for one in able)
            ghosts[name].remove(min(able, key=lambda one: (not one.uid, one.invoked)))

    def _acknowledged_deletions(self) -> dict[str, Operation]:
        found: dict[str, Operation] = {}
        for one in self._history.operations:
            if one.verb == "delete" and one.outcome == "ok":
                if one.uid in found:
                    self._faults.append(f"twice: the deletion of {one.name} {one.uid} was acknowledged to two who asked for it")
                found[one.uid] = one
        return found

    def _unplaced(
        self, placed: Sequence[Change], acknowledged: Mapping[str, Operation], ghosts: Mapping[str, Sequence[Operation]]
    ) -> list[Change]:
        """Return the acknowledged deletions whose revision nobody saw."""
        newest = {change.seen.uid: change for change in placed}
        unplaced = []
        for uid, author in acknowledged.items():
            last = newest.get(uid)
            if last is None:
                self._never_seen += 1
                if not any(ghost.verb == "create" and ghost.invoked <= author.returned for ghost in ghosts.get(author.name, ())):
                    self._faults.append(f"phantom: {author.name} {uid} was deleted, but nobody made it")
            elif not last.deleted:
                begun = max(author.invoked, last.begun)
                unplaced.append(
                    Change(order=last.order + 0.5, seen=last.seen, deleted=True, author=author, begun=begun, completed=author.returned)
                )
        return unplaced


def _sightings(history: History) -> Iterator[tuple[int, Seen | None, bool, float]]:
    """Yield every revision that somebody was told of, what it was, and when."""
    for one in history.operations:
        for seen in one.seen:
            yield seen.revision, seen, False, one.returned
        for page in one.pages:
            yield page, None, False, one.returned
    for connection in history.connections:
        for delivery in connection.deliveries:
            yield delivery.revision, delivery.seen, _tells_of_deletion(connection, delivery), delivery.at


def _tells_of_deletion(connection: Connection, delivery: Delivery) -> bool:
    """Whether the object is gone; it may also only have left the selection, which its value shows."""
    seen = delivery.seen
    return delivery.type == "DELETED" and seen is not None and selects(connection.selection, seen.name, seen.value)


def _squeeze(placed: Sequence[Change], sightings: Sequence[tuple[int, float]]) -> None:
    """Commits are in the order of revisions: a change is there when a later one is, and begins no sooner than what is before it."""
    latest = -math.inf
    for change in placed:
        change.begun = latest = max(latest, change.begun)
    earliest = math.inf
    newest_first = sorted(sightings, reverse=True)
    at = 0
    for change in reversed(placed):
        while at < len(newest_first) and newest_first[at][0] >= change.order:
            earliest = min(earliest, newest_first[at][1])
            at += 1
        change.completed = earliest = min(earliest, change.completed)
