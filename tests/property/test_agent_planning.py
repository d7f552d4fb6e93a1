"""The board's planner against any order of assignments and happenings."""

import random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.planning.plan import FETCHES_MAX, plan
from agent.planning.values import Fetch, Plan, Start, Unload
from rkfleet.assignment import AssignedReplica, Assignment, ServingParameters
from tests.support.assignments import replica
from tests.support.board_world import BoardWorld

NAMES = ("a", "b", "c", "d")
STEPS_MAX = 12  # Fetch, verify, start, stop and their follow-ups for one replica, with room.

replicas = st.builds(
    lambda name, model, activation, context, replaces, memory, load, idle: replica(
        name,
        model=model,
        activation=activation,
        replaces="" if replaces == name else f"uid-{replaces}" if replaces else "",
        memory_bytes=memory << 20,
        serving=ServingParameters(context_tokens=context, drain_seconds=10, load=load, idle_unload_seconds=idle),
    ),
    st.sampled_from(NAMES),
    st.sampled_from(("m1", "m2")),
    st.sampled_from(("Staged", "Serving", "Serving", "Draining")),
    st.sampled_from((1024, 2048)),
    st.sampled_from(("", "", *NAMES)),
    st.sampled_from((200, 700)),
    st.sampled_from(("Eager", "Eager", "OnDemand")),
    st.sampled_from((0, 0, 20)),
)
assignments = st.lists(replicas, max_size=4, unique_by=lambda each: each.uid).map(tuple)


class AnyBoard(RuleBasedStateMachine):
    """Whatever happens in whatever order, what must hold holds, and when nothing more happens the board comes to rest."""

    def __init__(self) -> None:
        super().__init__()
        self.world = BoardWorld()

    @initialize(wanted=assignments)
    def start(self, wanted: tuple[AssignedReplica, ...]) -> None:
        self.world.replicas = wanted
        self.step()

    @rule(wanted=assignments)
    def assign(self, wanted: tuple[AssignedReplica, ...]) -> None:
        self.world.replicas = wanted
        self.step()

    @rule(seconds=st.sampled_from((0.1, 5.0, 11.0)))
    def time_passes(self, seconds: float) -> None:
        self.world.change(now=self.world.observed.now + seconds)
        self.step()

    @rule(data=st.data())
    def something_happens(self, data: st.DataObject) -> None:
        happenings = self.possible()
        if happenings:
            name, uid = data.draw(st.sampled_from(sorted(happenings)))
            self.happen(name, uid)
            self.step()

    @precondition(lambda self: self.world.replicas)
    @rule(data=st.data(), count=st.integers(0, 2))
    def requests_come_or_end(self, data: st.DataObject, count: int) -> None:
        """Of a replica that waits for its model too: its requests are in the queue."""
        uid = data.draw(st.sampled_from(sorted(each.uid for each in self.world.replicas)))
        self.world.asked(uid, count)
        self.step()

    @rule(mib=st.sampled_from((None, 100, 900)))
    def other_programs_take_memory(self, mib: int | None) -> None:
        self.world.change(available_bytes=None if mib is None else mib << 20)
        self.step()

    @precondition(lambda self: self.world.observed.workers)
    @rule(data=st.data(), count=st.integers(0, 2))
    def requests_run(self, data: st.DataObject, count: int) -> None:
        uid = data.draw(st.sampled_from(sorted(self.world.observed.workers)))
        self.world.change(in_flight={**self.world.observed.in_flight, uid: count})
        self.step()

    def possible(self) -> list[tuple[str, str]]:
        seen = self.world.observed
        found = [(how, uid) for uid, fetch in seen.fetches.items() if not fetch.reason for how in ("fetched", "fetch fails")]
        found += [(how, uid) for uid in seen.verifying for how in ("verified", "mismatch")]
        for uid, worker in seen.workers.items():
            if worker.phase == "Stopping":
                found.append(("gone", uid))
            elif worker.phase == "Ready":
                found.append(("crashes", uid))
            else:
                found += [("loaded", uid), ("crashes", uid)]
        return found

    def happen(self, name: str, uid: str) -> None:
        world = self.world
        match name:
            case "fetched":
                world.fetched(uid)
            case "fetch fails":
                world.fetch_failed(uid, "FetchFailed", retry_after=2.0)
            case "verified":
                world.verified(uid)
            case "mismatch":
                files = sorted(world.observed.files)
                if files:
                    world.mismatched(uid, files[0])
            case "loaded":
                world.loaded(uid)
            case "crashes":
                world.crashed(uid, restarts=world.observed.workers[uid].restarts + 1)
            case "gone":
                world.gone(uid)

    def step(self) -> None:
        """Plan, check what is decided against what is seen, act, and plan again: there is nothing left to decide."""
        self.check(self.world.plan())
        self.world.step()
        # A fetch that had to wait for another's bytes may follow a cancelled one, hence not always at once.
        self.world.step()
        assert self.world.plan().steps == ()

    def check(self, planned: Plan) -> None:
        seen, world = self.world.observed, self.world
        assigned = {each.uid: each for each in world.replicas}
        for step in planned.steps:
            if isinstance(step, Start):
                wanted = assigned[step.spec.uid]
                assert wanted.activation == "Serving"
                assert all(file.digest in seen.files for file in wanted.files)
                if step.spec.uid not in seen.workers:
                    assert seen.verified[step.spec.uid] == "first"
                    assert wanted.replaces not in seen.workers
                    if seen.available_bytes is not None:
                        assert wanted.memory_bytes <= seen.available_bytes
            if isinstance(step, Unload):
                going = assigned[step.uid]
                assert going.serving.load == "OnDemand" or going.serving.idle_unload_seconds
                assert not seen.in_flight.get(step.uid), "a model that works was unloaded"
                assert seen.workers[step.uid].phase in {"Ready", "BackOff"}
            if isinstance(step, Fetch):
                assert assigned[step.replica.uid].activation != "Draining"
        running = [fetch for fetch in seen.fetches.values() if not fetch.reason]
        assert len(running) <= FETCHES_MAX or not any(isinstance(step, Fetch) for step in planned.steps)
        wanted_bytes = [digest for fetch in running for digest in fetch.digests]
        assert len(wanted_bytes) == len(set(wanted_bytes))
        shuffled = list(world.replicas)
        random.Random(1).shuffle(shuffled)
        again = plan(Assignment(replicas=tuple(shuffled)), world.abilities, seen)
        assert (again.steps, again.served, again.holders) == (planned.steps, planned.served, planned.holders)

    @invariant()
    def what_serves_is_said_to_serve_and_nothing_else(self) -> None:
        planned = self.world.plan()
        ready = {state.uid for state in planned.replicas if ("Ready", "True") in {(one.type, one.status) for one in state.conditions}}
        open_routes = {route.replica.uid for route in planned.served if route.endpoint and not route.draining}
        waking = {route.replica.uid for route in planned.served if route.on_demand and not route.endpoint}
        assert ready == open_routes | waking
        for uid in open_routes:
            assert self.world.observed.workers[uid].phase == "Ready"
        for each in self.world.replicas:
            if each.serving.load == "Eager" and not each.serving.idle_unload_seconds:
                assert each.uid not in waking

    @invariant()
    def models_that_take_turns_fit_together_beside_what_stays(self) -> None:
        """Unless what is to stay is too much by itself, which was placed by the controller's word."""
        workers = self.world.observed.workers
        known = {**self.world.observed.known, **{each.uid: each for each in self.world.replicas}}
        turns = [uid for uid in workers if uid in known and known[uid].serving.load == "OnDemand"]
        stays = [uid for uid in workers if uid not in turns]
        if len(turns) > 1 and not stays:
            assert sum(workers[uid].memory_bytes for uid in turns) <= self.world.abilities.memory_bytes

    @invariant()
    def every_file_that_may_be_needed_is_held(self) -> None:
        planned = self.world.plan()
        for each in self.world.replicas:
            assert {file.digest for file in each.files} == set(planned.holders[each.uid])

    def teardown(self) -> None:
        """When fetches succeed, files are whole, models load and requests end, the board gets to where it should be."""
        for _ in range(STEPS_MAX * len(NAMES)):
            seen = self.world.observed
            self.world.change(now=seen.now + 3.0, in_flight={}, available_bytes=None)
            for uid in [uid for uid, fetch in seen.fetches.items() if not fetch.reason]:
                self.world.fetched(uid)
            for uid in sorted(seen.verifying):
                self.world.verified(uid)
            for uid, worker in seen.workers.items():
                if worker.phase == "Stopping":
                    self.world.gone(uid)
                elif worker.phase != "Ready":
                    self.world.loaded(uid)
            self.step()
        wanted = {each.uid for each in self.world.replicas if each.activation == "Serving"}
        blocked = {each.uid for each in self.world.replicas if each.activation == "Serving" and each.replaces in wanted}
        running = {uid for uid, worker in self.world.observed.workers.items() if worker.phase == "Ready"}
        stay = {each.uid for each in self.world.replicas if each.serving.load == "Eager" and not each.serving.idle_unload_seconds}
        assert (wanted & stay) - blocked <= running <= wanted
        for state in self.world.plan().replicas:
            found = {one.type: one.status for one in state.conditions}
            assert found.get("Drained", "True") == "True"


TestAnyBoard = AnyBoard.TestCase
TestAnyBoard.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
