"""What a hollow board plays: an assignment comes up with the timing of the scenario and in the words of the shipped agent."""

from __future__ import annotations

import asyncio

from agent.planning.plan import SETTLE_SECONDS
from rkfleet.assignment import AssignedReplica
from rkfleet.report import ReplicaState
from rkfleet.session import Verdict
from simulation.hollow.agenda import Agenda
from simulation.hollow.machine import STOP_SECONDS, HollowMachine, facts_of
from simulation.hollow.scenario import Failures, Load, Scenario, Slow
from simulation.hollow.timing import fate_of
from tests.support.assignments import offer, replica
from tests.support.clocks import ManualClock

STEADY = Load(fetch_seconds=2, load_seconds=3, jitter=0)


class World:
    """One machine, with time that goes on by hand."""

    def __init__(self, scenario: Scenario) -> None:
        self.clock = ManualClock()
        self.agenda = Agenda(self.clock)
        self.machine = HollowMachine("hollow-1", facts_of("rk3588"), scenario, self.clock, self.agenda)
        self._number = 0

    def assign(self, *replicas: AssignedReplica) -> Verdict:
        self._number += 1
        return asyncio.run(self.machine.accept(offer(self._number, *replicas))).verdict

    def wait(self, seconds: float) -> None:
        """Let time pass, stopping wherever something is due."""
        until = self.clock.monotonic() + seconds
        while (left := self.agenda.turn()) is not None and self.clock.monotonic() + left <= until:
            self.clock.advance(left)
        self.clock.advance(until - self.clock.monotonic())
        self.agenda.turn()

    def state(self, name: str = "chat-1") -> ReplicaState:
        assert self.machine.reports.state is not None
        return next(one for one in self.machine.reports.state.replicas if one.name == name)

    def ready(self, name: str = "chat-1") -> tuple[str, str]:
        return next((one.status, one.reason) for one in self.state(name).conditions if one.type == "Ready")


def chat(name: str = "chat-1", **changes: object) -> AssignedReplica:
    return replica(name, runtime="rkllm", **changes)


def test_a_replica_comes_up_in_the_time_that_the_scenario_says() -> None:
    """Fetching, Loading, Serving; nothing is early and nothing is late."""
    world = World(Scenario(load=STEADY))
    assert world.assign(chat()) is Verdict.ACCEPTED
    assert world.ready() == ("False", "Fetching")
    world.wait(1.9)
    assert world.ready() == ("False", "Fetching")
    world.wait(0.1)
    assert world.ready() == ("False", "Loading")
    world.wait(2.9)
    assert world.ready() == ("False", "Loading")
    world.wait(0.1)
    assert world.ready() == ("True", "Serving")
    assert world.state().endpoint == "", "nothing answers there, so nobody is sent there"


def test_a_staged_replica_has_its_bytes_and_waits_for_its_predecessor() -> None:
    """The order of a rollout in place: Staged, the old one drains and goes, the new one loads."""
    world = World(Scenario(load=STEADY))
    world.assign(chat())
    world.wait(5)
    following = chat("chat-2", model="next", replaces="uid-chat-1")
    world.assign(chat(), chat("chat-2", model="next", activation="Staged", replaces="uid-chat-1"))
    world.wait(2)
    assert world.ready("chat-2") == ("False", "Staged")
    world.assign(chat(activation="Draining"), chat("chat-2", model="next", activation="Staged", replaces="uid-chat-1"))
    assert world.ready() == ("False", "Draining")
    world.wait(SETTLE_SECONDS + STOP_SECONDS)
    assert {one.type: one.status for one in world.state().conditions}["Drained"] == "True"
    world.assign(following)
    world.wait(2.9)
    assert world.ready("chat-2") == ("False", "Loading")
    world.wait(0.1)
    assert world.ready("chat-2") == ("True", "Serving")
    assert [worker.name for worker in world.machine.workers] == ["chat-2"]


def test_a_load_that_fails_is_tried_again_after_a_pause_and_says_so() -> None:
    world = World(Scenario(load=STEADY, failures=Failures(load_failed=1.0, back_off_seconds=4)))
    world.assign(chat())
    world.wait(5)
    assert world.ready() == ("False", "LoadFailed")
    last = world.state().last_exit
    assert last is not None
    assert (last.reason, last.message.startswith("[simulated]"), world.state().restarts) == ("LoadFailed", True, 1)
    world.wait(4)
    assert world.ready() == ("False", "Loading")
    world.wait(3)
    assert world.state().restarts == 2


def test_a_worker_that_crashes_was_ready_before() -> None:
    world = World(Scenario(load=STEADY, failures=Failures(crashed=1.0, crash_after_seconds=6, back_off_seconds=1)))
    world.assign(chat())
    world.wait(5)
    assert world.ready() == ("True", "Serving")
    world.wait(6)
    assert world.ready() == ("False", "CrashLoopBackOff")
    world.wait(4)
    assert world.ready() == ("True", "Serving")


def test_an_assignment_that_is_taken_away_ends_what_it_began() -> None:
    """Fetches are given up, loads are stopped, and what was to happen later does not."""
    world = World(Scenario(load=STEADY))
    world.assign(chat())
    world.wait(1)
    world.assign()
    world.wait(10)
    world.assign(chat("chat-2", model="other"))
    world.wait(3)
    world.assign()
    world.wait(10)
    assert world.machine.workers == ()
    assert world.machine.reports.state is not None
    assert world.machine.reports.state.running == ()


def test_every_board_says_that_it_is_simulated() -> None:
    facts = facts_of("rk3576")
    assert (facts.simulated, facts.runtimes[0].backend, facts.versions.kernel, facts.memory_bytes) == (True, "simulated", "hollow", 8 << 30)


def test_as_many_loads_fail_as_the_scenario_says() -> None:
    """Within what chance allows, over a thousand boards."""
    scenario = Scenario(failures=Failures(load_failed=0.1, crashed=0.05), slow=Slow(fraction=0.2))
    fates = [fate_of(scenario, f"b-{number}", "default/chat-1", 0) for number in range(1000)]
    assert 60 < sum(one.ends == "LoadFailed" for one in fates) < 140
    assert 25 < sum(one.ends == "Crashed" for one in fates) < 80
    assert 150 < sum(one.slow for one in fates) < 250
