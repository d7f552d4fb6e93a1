"""Faults put into the shipped code on purpose: each must be caught by some seed, or the harness would be blind to it.

A mutant is a context in which one method of the product does something else. `caught` plays seeds until a promise breaks; the seed that is
named beside each mutant is known to, so that a test need not search.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from agent.artifacts.cache import Cache
from agent.ledger import Ledger
from agent.planning import plan as agent_plan
from controller.machinery import cache as machinery_cache
from controller.planning import health, placement, rollout
from controller.reconcilers import act, garbage
from controller.reconcilers import assignment as assignment_loop
from controller.sessions.hub import Hub
from controller.sessions.status_writer import StatusWriter
from controller.sessions.stream import Stream
from rkfleet import disk as disk_module
from rkfleet.session import AssignmentAnswer, Verdict
from tests.support.scenario.chance import chaos
from tests.support.scenario.named import SCENARIOS
from tests.support.scenario.promises import PromiseBroken
from tests.support.scenario.stage import Outcome, play

SEEDS_MAX = 300


@contextlib.contextmanager
def _instead(owner: Any, name: str, other: Any) -> Iterator[None]:
    real = owner.__dict__[name]
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, real)


def no_session_fence() -> contextlib.AbstractContextManager[None]:
    """A superseded session goes on and writes about the board."""
    real = StatusWriter.__init__

    def init(self: Any, *args: Any, **keywords: Any) -> None:
        real(self, *args, **keywords)
        self._fence = {}

    def hold(self: Any, holder: Any) -> None:
        self._in_session[holder.taken.board] = holder
        self._count()
        self._seams.on_presence(holder.taken.board)

    stack = contextlib.ExitStack()
    stack.enter_context(_instead(StatusWriter, "__init__", init))
    stack.enter_context(_instead(Hub, "_hold", hold))
    return stack


def no_ledger_fence() -> contextlib.AbstractContextManager[None]:
    """The controller numbers from one again whatever the board holds, and the ledger takes an older number."""
    from agent import ledger as ledger_module

    real = ledger_module.judge

    def judge(held: Any, offer: Any) -> Any:
        return real(held if offer.number >= held.number else ledger_module._NOTHING, offer)

    stack = contextlib.ExitStack()
    stack.enter_context(_instead(ledger_module, "judge", judge))
    stack.enter_context(
        _instead(assignment_loop, "next_number", lambda sha, minted, minted_sha, held=0, held_sha="": minted + (sha != minted_sha))
    )
    return stack


def a_number_twice() -> contextlib.AbstractContextManager[None]:
    """A changed assignment keeps its number."""
    return _instead(assignment_loop, "next_number", lambda sha, minted, minted_sha, held=0, held_sha="": max(minted, held, 1))


def act_before_the_ledger() -> contextlib.AbstractContextManager[None]:
    """An assignment is accepted and followed first, and written down some time later."""
    real = Ledger.accept

    async def accept(self: Any, offer: Any) -> AssignmentAnswer:
        from agent import ledger as ledger_module

        refusal, entry = ledger_module.judge(self._held, offer)
        if refusal is not None:
            return await real(self, offer)
        self._held = entry
        self._on_change()
        return AssignmentAnswer(number=offer.number, verdict=Verdict.ACCEPTED)

    return _instead(Ledger, "accept", accept)


def ledger_in_place() -> contextlib.AbstractContextManager[None]:
    """The ledger is written over the old one, not beside it."""

    def write(self: Any, entry: Any) -> None:
        import os

        from agent import ledger as ledger_module

        descriptor = os.open(self._directory / ledger_module.CURRENT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            rest = memoryview(ledger_module._encode(entry))
            while rest:
                rest = rest[self._disk.write(descriptor, rest[:100]) :]
            self._disk.flush(descriptor)
        finally:
            os.close(descriptor)

    return _instead(Ledger, "_write", write)


def rename_before_flush() -> contextlib.AbstractContextManager[None]:
    """The ledger has its name before its bytes are durable."""
    from agent import ledger as ledger_module

    def write_durably(target: Any, body: bytes, scratch: Any, disk: Any) -> None:
        import os

        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            rest = memoryview(body)
            while rest:
                rest = rest[disk.write(descriptor, rest) :]
            disk_module.move_durably(scratch, target)
        finally:
            os.close(descriptor)
            scratch.unlink(missing_ok=True)

    return _instead(ledger_module, "write_durably", write_durably)


def no_verification() -> contextlib.AbstractContextManager[None]:
    """Files are loaded without being read first."""

    def steps(replica: Any, worker: Any, observed: Any) -> Any:
        return ()

    def standing(replica: Any, scene: Any) -> Any:
        token = agent_plan.load_token(None)
        verified = {**scene.observed.verified, replica.uid: token}
        return real(replica, msgspec.structs.replace(scene, observed=msgspec.structs.replace(scene.observed, verified=verified)))

    real = agent_plan._standing_before_start
    stack = contextlib.ExitStack()
    stack.enter_context(_instead(agent_plan, "_verify_steps", steps))
    stack.enter_context(_instead(agent_plan, "_standing_before_start", standing))
    return stack


def verification_believes() -> contextlib.AbstractContextManager[None]:
    """Verification reads the file and does not mind what is in it."""

    async def verify(self: Any, digest: str) -> Any:
        return self.path(digest)

    return _instead(Cache, "verify", verify)


def minimum_less_one() -> contextlib.AbstractContextManager[None]:
    """One replica too many may be missing in a rollout."""
    return _instead(rollout.Goal, "minimum", property(lambda self: max(self.replicas - self.max_unavailable - 1, 0)))


def surge_plus_one() -> contextlib.AbstractContextManager[None]:
    """One replica too many may serve in a rollout."""
    real = rollout.plan_rollout
    from controller.planning import deployment

    def plan(goal: Any, members: Any) -> Any:
        return real(msgspec.structs.replace(goal, max_surge=goal.max_surge + 1), members)

    assert deployment.rollout is rollout
    return _instead(rollout, "plan_rollout", plan)


def ready_at_once() -> contextlib.AbstractContextManager[None]:
    """What is on a board that is away counts as available."""
    from controller.planning import deployment

    real = deployment._member

    def member(replica: Any, boards: Any, min_ready_seconds: float, now: Any) -> Any:
        return real(replica, msgspec.structs.replace(boards, absent=frozenset()), min_ready_seconds, now)

    return _instead(deployment, "_member", member)


def replaces_ignored() -> contextlib.AbstractContextManager[None]:
    """The board loads a successor while its predecessor is still loaded."""
    real = agent_plan._standing_before_start

    def standing(replica: Any, scene: Any) -> Any:
        alone = msgspec.structs.replace(replica, replaces="")
        room = msgspec.structs.replace(scene.room, leaving={})
        return real(alone, msgspec.structs.replace(scene, leaving={}, room=room))

    return _instead(agent_plan, "_standing_before_start", standing)


def activated_too_early() -> contextlib.AbstractContextManager[None]:
    """A successor is activated while its predecessor drains."""

    def activate(self: Any) -> None:
        for member in self._takeovers():
            self._activate.append(member.uid)
            self._replace(member, "Serving")

    return _instead(rollout._Work, "activate_successors", activate)


def memory_of_boards_forgotten() -> contextlib.AbstractContextManager[None]:
    """Placement looks at each replica as if its board were empty."""
    real = placement.board_loads

    def loads(fleet: Any) -> Any:
        return {name: msgspec.structs.replace(load, reservations={}) for name, load in real(fleet).items()}

    return _instead(placement, "board_loads", loads)


def no_look_before_the_write() -> contextlib.AbstractContextManager[None]:
    """Plans made from caches that lag are written without looking at the store again."""

    async def check(self: Any, *args: Any, **keywords: Any) -> None:
        return None

    return _instead(act.Applier, "check_current", check)


def mint_without_hello() -> contextlib.AbstractContextManager[None]:
    """The first assignment of a session is numbered without regard for what the board holds."""
    real = assignment_loop.AssignmentMinter.mint

    async def mint(self: Any, board: str, held_number: int = 0, held_sha256: str = "") -> Any:
        return await real(self, board)

    return _instead(assignment_loop.AssignmentMinter, "mint", mint)


def lost_boards_forgotten() -> contextlib.AbstractContextManager[None]:
    """Health never says that a board is away."""
    return _instead(health, "_silence", lambda replica, board: ())


def changes_lost() -> contextlib.AbstractContextManager[None]:
    """A cache does not list again after its watch fell behind."""
    real = machinery_cache.Cache._list

    async def list_(self: Any) -> None:
        if self.synced:
            self._resource_version = (await self._store.list(self._resource)).resource_version
            return
        await real(self)

    return _instead(machinery_cache.Cache, "_list", list_)


def refused_offers_dropped() -> contextlib.AbstractContextManager[None]:
    """A board that could not write an assignment is not offered it again."""
    return _instead(Stream, "offer_again", lambda self: None)


def orphans_stay() -> contextlib.AbstractContextManager[None]:
    """Garbage collection takes every owner to exist."""

    async def exists(self: Any, obj: Any, owner: Any) -> bool:
        return True

    return _instead(garbage.GarbageReconciler, "_exists", exists)


# Each with a seed, or a scenario of `named.py`, that is known to catch it; 0 for a search.
MUTANTS: dict[Callable[[], contextlib.AbstractContextManager[None]], int | str] = {
    no_session_fence: 42,
    no_ledger_fence: 2,
    a_number_twice: 1,
    act_before_the_ledger: "first_rollout",
    ledger_in_place: "first_rollout",
    rename_before_flush: 1,
    no_verification: "first_rollout",
    verification_believes: "spoiled_file",
    minimum_less_one: 15,
    surge_plus_one: 7,
    ready_at_once: "board_away_in_a_rollout",
    replaces_ignored: "lost_while_it_should_drain",
    activated_too_early: 7,
    memory_of_boards_forgotten: "first_rollout",
    no_look_before_the_write: 5,
    mint_without_hello: "board_deleted_and_joined_again",
    lost_boards_forgotten: "board_lost_and_back",
    changes_lost: 12,
    refused_offers_dropped: "board_disk_full",
    orphans_stay: 1,
}


def caught(mutant: Callable[[], contextlib.AbstractContextManager[None]], history: int | str) -> Outcome:
    """Play one seed or named scenario with the mutant in place."""
    with mutant():
        return play_one(history)


def play_one(history: int | str) -> Outcome:
    """Play one seed or named scenario as the code is."""
    return play(str(history), chaos if isinstance(history, int) else SCENARIOS[history])


def search(mutant: Callable[[], contextlib.AbstractContextManager[None]], seeds_max: int) -> tuple[int | str, BaseException] | None:
    """Return a history in which only the mutant breaks a promise, and how; the known one is tried first.

    A mutant that no longer fits the code ends in an error of ours, which catches nothing.
    """
    known = MUTANTS[mutant]
    for history in [*([known] if known else ()), *range(1, seeds_max)]:
        outcome = caught(mutant, history)
        if isinstance(outcome.broken, PromiseBroken) and play_one(history).broken is None:
            return history, outcome.broken
    return None


def main() -> int:
    """See to it that each mutant is caught; arguments name some of them."""
    chosen = [mutant for mutant in MUTANTS if not sys.argv[1:] or mutant.__name__ in sys.argv[1:]]
    blind = 0
    for mutant in chosen:
        if (found := search(mutant, SEEDS_MAX)) is None:
            blind += 1
            print(f"{mutant.__name__}: NOT CAUGHT by {SEEDS_MAX} seeds", flush=True)
        else:
            history, broken = found
            print(f"{mutant.__name__}: {history}: {type(broken).__name__}: {str(broken)[:160]}", flush=True)
    print(f"{len(chosen) - blind} of {len(chosen)} mutants are caught")
    return 1 if blind else 0


if __name__ == "__main__":
    sys.exit(main())
