"""Reports become status: one board's Board and Replicas, written only where something changed.

In: the latest whole state of a board in session. Out: status writes through the store, each conditional on the session number, on uids
and on the Replica being this board's. The hub makes one writer per session and calls it from one task, so a board's writes are in order,
newer states replace older ones while a write is under way, and the writes of many boards share commits.

What is not written: a state that says nothing new; a change of measured speed alone, more often than once a minute; a change of progress
alone, more often than every five seconds. Live figures are metrics. After a minute everything is asserted again (a write that changes
nothing costs no commit), so that whatever another writer did from a stale view does not stay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from controller.sessions.taking import Taken, board_ref, labels_of, metadata_patch
from controller.store.base import Store
from rkfleet.clock import Clock
from rkfleet.conditions import Condition
from rkfleet.errors import Conflict, NotFound
from rkfleet.kinds.base import StatusOwner
from rkfleet.kinds.board import Allocatable, Board, BoardStatus, Capacity, RunningReplica
from rkfleet.kinds.replica import Measured, Replica, ReplicaStatus
from rkfleet.meta import Ref
from rkfleet.quantity import format_bytes
from rkfleet.report import BoardFacts, BoardState, ReplicaState
from rkfleet.session import AssignmentAnswer, Verdict

__all__ = ["MEASURED_SECONDS", "PROGRESS_SECONDS", "REASSERT_SECONDS", "StatusWriter"]

MEASURED_SECONDS: Final = 60.0  # 15,000 replicas then cost 250 writes a second at most, a fiftieth of what the store takes.
PROGRESS_SECONDS: Final = 5.0  # People watch a download; one that lasts a minute shows twelve steps.
REASSERT_SECONDS: Final = 60.0
NOTHING_NEW: Final = float("inf")

Json = dict[str, Any]
_BOARD_OWNER: Final = Board.resource.owners["agent"]
_REPLICA_OWNER: Final = Replica.resource.owners["agent"]


class _Written(msgspec.Struct, frozen=True, gc=False):
    """What was last written about one replica, and when (monotonic)."""

    state: ReplicaState
    at: float


class StatusWriter:
    """Writes what one session reports."""

    def __init__(self, store: Store, clock: Clock, taken: Taken, wrote: Callable[[str], None]) -> None:
        """Begin with nothing written: the first report of a session is asserted whole.

        Args:
            store: Where status goes.
            clock: Wall time for transitions, monotonic time for pauses.
            taken: Session whose reports these are.
            wrote: Called with the kind for every write, for the metric.
        """
        self._store: Final = store
        self._clock: Final = clock
        self._taken: Final = taken
        self._wrote: Final = wrote
        self._fence: Final = {"status.session.number": taken.number}
        self._settled: BoardState | None = None  # Nothing of this very state waits to be written.
        self._board: BoardState | None = None  # The last state whose part about the board itself was written.
        self._labelled: BoardFacts | None = None
        self._replicas: dict[str, _Written] = {}
        self._asserted_at = clock.monotonic()

    async def write(self, state: BoardState) -> None:
        """Write what is new in this state.

        Raises:
            Conflict: The session is not this one's any more.
            NotFound: The Board is gone.
            Unavailable: The store cannot write; call again with the latest state.
        """
        now = self._clock.monotonic()
        if now - self._asserted_at >= REASSERT_SECONDS:
            self._settled, self._board, self._labelled, self._replicas, self._asserted_at = None, None, None, {}, now
        if state is self._settled:  # A heartbeat, which is what most reports are.
            return
        await self._write_labels(state.facts)
        await self._write_board(state)
        if state.replicas:  # No write to a Replica can be conditional on the Board's number; what is in memory is looked at just before.
            await self._check_session()
        results = await asyncio.gather(
            *(self._write_replica(replica, now, simulated=state.facts.simulated) for replica in state.replicas), return_exceptions=True
        )
        for failure in results:
            if isinstance(failure, BaseException):
                raise failure
        reported = {replica.uid for replica in state.replicas}
        self._replicas = {uid: written for uid, written in self._replicas.items() if uid in reported}
        self._settled = state if all(results) else None

    async def write_answer(self, answer: AssignmentAnswer) -> None:
        """Write what the board did with an assignment; an answer to one that is not the latest any more is of no interest.

        Raises:
            Conflict: The session is not this one's any more.
            NotFound: The Board is gone.
            Unavailable: The store cannot write.
        """
        accepted = answer.verdict is Verdict.ACCEPTED
        changed: Json = {"acceptedNumber": answer.number, "message": ""} if accepted else {"message": _refusal(answer)}
        patch = {"status": {"assignment": changed}}
        fence = {**self._fence, "status.assignment.number": answer.number}
        try:
            await self._store.patch(
                board_ref(self._taken.board), patch, uid=self._taken.uid, when=fence, subresource="status", now=self._clock.now()
            )
        except Conflict:
            await self._check_session()
        else:
            self._wrote("Board")

    async def _check_session(self) -> None:
        """Raise Conflict if the Board's session is another one by now."""
        item = await self._store.get(board_ref(self._taken.board))
        number = msgspec.json.decode(item.body, type=Board).status.session.number
        if item.uid != self._taken.uid or number != self._taken.number:
            raise Conflict(f"session {self._taken.number} of board {self._taken.board} was superseded by {number}")

    async def _write_labels(self, facts: BoardFacts) -> None:
        if facts == self._labelled:
            return
        board = await self._store.get(board_ref(self._taken.board))
        if patch := metadata_patch(board, {}, labels_of(facts)):
            await self._store.patch(board.ref, patch, uid=self._taken.uid, when=self._fence, now=self._clock.now())
            self._wrote("Board")
        self._labelled = facts

    async def _write_board(self, state: BoardState) -> None:
        if self._board is not None and _about_itself(state) == _about_itself(self._board):
            return
        fields, conditions = _owned(_board_status(state), _BOARD_OWNER), _conditions(state.conditions, _BOARD_OWNER)
        await self._store.patch_status(
            board_ref(self._taken.board), self._taken.uid, "agent", fields, conditions, when=self._fence, now=self._clock.now()
        )
        self._wrote("Board")
        self._board = state

    async def _write_replica(self, replica: ReplicaState, now: float, *, simulated: bool) -> bool:
        """Write what is new about a replica; return whether nothing of it waits for a later report."""
        before = self._replicas.get(replica.uid)
        if before is not None and now < before.at + (pause := _pause(before.state, replica)):
            return pause == NOTHING_NEW
        ref = Ref(Replica.resource.name, replica.namespace, replica.name)
        fields = _owned(_replica_status(replica, simulated=simulated), _REPLICA_OWNER)
        conditions = _conditions(replica.conditions, _REPLICA_OWNER)
        try:
            await self._store.patch_status(
                ref, replica.uid, "agent", fields, conditions, when={"spec.boardName": self._taken.board}, now=self._clock.now()
            )
            self._wrote("Replica")
        except (NotFound, Conflict):
            pass  # It was deleted, or belongs to another board: not this board's to write about, now and until its state changes.
        self._replicas[replica.uid] = _Written(replica, now)
        return True


def _about_itself(state: BoardState) -> tuple[object, ...]:
    """Return what a state says about the board, as far as the agent may say it."""
    said = [one for one in state.conditions if one.type in _BOARD_OWNER.conditions]
    return (state.facts, state.serving_url, said, state.running)


def _pause(before: ReplicaState, after: ReplicaState) -> float:
    """Return how many seconds after the last write this one may follow: 0 for a transition, infinity for nothing new."""
    if msgspec.structs.replace(before, measured=after.measured, progress=after.progress) != after:
        return 0.0
    measures = _rounded(before.measured) != _rounded(after.measured)
    if measures and before.measured is None:
        return 0.0  # The first speed of all: people wait for it, and it comes once.
    if before.progress != after.progress:
        return PROGRESS_SECONDS
    return MEASURED_SECONDS if measures else NOTHING_NEW


def _refusal(answer: AssignmentAnswer) -> str:
    return f"assignment {answer.number} {answer.verdict.value}: {answer.reason or 'the board gave no reason'}"


def _owned(status: BoardStatus | ReplicaStatus, owner: StatusOwner) -> Json:
    built: Json = msgspec.to_builtins(status)
    return {key: built[key] for key in owner.fields if key in built}


def _conditions(conditions: Sequence[Condition], owner: StatusOwner) -> list[Json]:
    """Return the conditions that the agent owns, by type, without transition times: the store gives those."""
    owned = {one.type: one for one in conditions if one.type in owner.conditions}
    return [msgspec.to_builtins(msgspec.structs.replace(owned[type_], last_transition_time="")) for type_ in sorted(owned)]


def _board_status(state: BoardState) -> BoardStatus:
    facts = state.facts
    return BoardStatus(
        soc=facts.soc,
        simulated=facts.simulated,
        capacity=Capacity(memory=format_bytes(facts.memory_bytes), storage=format_bytes(facts.storage_bytes), npu_cores=facts.npu_cores),
        allocatable=Allocatable(memory=format_bytes(facts.allocatable_memory_bytes), storage=format_bytes(facts.allocatable_storage_bytes)),
        versions=facts.versions,
        runtimes=facts.runtimes,
        serving_endpoint=state.serving_url,
        running=tuple(
            RunningReplica(replica=f"{one.namespace}/{one.name}", uid=one.uid, memory=format_bytes(one.memory_bytes))
            for one in state.running
        ),
    )


def _replica_status(replica: ReplicaState, *, simulated: bool) -> ReplicaStatus:
    return ReplicaStatus(
        observed_generation=replica.observed_generation,
        endpoint=replica.endpoint,
        progress=replica.progress,
        measured=_rounded(replica.measured),
        simulated=simulated,
        restarts=replica.restarts,
        last_exit=replica.last_exit,
    )


def _rounded(measured: Measured | None) -> Measured | None:
    """Round to two significant digits, so that noise is not a change."""
    if measured is None:
        return None
    return Measured(
        time_to_first_token_seconds=_two_digits(measured.time_to_first_token_seconds),
        decode_tokens_per_second=_two_digits(measured.decode_tokens_per_second),
    )


def _two_digits(figure: float | None) -> float | None:
    return None if figure is None else float(f"{figure:.2g}")
