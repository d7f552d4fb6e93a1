"""Whether a history can be one of a store that keeps its word; `check` returns what speaks against it.

In: a history. Out: sentences, none when everything fits. What is shown:

- No acknowledged write is lost, no refused one is there, none is there twice, and nobody saw what nobody wrote.
- Revisions are one order of all changes that agrees with real time, also over restarts, so every object is linearizable: each write found
  the object as the change before it left it (or as its precondition said), each read and each refusal shows a state that was the newest
  at some moment between question and answer. The order is given by the revisions, so no search is needed; of writes whose answer was lost
  all possibilities count (Wing and Gong, "Testing and verifying concurrent objects", 1993, with the order known).
- A list shows every object exactly as it was at the list's revision, whatever was written between its pages.
- A watch delivers every change of its selection after its start, once, in order and under the right name, up to the last thing that it
  told; a watcher that was let finish has the last change of every object.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

from tests.support.history.ledger import Change, Ledger, make_ledger
from tests.support.history.records import Connection, History, Operation, selects

__all__ = ["check"]


def check(history: History) -> list[str]:
    """Return every fault of a history as a sentence that begins with the kind of fault."""
    ledger = make_ledger(history)
    faults = list(ledger.faults)
    for name, chain in ledger.chains.items():
        faults += _steps(ledger, name, chain)
    floors = _Floors(ledger, history)
    for one in history.operations:
        faults += _lists(ledger, floors, one) if one.verb == "list" else _answers(ledger, one)
    for connection in history.connections:
        faults += _watches(ledger, history, connection)
    return faults


def _steps(ledger: Ledger, name: str, chain: Sequence[Change]) -> Iterator[str]:
    """Compare every change of an object with what it changed."""
    before: Change | None = None
    for change in chain:
        wrong = _wrong_step(before, change)
        low = before.order if before is not None else 0.0
        if wrong and not ledger.may_hide(name, change.completed, low, change.order):
            yield f"step: {change} came after {before or 'nothing'}, but {wrong}"
        before = change


def _wrong_step(before: Change | None, change: Change) -> str:
    there = before is not None and not before.deleted
    author, seen = change.author, change.seen
    if author is None and not change.deleted:
        return ""  # A phantom; it is told already.
    if author is not None and author.verb == "create":
        return "a create made it although the object was there" if there else ""
    if before is None or not there:
        return "there was no object"
    if before.seen.uid != seen.uid:
        return f"the object was {before.seen.uid}, then {seen.uid}"
    if author is not None and author.expected and author.expected != before.seen.revision:
        return f"its writer expected revision {author.expected}"
    if author is not None and author.verb == "patch" and seen.value != before.seen.value:
        return f"a patch of the note turned the value {before.seen.value} into {seen.value}"
    if change.deleted and (seen.value, seen.note) != (before.seen.value, before.seen.note):
        return "a deletion changed the object"
    return ""


def _answers(ledger: Ledger, one: Operation) -> Iterator[str]:
    """Look for a moment between question and answer at which the answer was true."""
    chain = ledger.chains.get(one.name, ())
    if one.outcome in ("unknown", "refused", "expired"):
        return
    if one.verb in ("create", "update", "patch") and one.outcome == "ok":
        yield from _acknowledged(chain, one)
        return
    if one.verb == "delete" and one.outcome == "ok":
        return  # The ledger has put it in its place, and `_steps` has looked at it.
    moments = [
        state
        for state, following in zip([None, *chain], [*chain, None], strict=True)
        if (state is None or state.begun <= one.returned) and (following is None or following.completed >= one.invoked)
    ]
    if not any(_is_true(one, state) for state in moments):
        verbs = {"absent": ("delete",), "exists": ("create",)}.get(one.outcome, ())
        if one.seen or not ledger.may_hide(one.name, one.returned, 0.0, verbs=verbs):
            told = f"revision {one.seen[0].revision}" if one.seen else one.outcome
            yield f"stale: {one.client} was answered {told} to {one.verb} {one.name}, when only {', '.join(map(_named, moments))} was there"


def _acknowledged(chain: Sequence[Change], one: Operation) -> Iterator[str]:
    """Compare an acknowledged write with what is known of its revision."""
    [seen] = one.seen
    found = next((change for change in chain if change.order == seen.revision), None)
    if found is None or found.author is not one:
        what = found or "another object"
        yield f"lost: {one.verb} {one.value} of {one.name} was acknowledged as revision {seen.revision}, which is {what}"


def _is_true(one: Operation, state: Change | None) -> bool:
    there = state is not None and not state.deleted
    match one.outcome:
        case "ok":
            return there and state is not None and state.order == one.seen[0].revision
        case "absent":
            return not there
        case "exists":
            return there
        case _:
            return state is not None and there and (state.order != one.expected or one.uid not in ("", state.seen.uid))


def _named(state: Change | None) -> str:
    return str(state) if state is not None else "nothing"


class _Floors:
    """What a list must at least show: the newest revision that anybody knew of before it was asked for."""

    def __init__(self, ledger: Ledger, history: History) -> None:
        told = [(one.returned, max((*one.pages[:1], *(seen.revision for seen in one.seen)))) for one in history.operations if one.seen]
        told += [(one.returned, one.pages[0]) for one in history.operations if one.pages]
        told += [(delivery.at, delivery.revision) for connection in history.connections for delivery in connection.deliveries]
        told.sort()
        self._times = [at for at, _ in told]
        self._revisions: list[int] = []
        newest = history.base
        for _, revision in told:
            newest = max(newest, revision)
            self._revisions.append(newest)

    def at(self, moment: float) -> int:
        known = bisect.bisect_left(self._times, moment)
        return self._revisions[known - 1] if known else 0


def _lists(ledger: Ledger, floors: _Floors, one: Operation) -> Iterator[str]:
    """Compare a list with the state at its revision."""
    if not one.pages:
        return
    revision = one.pages[0]
    if set(one.pages) != {revision}:
        yield f"list: the pages of one list of {one.client} are of revisions {one.pages}"
    if revision < floors.at(one.invoked):
        yield f"backwards: {one.client} listed revision {revision}, after {floors.at(one.invoked)} was known"
    placed = [change for change in ledger.changes if change.placed and change.order <= revision]
    if placed and placed[-1].begun > one.returned:
        yield f"order: {one.client} listed revision {revision} before {placed[-1]} was begun"
    if one.outcome != "ok":
        return  # Its pages expired before the last one.
    listed = {seen.name: seen for seen in one.seen}
    if len(listed) != len(one.seen):
        yield f"list: {one.client} was shown an object twice at revision {revision}"
    for name in sorted({*ledger.chains, *listed}):
        wrong = _wrong_listing(ledger, one, name)
        if wrong:
            yield f"list: {one.client} at revision {revision}: {name} {wrong}"


def _wrong_listing(ledger: Ledger, one: Operation, name: str) -> str:
    revision = one.pages[0]
    seen = next((seen for seen in one.seen if seen.name == name), None)
    chain = [change for change in ledger.chains.get(name, ()) if change.order <= revision]
    last = chain[-1] if chain else None
    possible = [last]
    if last is not None and not last.placed and last.completed >= one.invoked:  # Its revision may be a later one.
        possible.append(chain[-2])
    if last is not None and not last.placed and last.begun > one.returned:
        possible.remove(last)
    for state in possible:
        there = state is not None and not state.deleted and selects(one.selection, name, state.seen.value)
        if seen == (state.seen if there and state is not None else None):
            return ""
    low = last.order if last is not None else 0.0
    if seen is None and ledger.may_hide(name, one.returned, low, revision + 1, ("delete", "update")):
        return ""
    return f"was listed as {seen or 'absent'}, but the last change is {_named(last)}"


def _watches(ledger: Ledger, history: History, connection: Connection) -> Iterator[str]:
    """Compare a watch with all changes after its start."""
    who, reached = f"watch of {connection.watcher} from {connection.start}", connection.start
    delivered: dict[int, str] = {}
    for delivery in connection.deliveries:
        if delivery.type == "BOOKMARK":
            if delivery.revision < reached:
                yield f"watch: {who}: a bookmark of {delivery.revision} after {reached}"
        elif delivery.revision <= reached:
            yield f"watch: {who}: revision {delivery.revision} came after {reached}"
        if delivery.type != "BOOKMARK":
            delivered[delivery.revision] = delivery.type
        reached = max(reached, delivery.revision)
    if connection.last:
        reached = max(reached, int(max((change.order for change in ledger.changes), default=0)))
    elif not connection.selection:
        unseen = sorted(hole for hole in ledger.holes if connection.start < hole <= reached)
        if unseen:
            yield f"watch: {who}: nothing was delivered for {unseen[:9]}"
    for name, chain in ledger.chains.items():
        before: Change | None = None
        for change in chain:
            if (
                connection.start < change.order
                and not change.placed
                and connection.last
                and selects(connection.selection, name, change.seen.value)
            ):
                yield f"watch: {who}: {change} was delivered by nobody"
            if connection.start < change.order <= reached and change.placed:
                wanted = _wanted(ledger, connection, name, before, change)
                if delivered.get(int(change.order), "") not in wanted:
                    told = delivered.get(int(change.order), "nothing")
                    yield f"watch: {who}: {change} was delivered as {told}, not as {' or '.join(wanted) or 'nothing'}"
            before = change


def _wanted(ledger: Ledger, connection: Connection, name: str, before: Change | None, change: Change) -> tuple[str, ...]:
    """Return how a watch should tell of a change; empty text for not at all."""
    low = before.order if before is not None else 0.0
    was = before is not None and not before.deleted and selects(connection.selection, name, before.seen.value)
    chosen = selects(connection.selection, name, change.seen.value)
    is_ = chosen and not change.deleted
    if connection.selection.startswith("group=") and ledger.may_hide(name, change.completed, low, change.order):
        return ("ADDED", "MODIFIED") if is_ else ("DELETED", "")
    if change.deleted:
        return ("DELETED",) if chosen else ("",)  # The last state is the one before.
    if not connection.selection.startswith("group="):
        made = change.author is not None and change.author.verb == "create"
        return (("ADDED" if made else "MODIFIED") if chosen else "",)
    match was, is_:
        case True, True:
            # A deletion between the two that nobody saw is none: it would have been delivered.
            return ("ADDED",) if change.author is not None and change.author.verb == "create" else ("MODIFIED",)
        case False, True:
            return ("ADDED",)
        case True, False:
            return ("DELETED",)
        case _:
            return ("",)
