"""The board's planner, one sentence per truth."""

import msgspec

from agent.failures import facts
from agent.failures.modes import failure
from agent.planning.plan import FETCHES_MAX, SETTLE_SECONDS
from agent.planning.values import CancelFetch, Fetch, InstalledLibrary, Start, Stop, Unload, Verify
from rkfleet.assignment import AssignedReplica, ServingParameters
from rkfleet.benchmarks import load_table
from tests.support.assignments import digest_of, replica
from tests.support.board_world import ABILITIES, BoardWorld

UID = "uid-chat-1"


def kinds(world: BoardWorld) -> list[tuple[str, str]]:
    """Return the planned steps as (kind, uid)."""
    found = []
    for step in world.plan().steps:
        match step:
            case Fetch():
                found.append(("Fetch", step.replica.uid))
            case Start():
                found.append(("Start", step.spec.uid))
            case CancelFetch() | Verify() | Stop() | Unload():
                found.append((type(step).__name__, step.uid))
    return found


def serving(name: str = "chat-1", **changes: object) -> BoardWorld:
    world = BoardWorld(replica(name, **changes))
    world.serve(f"uid-{name}")
    return world


def test_a_serving_replica_is_fetched_verified_started_and_then_left_alone() -> None:
    """Each step waits for what it needs, and conditions say where it stands."""
    world = BoardWorld(replica())
    assert kinds(world) == [("Fetch", UID)]
    world.step()
    assert kinds(world) == []
    assert world.conditions(UID) == {
        "ArtifactAvailable": ("False", "Fetching"),
        "Loaded": ("False", "Fetching"),
        "Ready": ("False", "Fetching"),
    }
    world.fetched(UID)
    assert kinds(world) == [("Verify", UID)]
    assert world.conditions(UID)["ArtifactAvailable"] == ("True", "Fetched")
    world.step()
    assert kinds(world) == []
    world.verified(UID)
    assert kinds(world) == [("Start", UID)]
    world.step()
    assert kinds(world) == []
    assert world.conditions(UID)["Ready"] == ("False", "Loading")
    world.loaded(UID)
    assert kinds(world) == []
    assert world.conditions(UID) == {
        "ArtifactAvailable": ("True", "Fetched"),
        "Loaded": ("True", "ModelLoaded"),
        "Ready": ("True", "Serving"),
    }
    (state,) = world.plan().replicas
    assert state.endpoint == "https://127.0.0.1:7490/replicas/default/chat-1"
    assert (state.progress.fetched_bytes, state.progress.total_bytes) == (100, 100) if state.progress else False
    (route,) = world.plan().served
    assert (route.endpoint, route.draining) == (f"http://127.0.0.1:1/{UID}", False)


def test_a_staged_replica_has_its_bytes_and_no_worker() -> None:
    """Ready is False with reason Staged, and clients cannot ask for it."""
    world = BoardWorld(replica(activation="Staged"))
    world.step()
    world.fetched(UID)
    planned = world.step()
    assert planned.steps == ()
    assert world.conditions(UID) == {
        "ArtifactAvailable": ("True", "Fetched"),
        "Loaded": ("False", "Staged"),
        "Ready": ("False", "Staged"),
    }
    assert planned.served == ()
    assert planned.holders == {UID: (digest_of("smollm2"),)}


def test_a_draining_replica_finishes_what_runs_and_then_stops() -> None:
    """New requests are refused, running ones end, the worker goes, Drained turns True."""
    world = serving()
    world.change(in_flight={UID: 2})
    world.replicas = (replica(activation="Draining"),)
    assert kinds(world) == []
    assert world.plan().served[0].draining
    assert world.conditions(UID)["Drained"] == ("False", "Draining")
    assert world.conditions(UID)["Loaded"] == ("True", "ModelLoaded")
    world.step()
    world.change(in_flight={}, now=3.0)
    assert kinds(world) == [("Stop", UID)]
    world.step()
    assert kinds(world) == []
    assert world.conditions(UID)["Drained"] == ("False", "Draining")
    world.gone(UID)
    world.step()
    assert world.conditions(UID) == {
        "ArtifactAvailable": ("True", "Fetched"),
        "Loaded": ("False", "WorkerStopped"),
        "Drained": ("True", "DrainComplete"),
        "Ready": ("False", "Draining"),
    }
    assert world.plan().served == ()


def test_an_idle_worker_is_stopped_only_after_requests_on_their_way_in_were_counted() -> None:
    """A request that was let in just before is not lost."""
    world = serving()
    world.replicas = (replica(activation="Draining"),)
    assert world.step().look_again_at == SETTLE_SECONDS
    assert kinds(world) == []
    world.change(now=SETTLE_SECONDS)
    assert kinds(world) == [("Stop", UID)]


def test_requests_that_outlast_the_drain_time_are_cut_and_that_is_said() -> None:
    """drainSeconds counts from the moment at which the board learned it."""
    world = serving()
    world.change(in_flight={UID: 1}, now=100.0)
    world.replicas = (replica(activation="Draining"),)
    assert world.step().look_again_at == 100.0 + SETTLE_SECONDS
    world.change(now=129.0)
    assert kinds(world) == []
    assert world.step().look_again_at == 130.0
    world.change(now=130.0)
    assert kinds(world) == [("Stop", UID)]
    world.step()
    world.gone(UID)
    world.step()
    assert world.conditions(UID)["Drained"] == ("True", "DrainDeadlineReached")


def test_a_draining_replica_that_never_ran_here_is_drained() -> None:
    """An agent that restarts in the middle of a drain loads nothing."""
    world = BoardWorld(replica(activation="Draining"))
    assert kinds(world) == []
    assert world.conditions(UID)["Drained"] == ("True", "DrainComplete")


def test_a_removed_replica_drains_by_its_own_drain_time() -> None:
    """Its worker stops with grace, then its bytes are released."""
    world = serving(serving=ServingParameters(drain_seconds=5))
    world.change(in_flight={UID: 1})
    world.replicas = ()
    planned = world.step()
    assert planned.steps == ()
    assert planned.holders == {UID: (digest_of("smollm2"),)}
    assert planned.served[0].draining
    world.change(now=5.0)
    assert kinds(world) == [("Stop", UID)]
    world.step()
    world.gone(UID)
    planned = world.step()
    assert (planned.steps, planned.holders, planned.leaving, planned.served) == ((), {}, {}, ())


def test_an_in_place_successor_waits_until_the_worker_before_it_is_gone() -> None:
    """It is fetched and verified meanwhile, so that the pause is only the load."""
    world = serving()
    after = replica("chat-2", model="smollm3", replaces=UID)
    world.replicas = (replica(activation="Draining"), after)
    world.change(in_flight={UID: 1})
    world.step()
    world.change(now=1.0)
    world.fetched("uid-chat-2")
    world.step()
    world.verified("uid-chat-2")
    assert kinds(world) == []
    assert world.conditions("uid-chat-2")["Loaded"] == ("False", "WaitingForPredecessor")
    world.change(in_flight={})
    world.step()
    assert kinds(world) == []
    world.gone(UID)
    assert kinds(world) == [("Start", "uid-chat-2")]


def test_a_start_waits_for_memory_that_a_leaving_worker_still_holds() -> None:
    """Without anything leaving, the controller's word is taken."""
    world = serving(memory_bytes=800 << 20)
    world.change(in_flight={UID: 1})
    other = replica("other", memory_bytes=800 << 20)
    world.replicas = (other,)
    world.step()
    world.verified("uid-other")
    assert kinds(world) == []
    assert world.conditions("uid-other")["Loaded"] == ("False", "WaitingForPredecessor")
    world.gone(UID)
    assert kinds(world) == [("Start", "uid-other")]


def test_of_replicas_that_could_start_together_only_those_start_that_fit_beside_a_leaving_worker() -> None:
    """Each alone would fit: what the same plan starts counts as memory in use."""
    world = serving(memory_bytes=500 << 20)
    world.change(in_flight={UID: 1})
    world.replicas = (replica("one", memory_bytes=300 << 20), replica("two", memory_bytes=300 << 20))
    world.step()
    world.verified("uid-one")
    world.verified("uid-two")
    assert kinds(world) == [("Start", "uid-one")]
    assert world.conditions("uid-two")["Loaded"] == ("False", "WaitingForPredecessor")
    world.step()
    world.gone(UID)
    assert ("Start", "uid-two") in kinds(world)


def test_a_runtime_that_the_board_lacks_is_named() -> None:
    """With what the board has instead."""
    world = BoardWorld(replica(runtime="rkllm"))
    world.step()
    world.fetched(UID)
    assert kinds(world) == []
    (state,) = world.plan().replicas
    loaded = next(one for one in state.conditions if one.type == "Loaded")
    assert (loaded.status, loaded.reason) == ("False", "RuntimeMissing")
    assert loaded.message == "variant cpu-q4 needs runtime rkllm, this board has llamacpp 2026.10. Try: rkfleet get boards -o yaml"


def test_a_failed_fetch_is_said_and_tried_again_when_it_is_due() -> None:
    """The sentence of the failure is the condition's."""
    world = BoardWorld(replica())
    world.step()
    world.fetch_failed(UID, "FetchFailed", retry_after=5.0)
    assert kinds(world) == []
    assert world.plan().look_again_at == 5.0
    (state,) = world.plan().replicas
    assert state.conditions[0].message == "FetchFailed happened. Try: rkfleet describe replica chat-1 -n default"
    world.change(now=5.0)
    assert kinds(world) == [("Fetch", UID)]


def test_a_file_that_fails_verification_is_fetched_again_before_the_load() -> None:
    """One flipped byte on disk is found, said and mended."""
    world = BoardWorld(replica())
    world.step()
    world.fetched(UID)
    world.step()
    world.mismatched(UID, digest_of("smollm2"))
    assert kinds(world) == [("Fetch", UID)]
    assert world.conditions(UID)["ArtifactAvailable"] == ("False", "DigestMismatch")
    world.step()
    world.fetched(UID)
    assert kinds(world) == [("Verify", UID)]


def test_a_known_failure_is_the_reason_and_its_remedy_the_advice() -> None:
    """Who describes the replica reads what to change."""
    world = serving()
    world.crashed(UID, reason="LoadFailed")
    world.worker(UID, failure=failure(11, "too much context", "set spec.template.serving.contextTokens to 4096 or less"))
    (state,) = world.plan().replicas
    loaded = next(one for one in state.conditions if one.type == "Loaded")
    assert (loaded.status, loaded.reason) == ("False", "ContextAboveModelLimit")
    assert loaded.message.startswith("the worker ended (LoadFailed: signal 11)")
    assert loaded.message.endswith("Try: set spec.template.serving.contextTokens to 4096 or less")


def test_a_process_that_cannot_be_ended_is_named() -> None:
    """The place that its replica should have is taken by something that only a person can remove."""
    world = serving()
    world.worker(UID, phase="Stopping", endpoint="", failure=facts.model_not_unloaded(77, 1 << 30, 12.0))
    (state,) = world.plan().replicas
    loaded = next(one for one in state.conditions if one.type == "Loaded")
    assert loaded.reason == "ModelNotUnloaded"
    assert loaded.message.endswith("Try: on the board: kill -9 77")


def test_a_variant_for_rknn_alone_is_refused_with_the_way_out() -> None:
    """An encoder is a file of a variant for rkllm."""
    world = BoardWorld(msgspec.structs.replace(replica(), runtime="rknn"))
    world.step()
    world.fetched(UID)
    (state,) = world.plan().replicas
    loaded = next(one for one in state.conditions if one.type == "Loaded")
    assert loaded.reason == "RuntimeMissing"
    assert "only as a file with role encoder" in loaded.message


def test_every_load_after_an_exit_has_its_own_verification() -> None:
    """A worker that crashes on spoiled bytes does not crash on them for ever."""
    world = serving()
    world.crashed(UID, restarts=0)
    assert world.conditions(UID)["Loaded"] == ("False", "CrashLoopBackOff")
    assert kinds(world) == [("Verify", UID)]
    world.step()
    world.verified(UID)
    assert kinds(world) == []
    world.crashed(UID, restarts=1, reason="LoadFailed")
    assert world.conditions(UID)["Loaded"] == ("False", "LoadFailed")
    world.step()
    world.mismatched(UID, digest_of("smollm2"))
    assert kinds(world) == [("Stop", UID), ("Fetch", UID)]
    world.step()
    world.gone(UID)
    world.fetched(UID)
    assert kinds(world) == [("Verify", UID)]


def test_a_worker_that_was_started_on_spoiled_bytes_meanwhile_is_stopped() -> None:
    """The supervisor does not wait for the verification; the planner makes up for it."""
    world = serving()
    world.crashed(UID)
    world.step()
    world.loaded(UID)
    world.mismatched(UID, digest_of("smollm2"))
    assert kinds(world) == [("Stop", UID), ("Fetch", UID)]


def test_a_ready_worker_whose_file_was_removed_goes_on_and_the_file_comes_back() -> None:
    """Its bytes are in memory; only the next load needs the file."""
    world = serving()
    world.change(files={})
    assert kinds(world) == [("Fetch", UID)]
    assert world.conditions(UID)["Ready"] == ("True", "Serving")
    assert world.conditions(UID)["ArtifactAvailable"] == ("False", "Fetching")


def test_only_load_parameters_restart_a_worker() -> None:
    """Queue length, longest answer, name and drain time are the agent's own; the context is the library's."""
    world = serving()
    agents = ServingParameters(drain_seconds=1, max_queued=1, max_output_tokens=9)
    world.replicas = (replica(serving=agents, served_model_name="other", generation=2, memory_bytes=5),)
    assert kinds(world) == []
    assert world.plan().replicas[0].observed_generation == 2
    world.replicas = (replica(serving=ServingParameters(context_tokens=2048)),)
    assert kinds(world) == [("Start", UID)]
    assert world.plan().served[0].endpoint == ""


def test_threads_are_shared_by_what_will_be_loaded_together() -> None:
    """Staged and draining replicas and those whose place is taken do not count."""
    two = (replica("a"), replica("b"), replica("c", activation="Staged"), replica("d", activation="Draining"))
    assert threads_of(two, "uid-a") == 1
    assert threads_of((replica("a"),), "uid-a") == 3
    assert threads_of((replica("a"), replica("b", replaces="uid-a")), "uid-a") == 3
    assert threads_of((replica("a", serving=ServingParameters(threads=2)),), "uid-a") == 2


def threads_of(replicas: tuple[AssignedReplica, ...], uid: str) -> int:
    world = BoardWorld(*replicas, abilities=msgspec.structs.replace(ABILITIES, cores=4))
    world.change(files={digest_of("smollm2"): "/cache/x"}, verified={uid: "first"})
    return next(step.spec.threads for step in world.plan().steps if isinstance(step, Start) and step.spec.uid == uid)


def test_fetches_are_few_and_what_serves_comes_first() -> None:
    """Two replicas of one model fetch its file once."""
    names = [f"staged-{number}" for number in range(FETCHES_MAX + 1)]
    world = BoardWorld(*(replica(name, model=name, activation="Staged") for name in names), replica("z", model="z"))
    assert kinds(world) == [("Fetch", "uid-z")]
    world = BoardWorld(replica("a"), replica("b"))
    assert kinds(world) == [("Fetch", "uid-a")]
    world.step()
    world.fetched("uid-a")
    assert kinds(world) == [("Verify", "uid-a"), ("Verify", "uid-b")]


def test_what_should_serve_takes_the_link_from_what_is_only_staged() -> None:
    """What was fetched stays, and goes on when the link is free."""
    staged = replica("a", model="a", activation="Staged")
    world = BoardWorld(staged)
    world.step()
    world.replicas = (staged, replica("b", model="b"))
    assert kinds(world) == [("CancelFetch", "uid-a")]
    world.step()
    assert kinds(world) == [("Fetch", "uid-b")]
    world.step()
    assert kinds(world) == []
    world.fetched("uid-b")
    assert ("Fetch", "uid-a") in kinds(world)


def test_a_staged_fetch_of_the_same_bytes_goes_on() -> None:
    """What should serve is served by it."""
    world = BoardWorld(replica("a", activation="Staged"))
    world.step()
    world.replicas = (*world.replicas, replica("b"))
    assert kinds(world) == []


def test_a_fetch_that_nobody_needs_is_cancelled_and_blocks_its_bytes_until_it_ended() -> None:
    """Two writers never share a file."""
    world = BoardWorld(replica("a"))
    world.step()
    world.replicas = (replica("b"),)
    assert kinds(world) == [("CancelFetch", "uid-a")]
    world.step()
    assert kinds(world) == [("Fetch", "uid-b")]


def test_a_worker_that_nobody_knows_is_stopped() -> None:
    """Nothing runs that no assignment ever asked for."""
    world = serving()
    world.change(known={})
    world.replicas = ()
    assert kinds(world) == [("Stop", UID)]


def test_a_replica_that_serves_again_while_its_worker_stops_waits_and_then_starts() -> None:
    """A rollback in the middle of a drain."""
    world = serving()
    world.replicas = (replica(activation="Draining"),)
    world.step()
    world.change(now=1.0)
    world.step()
    world.replicas = (replica(),)
    assert kinds(world) == []
    assert world.conditions(UID)["Loaded"] == ("False", "WorkerStopped")
    world.gone(UID)
    assert kinds(world) == [("Verify", UID)]
    assert world.plan().leaving == {}


def test_every_condition_that_is_not_as_wanted_has_a_sentence_and_a_command() -> None:
    """Nobody is left with a reason alone."""
    world = serving()
    world.replicas = (
        replica(activation="Draining"),
        replica("b", model="b"),
        replica("c", activation="Staged"),
        replica("d", replaces=UID),
        replica("e", runtime="rknn"),
    )
    for state in world.plan().replicas:
        for one in state.conditions:
            if one.status == "False":
                assert ". Try: rkfleet " in one.message, one


# ---- simulated runtimes

SIMULATED = msgspec.structs.replace(
    ABILITIES,
    libraries={"rkllm": (InstalledLibrary(version="1.1.4"),)},
    soc="rk3588",
    tables={"rkllm": load_table()},
    memory_bytes=15 << 30,
)
KNOWN = {"runtime": "rkllm", "dtype": "w8a8", "reference_model": "Qwen2-1.5B"}


def test_a_simulated_runtime_starts_a_replica_whose_row_the_table_has() -> None:
    """The row is asked for by reference, dtype and the board's own chip, and travels in the spec."""
    world = BoardWorld(replica(**KNOWN, soc="any"), abilities=SIMULATED)
    world.step()
    world.fetched(UID)
    world.step()
    world.verified(UID)
    (start,) = world.plan().steps
    assert isinstance(start, Start)
    assert (start.spec.dtype, start.spec.reference_model, start.spec.reference_sdk_version) == ("w8a8", "Qwen2-1.5B", "")


def test_a_simulated_runtime_without_a_row_says_which_rows_there_are() -> None:
    """Nothing is started again and again; the bytes are kept, and a reference that is put right is enough."""
    world = BoardWorld(replica(**{**KNOWN, "dtype": "w4a16"}), abilities=SIMULATED)
    world.step()
    world.fetched(UID)
    assert kinds(world) == []
    assert world.conditions(UID) == {
        "ArtifactAvailable": ("True", "Fetched"),
        "Loaded": ("False", "NoReferenceRow"),
        "Ready": ("False", "NoReferenceRow"),
    }
    (state,) = world.plan().replicas
    message = next(one.message for one in state.conditions if one.type == "Loaded")
    assert "no row for 'Qwen2-1.5B' w4a16 on rk3588: of this model it has" in message
    assert message.endswith("Try: rkfleet bench table --soc rk3588")
    world.replicas = (replica(**KNOWN),)
    assert kinds(world) == [("Verify", UID)]


def test_a_worker_whose_reference_lost_its_row_is_stopped() -> None:
    """Its speed would be nobody's any more."""
    world = BoardWorld(replica(**KNOWN), abilities=SIMULATED)
    world.serve(UID)
    assert kinds(world) == []
    world.replicas = (replica(**{**KNOWN, "reference_model": ""}),)
    assert kinds(world) == [("Stop", UID)]
    assert world.conditions(UID)["Loaded"] == ("False", "NoReferenceRow")


def test_only_a_simulated_worker_is_replaced_when_its_reference_changes() -> None:
    """To a real runtime the reference is a remark; to a simulated one it is what the worker is made of."""
    changed = {"reference_model": "Qwen2-0.5B"}
    simulated = BoardWorld(replica(**KNOWN), abilities=SIMULATED)
    simulated.serve(UID)
    simulated.replicas = (replica(**{**KNOWN, **changed}),)
    assert kinds(simulated) == [("Start", UID)]
    real = serving()
    real.replicas = (replica(**changed),)
    assert kinds(real) == []


def test_a_failed_fetch_is_forgotten_when_another_replica_brought_the_file() -> None:
    """Two replicas of one model: nothing of the first is missing any more, so its full disk is no news any more."""
    world = BoardWorld(replica("chat-1"), replica("chat-2"))
    world.step()
    world.fetch_failed(UID, "DiskFull", retry_after=60.0)
    assert kinds(world) == [("Fetch", "uid-chat-2")]
    world.step()
    world.fetched("uid-chat-2")
    assert ("CancelFetch", UID) in kinds(world)
    world.step()
    assert UID not in world.observed.fetches
    assert ("CancelFetch", UID) not in kinds(world)
