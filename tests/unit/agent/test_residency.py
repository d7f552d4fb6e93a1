"""When a model is loaded and let go, one sentence per truth."""

import msgspec

from agent.planning.residency import WANT_SECONDS, Use
from agent.planning.values import Plan, Start, Stop, Unload
from rkfleet.assignment import AssignedReplica, ServingParameters
from tests.support.assignments import replica
from tests.support.board_world import ABILITIES, BoardWorld

MI = 1 << 20
UID = "uid-chat-1"
ON_DEMAND = ServingParameters(load="OnDemand")
IDLE = ServingParameters(load="OnDemand", idle_unload_seconds=60)


def on_board(*replicas: AssignedReplica, memory_bytes: int = 1 << 30) -> BoardWorld:
    """Return a board that has every file of these and has verified them."""
    world = BoardWorld(*replicas, abilities=msgspec.structs.replace(ABILITIES, memory_bytes=memory_bytes))
    world.change(files={file.digest: "/cache/x" for each in replicas for file in each.files})
    settle(world)
    return world


def settle(world: BoardWorld) -> Plan:
    """Plan and act until nothing is left; verifications succeed."""
    for _ in range(10):
        world.step()
        for uid in sorted(world.observed.verifying):
            world.verified(uid)
    return world.plan()


def load(world: BoardWorld, uid: str) -> None:
    """Ask for a model, let it load, and let the request end."""
    world.asked(uid)
    settle(world)
    world.loaded(uid)
    world.asked(uid, 0)


def steps(world: BoardWorld) -> list[tuple[str, str]]:
    return [
        (type(step).__name__, step.spec.uid if isinstance(step, Start) else step.uid)
        for step in world.plan().steps
        if isinstance(step, Start | Stop | Unload)
    ]


def test_an_on_demand_replica_has_its_bytes_verified_and_no_worker_and_serves() -> None:
    """Gateways route to what is Ready and has an endpoint; the route says that a request may wait."""
    world = on_board(replica(serving=ON_DEMAND))
    planned = world.plan()
    assert (planned.steps, world.observed.verified) == ((), {UID: "first"})
    assert world.conditions(UID) == {
        "ArtifactAvailable": ("True", "Fetched"),
        "Loaded": ("False", "Unloaded"),
        "Ready": ("True", "OnDemand"),
    }
    assert planned.replicas[0].endpoint == "https://127.0.0.1:7490/replicas/default/chat-1"
    (route,) = planned.served
    assert (route.endpoint, route.on_demand, route.waiting) == (
        "", True, "smollm2 is on the board and not in memory; the next request loads it",
    )  # fmt: skip


def test_a_request_loads_it_once_and_the_replica_stays_ready_meanwhile() -> None:
    """Ten requests that wait are one worker."""
    world = on_board(replica(serving=ON_DEMAND))
    world.asked(UID, 10)
    assert steps(world) == [("Start", UID)]
    world.step()
    assert steps(world) == []
    assert world.conditions(UID)["Loaded"] == ("False", "Loading")
    assert world.conditions(UID)["Ready"] == ("True", "OnDemand")
    world.loaded(UID)
    assert world.conditions(UID)["Ready"] == ("True", "Serving")
    assert world.plan().served[0].endpoint


def test_a_load_that_fails_is_not_hidden_behind_on_demand() -> None:
    """Ready says so, and new requests are refused at once."""
    world = on_board(replica(serving=ON_DEMAND))
    world.asked(UID)
    settle(world)
    world.crashed(UID, reason="LoadFailed")
    assert world.conditions(UID)["Ready"] == ("False", "LoadFailed")
    assert not world.plan().served[0].on_demand


def test_an_idle_model_is_unloaded_when_its_time_is_over_and_not_before() -> None:
    """The moment is planned, its bytes are verified while nobody waits, and the next request loads it again."""
    world = on_board(replica(serving=IDLE))
    world.change(now=100.0)
    load(world, UID)
    assert (steps(world), world.plan().look_again_at) == ([], 160.0)
    world.change(now=160.0)
    assert steps(world) == [("Unload", UID)]
    assert world.plan().served[0].endpoint == ""
    world.step()
    assert steps(world) == []
    assert world.conditions(UID)["Ready"] == ("True", "OnDemand")
    world.gone(UID)
    settle(world)
    assert world.observed.verified == {UID: "first"}
    world.asked(UID)
    assert steps(world) == [("Start", UID)]


def test_a_model_that_works_is_not_unloaded_however_long_ago_it_was_asked() -> None:
    """A long answer is use."""
    world = on_board(replica(serving=IDLE))
    world.asked(UID)
    settle(world)
    world.loaded(UID)
    world.change(now=10_000.0)
    assert steps(world) == []
    world.asked(UID, 0)
    assert world.plan().look_again_at == 10_060.0


def test_a_model_that_is_wanted_while_its_worker_goes_waits_and_is_loaded_again() -> None:
    """The route keeps requests; nothing is lost between two loads."""
    world = on_board(replica(serving=IDLE))
    load(world, UID)
    world.change(now=60.0)
    world.step()
    world.asked(UID)
    assert steps(world) == []
    assert world.conditions(UID)["Loaded"] == ("False", "Loading")
    assert world.plan().served[0].on_demand
    world.gone(UID)
    settle(world)
    assert world.observed.workers[UID].phase == "Starting"


def test_eager_with_an_idle_time_is_loaded_first_and_proves_itself_before_it_sleeps() -> None:
    """Not Ready until the first load; afterwards it serves also while it is out of memory."""
    world = on_board(replica(serving=ServingParameters(idle_unload_seconds=60)))
    assert world.observed.workers[UID].phase == "Starting"
    assert world.conditions(UID)["Ready"] == ("False", "Loading")
    world.loaded(UID)
    assert steps(world) == []
    world.change(now=60.0)
    settle(world)
    world.gone(UID)
    settle(world)
    assert world.conditions(UID)["Ready"] == ("True", "OnDemand")
    assert UID not in world.observed.workers


def test_a_model_that_could_not_be_loaded_is_wanted_for_a_while_and_then_waits_for_the_next_request() -> None:
    """What nobody waits for any more pushes nobody out and is not started again and again."""
    world = two_and_one()
    world.change(available_bytes=0)
    world.asked("uid-c")
    world.asked("uid-c", 0)
    world.change(in_flight={"uid-a": 1, "uid-b": 1}, now=30.0 + WANT_SECONDS - 1)
    assert world.conditions("uid-c")["Loaded"] == ("False", "WaitingForMemory")
    world.change(now=30.0 + WANT_SECONDS)
    assert world.conditions("uid-c")["Loaded"] == ("False", "Unloaded")
    failing = on_board(replica(serving=ON_DEMAND))
    failing.asked(UID)
    settle(failing)
    failing.crashed(UID, reason="LoadFailed")
    failing.asked(UID, 0)
    failing.change(now=WANT_SECONDS)
    assert steps(failing) == [("Unload", UID)]


def test_eager_with_an_idle_time_is_tried_until_it_loads_whatever_clients_say() -> None:
    """It has not proven itself yet; a client that lets it go cannot make a broken model look well."""
    world = on_board(replica(serving=ServingParameters(idle_unload_seconds=60)))
    world.crashed(UID, reason="LoadFailed")
    world.change(now=1000.0, uses={UID: Use(last_at=1.0, unloaded=True)})
    assert steps(world) == []
    assert world.conditions(UID)["Ready"] == ("False", "LoadFailed")


def test_a_client_may_keep_a_model_longer_or_let_it_go_but_not_one_that_is_declared_to_stay() -> None:
    """Ollama's keep_alive; `Eager` without idle time is the operator's word."""
    world = on_board(replica(serving=IDLE), replica("stays"))
    world.loaded("uid-stays")
    load(world, UID)
    world.change(uses={UID: Use(last_at=0.0, keep_seconds=3600.0)}, now=3599.0)
    assert steps(world) == []
    gone = Use(last_at=3599.0, unloaded=True)
    world.change(uses={UID: gone, "uid-stays": gone})
    assert steps(world) == [("Unload", UID)]


def two_and_one(**more: object) -> BoardWorld:
    """Return a board of 1 GiB with two models of 400 MiB loaded on demand, `a` used before `b`, and a third that does not fit too."""
    names = ("a", "b", "c")
    world = on_board(*(replica(name, model=name, serving=ON_DEMAND, memory_bytes=400 * MI, **more) for name in names))
    for moment, uid in ((10.0, "uid-a"), (20.0, "uid-b")):
        world.change(now=moment)
        load(world, uid)
    world.change(now=30.0)
    return world


def test_the_idle_model_that_was_used_longest_ago_makes_room() -> None:
    """One at a time; its route is closed in the moment in which it is told to go."""
    world = two_and_one()
    world.asked("uid-c")
    planned = world.step()
    assert [step.uid for step in planned.steps if isinstance(step, Unload)] == ["uid-a"]
    assert {route.replica.uid for route in planned.served if route.endpoint} == {"uid-b"}
    assert world.conditions("uid-c")["Loaded"] == ("False", "WaitingForMemory")
    assert world.conditions("uid-a")["Ready"] == ("True", "OnDemand")
    assert steps(world) == []
    world.gone("uid-a")
    assert steps(world) == [("Start", "uid-c")]


def test_a_busy_model_never_makes_room_and_the_wait_says_for_whom() -> None:
    """A request in work is not dropped for another's."""
    world = two_and_one()
    world.change(in_flight={"uid-a": 1, "uid-b": 1, "uid-c": 1}, uses={**world.observed.uses, "uid-c": Use(last_at=30.0)})
    assert steps(world) == []
    assert world.conditions("uid-c")["Loaded"] == ("False", "WaitingForMemory")
    waiting = next(route.waiting for route in world.plan().served if route.replica.uid == "uid-c")
    assert waiting == "waits for the 400Mi of c until one of the models that are in use is idle: default/a, default/b"
    world.asked("uid-b", 0)
    assert steps(world) == [("Unload", "uid-b")]


def test_of_models_that_are_wanted_in_one_moment_only_those_start_that_fit_together() -> None:
    """Two requests in one pass of the loop."""
    world = on_board(*(replica(name, model=name, serving=ON_DEMAND, memory_bytes=600 * MI) for name in ("a", "b")))
    world.asked("uid-a")
    world.asked("uid-b")
    assert steps(world) == [("Start", "uid-a")]
    assert world.conditions("uid-b")["Loaded"] == ("False", "WaitingForMemory")


def test_a_request_waits_for_a_worker_on_its_way_out_too() -> None:
    """It is only a question of seconds; the replica serves."""
    world = on_board(replica("old", memory_bytes=700 * MI), replica("b", model="b", serving=ON_DEMAND, memory_bytes=700 * MI))
    world.loaded("uid-old")
    world.replicas = world.replicas[1:]
    world.asked("uid-old")
    world.step()
    world.asked("uid-b")
    assert steps(world) == []
    assert world.conditions("uid-b")["Loaded"] == ("False", "WaitingForPredecessor")
    assert next(one for one in world.plan().served if one.replica.uid == "uid-b").on_demand


def test_a_model_that_is_to_stay_never_makes_room() -> None:
    """What is Eager is taken at the controller's word."""
    world = on_board(replica("a", memory_bytes=700 * MI), replica("b", model="b", serving=ON_DEMAND, memory_bytes=400 * MI))
    world.loaded("uid-a")
    world.asked("uid-b")
    assert steps(world) == [("Start", "uid-b")]
    world.change(available_bytes=399 * MI)
    assert steps(world) == []
    assert world.conditions("uid-b")["Loaded"] == ("False", "WaitingForMemory")


def test_less_available_than_reserved_waits_and_says_how_much_there_is() -> None:
    """Other programs take memory too: the lower of reservation and machine decides."""
    world = on_board(replica(memory_bytes=600 * MI))
    world.gone(UID)
    settle(world)
    world.gone(UID)
    world.change(available_bytes=599 * MI, verified={UID: "first"})
    assert steps(world) == []
    assert world.conditions(UID)["Ready"] == ("False", "WaitingForMemory")
    assert world.plan().served[0].waiting == (
        "waits for the 600Mi of smollm2; about 512Mi are available on the machine, and nothing on it may be unloaded"
    )
    world.change(available_bytes=600 * MI)
    assert steps(world) == [("Start", UID)]


def test_memory_that_a_load_has_not_taken_yet_is_not_given_away_twice() -> None:
    """The machine shows it as available until the weights are read."""
    world = on_board(replica("a", memory_bytes=400 * MI), replica("b", model="b", memory_bytes=400 * MI))
    for uid in ("uid-a", "uid-b"):
        world.gone(uid)
    world.change(available_bytes=700 * MI, verified={"uid-a": "first", "uid-b": "first"})
    assert steps(world) == [("Start", "uid-a")]
    world.step()
    assert steps(world) == []
    world.loaded("uid-a")
    assert steps(world) == [("Start", "uid-b")]
