"""Faults of a store, put into a history that had none: each must be caught, or the checker proves nothing.

In: a history in which no answer was lost, and chance. Out: the history as a store with that fault would have left it, or None where this
one gives no occasion for it. The name of a mutant says what the store did.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import msgspec

from tests.support.history.ledger import Change, Ledger, make_ledger
from tests.support.history.records import Connection, Delivery, History, Operation, Seen

__all__ = ["MUTANTS", "Mutant"]

Mutant = Callable[[History, random.Random], History | None]
replace = msgspec.structs.replace


def lost_an_acknowledged_write(history: History, chance: random.Random) -> History | None:
    """Nobody but its writer ever saw it, and the last list shows what was there before."""
    ledger = make_ledger(history)
    ends = [chain[-1] for chain in ledger.chains.values() if not chain[-1].deleted]
    if not ends:
        return None
    lost = chance.choice(ends)
    before = _before(ledger, lost)
    shown = before.seen if before is not None and not before.deleted else None

    def seen_by(one: Operation) -> Operation:
        if one is lost.author or lost.seen not in one.seen:
            return one
        if one.verb == "get":
            return replace(one, seen=(shown,)) if shown else replace(one, seen=(), outcome="absent")
        return replace(one, seen=tuple(seen for seen in (shown if seen == lost.seen else seen for seen in one.seen) if seen))

    return _deliveries(_operations(history, seen_by), lambda one: () if one.revision == lost.seen.revision else (one,))


def gave_a_revision_twice(history: History, chance: random.Random) -> History | None:
    """As after a restart that forgot the last write: the next one got its number."""
    writes = [one for one in history.operations if one.value and one.outcome == "ok"]
    if len(writes) < 2:
        return None
    first, second = chance.sample(writes, 2)
    twice = replace(second, seen=(replace(second.seen[0], revision=first.seen[0].revision),))
    return _operations(history, lambda one: twice if one is second else one)


def kept_a_deleted_object(history: History, chance: random.Random) -> History | None:
    """The last list shows it."""
    ends = [chain[-1] for chain in make_ledger(history).chains.values() if chain[-1].deleted]
    if not ends:
        return None
    kept = chance.choice(ends).seen
    last = _last_list(history)
    return _operations(
        history, lambda one: replace(one, seen=(*one.seen, replace(kept, revision=kept.revision - 1))) if one is last else one
    )


def showed_what_nobody_wrote(history: History, chance: random.Random) -> History | None:
    last = _last_list(history)
    if not last.seen:
        return None
    strange = chance.choice(last.seen)
    return _everywhere(history, strange, replace(strange, value="v999999", note=""))


def did_what_it_refused(history: History, chance: random.Random) -> History | None:
    told = {delivery.seen for connection in history.connections for delivery in connection.deliveries if delivery.seen}
    told |= {seen for one in history.operations if not one.writes for seen in one.seen}
    writes = [one for one in history.operations if one.value and one.outcome == "ok" and one.seen[0] in told]
    if not writes:
        return None
    refused = chance.choice(writes)
    return _operations(history, lambda one: replace(one, outcome="conflict", seen=()) if one is refused else one)


def answered_a_read_with_an_old_state(history: History, chance: random.Random) -> History | None:
    ledger = make_ledger(history)
    stale = []
    for one in history.operations:
        if one.verb == "get" and one.outcome == "ok":
            chain = ledger.chains[one.name]
            over = [(one, state) for state, following in itertools.pairwise(chain) if following.completed < one.invoked]
            stale += [(one, state) for one, state in over if not state.deleted]
    if not stale:
        return None
    read, old = chance.choice(stale)
    return _operations(history, lambda one: replace(one, seen=(old.seen,)) if one is read else one)


def answered_a_read_with_the_future(history: History, chance: random.Random) -> History | None:
    ledger = make_ledger(history)
    early = [
        (one, change)
        for one in history.operations
        if one.verb == "get" and one.outcome == "ok"
        for change in ledger.chains[one.name]
        if change.begun > one.returned and not change.deleted
    ]
    if not early:
        return None
    read, future = chance.choice(early)
    return _operations(history, lambda one: replace(one, seen=(future.seen,)) if one is read else one)


def did_not_find_what_was_there(history: History, chance: random.Random) -> History | None:
    ledger = make_ledger(history)
    found = [
        one
        for one in history.operations
        if one.verb == "get" and one.outcome == "ok" and not any(_is_absent(state) for state in _moments(ledger, one))
    ]
    if not found:
        return None
    read = chance.choice(found)
    return _operations(history, lambda one: replace(one, seen=(), outcome="absent") if one is read else one)


def found_what_was_not_there(history: History, chance: random.Random) -> History | None:
    ledger = make_ledger(history)
    absent = [
        one
        for one in history.operations
        if one.verb == "create" and one.outcome == "ok" and all(_is_absent(state) or state.author is one for state in _moments(ledger, one))
    ]
    if not absent:
        return None
    late = chance.choice(absent)
    ghost = replace(
        late, client="late", value="v888888", outcome="exists", seen=(), invoked=late.invoked - 0.2, returned=late.invoked - 0.1
    )
    if any(not _is_absent(state) for state in _moments(ledger, ghost)):
        return None
    return replace(history, operations=(*history.operations, ghost))


def went_back(history: History, chance: random.Random) -> History | None:
    """A list shows an older revision than one that was known."""
    lists = [one for one in history.operations if one.verb == "list" and not one.selection]
    over = [(old, new) for old in lists for new in lists if old.returned < new.invoked and old.pages[0] < new.pages[0]]
    if not over:
        return None
    old, new = chance.choice(over)
    known = _known_before(history, new)
    if known <= old.pages[0]:
        return None
    return _operations(history, lambda one: replace(one, pages=old.pages, seen=old.seen) if one is new else one)


def mixed_two_moments_in_a_list(history: History, chance: random.Random) -> History | None:
    ledger = make_ledger(history)
    torn = [
        (one, seen, following.seen)
        for one in history.operations
        if one.verb == "list"
        for seen in one.seen
        for state, following in zip(ledger.chains[seen.name], ledger.chains[seen.name][1:], strict=False)
        if state.seen == seen and not following.deleted and following.begun <= one.returned
    ]
    if not torn:
        return None
    listing, old, new = chance.choice(torn)
    return _operations(
        history, lambda one: replace(one, seen=tuple(new if seen == old else seen for seen in one.seen)) if one is listing else one
    )


def left_an_object_out_of_a_list(history: History, chance: random.Random) -> History | None:
    ledger = make_ledger(history)
    deleted = {change.seen.uid for change in ledger.changes if not change.placed}  # Then it may have been absent.
    listed = [(one, seen) for one in history.operations if one.verb == "list" for seen in one.seen if seen.uid not in deleted]
    if not listed:
        return None
    listing, gone = chance.choice(listed)
    return _operations(history, lambda one: replace(one, seen=tuple(s for s in one.seen if s != gone)) if one is listing else one)


def changed_revision_between_pages(history: History, chance: random.Random) -> History | None:
    lists = [one for one in history.operations if len(one.pages) > 1]
    if not lists:
        return None
    listing = chance.choice(lists)
    return _operations(history, lambda one: replace(one, pages=(*one.pages[:-1], one.pages[0] - 1)) if one is listing else one)


def created_what_was_there(history: History, chance: random.Random) -> History | None:
    writes = [one for one in history.operations if one.verb == "update" and one.outcome == "ok"]
    if not writes:
        return None
    wrong = chance.choice(writes)
    return _operations(history, lambda one: replace(one, verb="create", expected=0) if one is wrong else one)


def overlooked_a_precondition(history: History, chance: random.Random) -> History | None:
    ledger = make_ledger(history)
    wrong = [
        (change.author, older.seen.revision)
        for chain in ledger.chains.values()
        for at, change in enumerate(chain)
        if change.author is not None and change.author.verb == "update"
        for older in chain[: at - 1]
    ]
    if not wrong:
        return None
    write, older = chance.choice(wrong)
    return _operations(history, lambda one: replace(one, expected=older) if one is write else one)


def conflicted_with_nothing(history: History, chance: random.Random) -> History | None:
    """An update that expected what was there was refused."""
    ledger = make_ledger(history)
    reads = [
        (one, one.seen[0]) for one in history.operations if one.verb == "get" and one.outcome == "ok" and len(_moments(ledger, one)) == 1
    ]
    if not reads:
        return None
    read, there = chance.choice(reads)
    refused = replace(read, client="other", verb="update", value="v777777", expected=there.revision, seen=(), outcome="conflict")
    return replace(history, operations=(*history.operations, refused))


def lost_a_field_in_a_patch(history: History, chance: random.Random) -> History | None:
    """Two patched at once, or the patch was applied to an old state: the value is an older one."""
    ledger = make_ledger(history)
    patched = [
        (change.seen, older.seen.value)
        for chain in ledger.chains.values()
        for at, change in enumerate(chain)
        if change.seen.note and not change.deleted
        for older in chain[:at]
        if older.seen.value != change.seen.value and older.seen.uid == change.seen.uid
    ]
    if not patched:
        return None
    seen, older = chance.choice(patched)
    return _everywhere(history, seen, replace(seen, value=older))


def deleted_for_two(history: History, chance: random.Random) -> History | None:
    deletions = [one for one in history.operations if one.verb == "delete" and one.outcome == "ok"]
    if not deletions:
        return None
    first = chance.choice(deletions)
    return replace(history, operations=(*history.operations, replace(first, client="other")))


def acknowledged_before_it_wrote(history: History, chance: random.Random) -> History | None:
    """The order of revisions is not that of time."""
    ledger = make_ledger(history)
    pairs = [
        (change.author, following.author)
        for change, following in zip(ledger.changes, ledger.changes[1:], strict=False)
        if change.author is not None and following.author is not None and following.author.outcome == "ok"
        if change.placed and following.placed
    ]
    if not pairs:
        return None
    first, second = chance.choice(pairs)
    moved = replace(second, invoked=first.invoked - 0.2, returned=first.invoked - 0.1)
    return _operations(history, lambda one: moved if one is second else one)


def delivered_twice(history: History, chance: random.Random) -> History | None:
    found = _any_delivery(history, chance)
    if found is None:
        return None
    connection, at = found
    later = chance.randint(at + 1, len(connection.deliveries))
    deliveries = (*connection.deliveries[:later], connection.deliveries[at], *connection.deliveries[later:])
    return _connection(history, connection, deliveries)


def delivered_in_another_order(history: History, chance: random.Random) -> History | None:
    swaps = [
        (connection, at)
        for connection in history.connections
        for at, (one, two) in enumerate(zip(connection.deliveries, connection.deliveries[1:], strict=False))
        if one.seen and two.seen
    ]
    if not swaps:
        return None
    connection, at = chance.choice(swaps)
    one, two = connection.deliveries[at : at + 2]
    return _connection(history, connection, (*connection.deliveries[:at], two, one, *connection.deliveries[at + 2 :]))


def left_a_change_out_of_a_watch(history: History, chance: random.Random) -> History | None:
    gaps = [
        (connection, at)
        for connection in history.connections
        for at, one in enumerate(connection.deliveries)
        if one.seen and (connection.last or at + 1 < len(connection.deliveries))
    ]
    if not gaps:
        return None
    connection, at = chance.choice(gaps)
    if not _told_elsewhere(history, connection, connection.deliveries[at]):
        return None
    return _connection(history, connection, (*connection.deliveries[:at], *connection.deliveries[at + 1 :]))


def resumed_too_late(history: History, chance: random.Random) -> History | None:
    """A watch began after more than it was asked to."""
    resumed = [one for one in history.connections if len(one.deliveries) > 1 and one.deliveries[0].seen and one.deliveries[1].seen]
    if not resumed:
        return None
    connection = chance.choice(resumed)
    if not _told_elsewhere(history, connection, connection.deliveries[0]):
        return None
    return _connection(history, connection, connection.deliveries[1:])


def resumed_too_early(history: History, chance: random.Random) -> History | None:
    """A watch told once more what its watcher had."""
    resumed = [one for one in history.connections if one.deliveries and one.deliveries[0].seen]
    if not resumed:
        return None
    connection = chance.choice(resumed)
    return _operations(
        replace(
            history,
            connections=tuple(replace(one, start=one.deliveries[0].revision) if one is connection else one for one in history.connections),
        ),
        lambda one: one,
    )


def called_a_change_by_another_name(history: History, chance: random.Random) -> History | None:
    found = _any_delivery(history, chance)
    if found is None:
        return None
    connection, at = found
    one = connection.deliveries[at]
    wrong = replace(one, type=chance.choice([type for type in ("ADDED", "MODIFIED", "DELETED") if type != one.type]))
    return _connection(history, connection, (*connection.deliveries[:at], wrong, *connection.deliveries[at + 1 :]))


def stopped_to_deliver(history: History, chance: random.Random) -> History | None:
    """A watch is open and tells nothing any more."""
    stopped = [one for one in history.connections if one.last and any(delivery.seen for delivery in one.deliveries)]
    if not stopped:
        return None
    connection = chance.choice(stopped)
    at = max(at for at, one in enumerate(connection.deliveries) if one.seen)
    if not _told_elsewhere(history, connection, connection.deliveries[at]):
        return None
    return _connection(history, connection, connection.deliveries[:at])


MUTANTS: Sequence[Mutant] = (
    lost_an_acknowledged_write,
    gave_a_revision_twice,
    kept_a_deleted_object,
    showed_what_nobody_wrote,
    did_what_it_refused,
    answered_a_read_with_an_old_state,
    answered_a_read_with_the_future,
    did_not_find_what_was_there,
    found_what_was_not_there,
    went_back,
    mixed_two_moments_in_a_list,
    left_an_object_out_of_a_list,
    changed_revision_between_pages,
    created_what_was_there,
    overlooked_a_precondition,
    conflicted_with_nothing,
    lost_a_field_in_a_patch,
    deleted_for_two,
    acknowledged_before_it_wrote,
    delivered_twice,
    delivered_in_another_order,
    left_a_change_out_of_a_watch,
    resumed_too_late,
    resumed_too_early,
    called_a_change_by_another_name,
    stopped_to_deliver,
)


def _operations(history: History, change: Callable[[Operation], Operation]) -> History:
    return replace(history, operations=tuple(map(change, history.operations)))


def _deliveries(history: History, change: Callable[[Delivery], Sequence[Delivery]]) -> History:
    changed = [
        replace(one, deliveries=tuple(new for delivery in one.deliveries for new in change(delivery))) for one in history.connections
    ]
    return replace(history, connections=tuple(changed))


def _everywhere(history: History, old: Seen, new: Seen) -> History:
    changed = _operations(history, lambda one: replace(one, seen=tuple(new if seen == old else seen for seen in one.seen)))
    return _deliveries(changed, lambda one: (replace(one, seen=new) if one.seen == old else one,))


def _connection(history: History, old: Connection, deliveries: Sequence[Delivery]) -> History:
    changed = replace(old, deliveries=tuple(deliveries))
    return replace(history, connections=tuple(changed if one is old else one for one in history.connections))


def _any_delivery(history: History, chance: random.Random) -> tuple[Connection, int] | None:
    found = [(connection, at) for connection in history.connections for at, one in enumerate(connection.deliveries) if one.seen]
    return chance.choice(found) if found else None


def _told_elsewhere(history: History, connection: Connection, delivery: Delivery) -> bool:
    """Whether anybody else saw this change; otherwise it could as well be one that nobody saw."""
    return any(
        one.seen and one.revision == delivery.revision
        for other in history.connections
        if other is not connection
        for one in other.deliveries
    ) or any(seen.revision == delivery.revision for one in history.operations for seen in one.seen)


def _last_list(history: History) -> Operation:
    return max((one for one in history.operations if one.verb == "list"), key=lambda one: one.invoked)


def _before(ledger: Ledger, change: Change) -> Change | None:
    chain = ledger.chains[change.seen.name]
    at = chain.index(change)
    return chain[at - 1] if at else None


def _moments(ledger: Ledger, one: Operation) -> list[Change]:
    """Return the states between question and answer; a missing object before the first change counts as a deletion."""
    chain = ledger.chains.get(one.name, ())
    nothing = Change(order=0, seen=Seen(one.name, "", 0, ""), deleted=True, author=None, begun=-math.inf, completed=0.0)
    return [
        state
        for state, following in zip([nothing, *chain], [*chain, None], strict=True)
        if state.begun <= one.returned and (following is None or following.completed >= one.invoked)
    ]


def _is_absent(state: Change) -> bool:
    return state.deleted


def _known_before(history: History, one: Operation) -> int:
    lists = [other.pages[0] for other in history.operations if other.pages and other.returned < one.invoked and other is not one]
    seen = [seen.revision for other in history.operations if other.returned < one.invoked for seen in other.seen]
    return max((*lists, *seen), default=0)
