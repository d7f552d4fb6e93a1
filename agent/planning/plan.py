"""The board's planner: assigned replicas and what is seen of them become ordered steps and a state for each. Pure.

Each replica has one *standing*: the reason why it does not answer yet (or that it does), a sentence with a command, and the steps that
bring it further. Conditions are read off the standing, so that what is said and what is done cannot differ.

Order of a replica that should serve: fetch its files, verify them (again: time has passed since they were fetched), wait until the one
it replaces is gone and there is room (`room.py`), start. What is loaded on demand waits for a request instead (`residency.py`). A worker
on its way out finishes what runs for `drainSeconds`. Taking the plan's steps and planning again gives no step until something new is seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from agent.planning import conditions as say
from agent.planning import residency, specs
from agent.planning.domains import Packing
from agent.planning.effects import without_effect
from agent.planning.room import Room, pack_domains
from agent.planning.values import (
    Abilities,
    CancelFetch,
    Fetch,
    InstalledLibrary,
    Leaving,
    Observed,
    Plan,
    Served,
    Start,
    Step,
    Stop,
    Unload,
    Verify,
)
from agent.workers.base import WorkerSpec, WorkerState
from rkfleet.assignment import AssignedFile, AssignedReplica, Assignment
from rkfleet.kinds.replica import Progress
from rkfleet.report import ReplicaState

__all__ = ["load_token", "plan"]

# One fetch fills a board's link and disk; a second would only make both later.
FETCHES_MAX: Final = 1

# A worker on its way out is left alone this long although nothing seems to run: a request may have been let in and not counted yet.
SETTLE_SECONDS: Final = 0.25


class _Scene(msgspec.Struct, frozen=True):
    """All that a decision about one replica may look at."""

    assigned: Mapping[str, AssignedReplica]
    abilities: Abilities
    observed: Observed
    leaving: Mapping[str, Leaving]
    packing: Packing
    room: Room


def plan(assignment: Assignment, abilities: Abilities, observed: Observed) -> Plan:
    """Return what follows from the assignment and what is seen."""
    assigned = {replica.uid: replica for replica in assignment.replicas}
    leaving = _leaving(assigned, observed)
    packing = pack_domains(assigned, abilities, observed)
    scene = _Scene(assigned, abilities, observed, leaving, packing, Room(assigned, abilities, observed, leaving))
    standings: dict[str, say.Standing] = {}
    for replica in sorted(assignment.replicas, key=lambda each: (each.namespace, each.name, each.uid)):
        standing = standings[replica.uid] = _standing(replica, scene)
        scene = msgspec.structs.replace(scene, room=_decided(scene.room, replica, standing))
    # One that makes room for another is closed to clients in the same moment in which it is told to go.
    for uid in scene.room.unloading:
        if not any(isinstance(step, Unload) and step.uid == uid for step in standings[uid].steps):
            standings[uid] = say.unloaded(assigned[uid], ())
    stops = [Stop(uid=uid) for uid in sorted(observed.workers) if _should_stop(uid, scene)]
    return Plan(
        steps=(*_cancellations(scene, standings), *stops, *_steps_in_order(assignment, standings, observed)),
        replicas=tuple(_state(replica, standings[replica.uid], scene) for replica in assignment.replicas),
        served=_served(assignment, standings, scene),
        holders=_holders(assignment, scene),
        leaving=scene.leaving,
        caches=_caches(scene),
        look_again_at=_look_again_at(scene),
    )


def _decided(room: Room, replica: AssignedReplica, standing: say.Standing) -> Room:
    """Return the room that is left for those that come after this one."""
    unloading = room.unloading | {step.uid for step in standing.steps if isinstance(step, Unload)}
    starts = replica.uid not in room.observed.workers and any(isinstance(step, Start) for step in standing.steps)
    return msgspec.structs.replace(room, starting=(*room.starting, replica) if starts else room.starting, unloading=unloading)


def load_token(worker: WorkerState | None) -> str:
    """Return the name of the next load of a worker: it changes with every exit, so that each load has its own verification."""
    if worker is None or worker.last_exit is None:
        return "first"
    return f"after exit {worker.restarts} at {worker.last_exit.time}"


# ---- Replicas that leave -------------------------------------------------------------------------------------------------------


def _leaving(assigned: Mapping[str, AssignedReplica], observed: Observed) -> Mapping[str, Leaving]:
    """Return every replica that has a worker and should have none, and every drained one for as long as it is assigned."""
    leaving: dict[str, Leaving] = {}
    for uid in sorted({*observed.workers, *observed.leaving}):
        replica = assigned.get(uid)
        before = observed.leaving.get(uid)
        last = replica or observed.known.get(uid)
        stays = replica is not None and replica.activation == "Serving"
        remembered = uid in observed.workers or (replica is not None and replica.activation == "Draining")
        if stays or not remembered or last is None:
            continue
        one = msgspec.structs.replace(before, replica=last) if before else Leaving(replica=last, since=observed.now)
        leaving[uid] = msgspec.structs.replace(one, cut=True) if _is_late(one, observed) else one
    return leaving


def _drain_ends_at(one: Leaving) -> float:
    return one.since + one.replica.serving.drain_seconds


def _is_late(one: Leaving, observed: Observed) -> bool:
    """Whether requests still run at the end of the drain time."""
    worker = observed.workers.get(one.replica.uid)
    runs = worker is not None and worker.phase == "Ready" and observed.in_flight.get(one.replica.uid, 0) > 0
    return runs and observed.now >= _drain_ends_at(one)


def _should_stop(uid: str, scene: _Scene) -> bool:
    worker = scene.observed.workers[uid]
    if worker.phase == "Stopping":
        return False
    one = scene.leaving.get(uid)
    if one is None:
        # A worker without a replica that is known was started by nobody.
        return uid not in scene.assigned
    # Only a loaded worker can have requests to finish.
    idle = not scene.observed.in_flight.get(uid) and scene.observed.now >= one.since + SETTLE_SECONDS
    return one.cut or worker.phase != "Ready" or idle


# ---- Steps ---------------------------------------------------------------------------------------------------------------------


def _cancellations(scene: _Scene, standings: Mapping[str, say.Standing]) -> list[Step]:
    """Return the fetches to give up: nobody needs them, or they only stage while something that should serve waits for the link.

    A fetch that failed is not needed either once its files are here, because another replica has the same ones.
    """
    running = {uid: fetch for uid, fetch in scene.observed.fetches.items() if not fetch.reason}
    on_their_way = {digest for fetch in running.values() for digest in fetch.digests}
    urgent = any(
        isinstance(step, Fetch) and step.replica.activation == "Serving" and not on_their_way & {file.digest for file in step.files}
        for standing in standings.values()
        for step in standing.steps
    )
    cancelled: list[Step] = []
    for uid in sorted(scene.observed.fetches):
        replica = scene.assigned.get(uid)
        needless = replica is None or replica.activation == "Draining" or (uid not in running and not _missing(replica, scene.observed))
        if needless or (urgent and uid in running and replica is not None and replica.activation == "Staged"):
            cancelled.append(CancelFetch(uid=uid))
    return cancelled


def _steps_in_order(assignment: Assignment, standings: Mapping[str, say.Standing], observed: Observed) -> list[Step]:
    """Return the steps of all replicas, what serves before what is only staged, with no more fetches than may run together."""
    running = [fetch for fetch in observed.fetches.values() if not fetch.reason]
    count = len(running)
    on_their_way = {digest for fetch in running for digest in fetch.digests}
    steps: list[Step] = []
    for replica in sorted(assignment.replicas, key=lambda each: (each.activation == "Staged", each.namespace, each.name, each.uid)):
        for step in standings[replica.uid].steps:
            if isinstance(step, Fetch):
                digests = {file.digest for file in step.files}
                if count >= FETCHES_MAX or digests & on_their_way:
                    continue  # Its turn comes; two fetches of one file would write the same bytes.
                count += 1
                on_their_way |= digests
            steps.append(step)
    return steps


def _standing(replica: AssignedReplica, scene: _Scene) -> say.Standing:
    observed = scene.observed
    worker = observed.workers.get(replica.uid)
    if replica.activation == "Draining":
        one = scene.leaving.get(replica.uid)
        return say.draining(replica, worker, cut=one.cut if one else False)
    missing = _missing(replica, observed)
    fetch = _fetch_steps(replica, missing, observed)
    if replica.activation == "Serving" and not missing and (why := _why_no_row(replica, scene.abilities)):
        stop = (Stop(uid=replica.uid),) if worker is not None and worker.phase != "Stopping" else ()
        return say.no_reference_row(replica, scene.abilities.soc, why, stop)
    if worker is not None:
        if replica.activation == "Staged":
            return say.stopping(replica, worker, fetch)
        return _standing_with_worker(replica, worker, missing, fetch, scene)
    if missing:
        return say.fetching(replica, missing, observed, fetch)
    if replica.activation == "Staged":
        return say.staged(replica)
    return _standing_before_start(replica, scene)


def _why_no_row(replica: AssignedReplica, abilities: Abilities) -> str:
    """Return why a simulated runtime cannot run the replica; empty if it can, and for a runtime that is not simulated."""
    table = abilities.tables.get(replica.runtime)
    words = (replica.reference_model, replica.dtype, abilities.soc, replica.reference_sdk_version)
    return table.why_missing(*words) if table is not None and table.find(*words) is None else ""


def _standing_with_worker(
    replica: AssignedReplica, worker: WorkerState, missing: tuple[AssignedFile, ...], fetch: tuple[Step, ...], scene: _Scene
) -> say.Standing:
    """A worker is there: leave it alone unless its key has changed, nobody needs it, or the bytes that it loads are bad."""
    observed = scene.observed
    on_demand = residency.loads_on_demand(replica, observed.uses.get(replica.uid))
    if worker.phase == "Stopping":
        if not on_demand or missing or worker.failure is not None:
            return say.stopping(replica, worker, fetch)
        return say.unloaded(replica, ()) if _is_asleep(replica, scene) else say.loading(replica, (), on_demand=True)
    if missing and (worker.phase == "BackOff" or any(file.digest in observed.mismatched for file in missing)):
        return msgspec.structs.replace(say.fetching(replica, missing, observed, ()), steps=(Stop(uid=replica.uid), *fetch))
    # One that loads was wanted; it is idle only once it is loaded, or has failed.
    if worker.phase in {"Ready", "BackOff"} and _is_asleep(replica, scene):
        return say.unloaded(replica, (Unload(uid=replica.uid),))
    library = specs.choose_library(replica, scene.abilities)
    if library is not None and worker.key != specs.key_of(replica, library, scene.abilities) and not missing:
        return _start(replica, library, scene, on_demand=on_demand)
    if worker.phase == "BackOff":
        return say.back_off(replica, worker, _verify_steps(replica, worker, observed))
    if worker.phase == "Ready":
        return say.ready(replica, fetch, note=without_effect(replica, specs.npu_generation(replica, scene.abilities)))
    return say.loading(replica, fetch, on_demand=on_demand)


def _standing_before_start(replica: AssignedReplica, scene: _Scene) -> say.Standing:
    """All files are there and no worker is."""
    observed = scene.observed
    library = specs.choose_library(replica, scene.abilities)
    if library is None:
        return say.runtime_missing(replica, scene.abilities)
    # Verified while it waits, so that the pause between two workers is only the load.
    verify = _verify_steps(replica, None, observed)
    if _is_asleep(replica, scene):
        return say.unloaded(replica, verify)
    on_demand = residency.loads_on_demand(replica, observed.uses.get(replica.uid))
    if replica.replaces and replica.replaces in observed.workers:
        before = scene.assigned.get(replica.replaces) or observed.known.get(replica.replaces)
        return say.waiting_for_predecessor(replica, before, verify, on_demand=on_demand)
    if (waits := scene.room.refuse(replica, verify)) is not None:
        return waits
    if observed.verified.get(replica.uid) != load_token(None):
        return say.loading(replica, verify, on_demand=on_demand)
    return _start(replica, library, scene, on_demand=on_demand)


def _start(replica: AssignedReplica, library: InstalledLibrary, scene: _Scene, *, on_demand: bool) -> say.Standing:
    """Start a worker, or say why the NPU has no place for it."""
    if (why := scene.packing.refused.get(replica.uid)) is not None:
        return say.no_npu_domain(replica, why, ())
    return say.loading(replica, (Start(spec=_spec(replica, library, scene)),), on_demand=on_demand)


def _is_asleep(replica: AssignedReplica, scene: _Scene) -> bool:
    """Whether the model should be out of memory until somebody asks for it."""
    observed, uid = scene.observed, replica.uid
    worker = observed.workers.get(uid)
    loaded_at = worker.ready_at if worker is not None else None
    return residency.asleep(replica, observed.uses.get(uid), loaded_at, in_flight=observed.in_flight.get(uid, 0), now=observed.now)


def _verify_steps(replica: AssignedReplica, worker: WorkerState | None, observed: Observed) -> tuple[Step, ...]:
    token = load_token(worker)
    if replica.uid in observed.verifying or observed.verified.get(replica.uid) == token:
        return ()
    return (Verify(uid=replica.uid, digests=tuple(sorted({file.digest for file in replica.files})), token=token),)


def _fetch_steps(replica: AssignedReplica, missing: tuple[AssignedFile, ...], observed: Observed) -> tuple[Step, ...]:
    fetch = observed.fetches.get(replica.uid)
    if not missing or (fetch is not None and (not fetch.reason or observed.now < fetch.retry_at)):
        return ()
    return (Fetch(replica=replica, files=missing),)


def _missing(replica: AssignedReplica, observed: Observed) -> tuple[AssignedFile, ...]:
    return tuple({file.digest: file for file in replica.files if file.digest not in observed.files}.values())


def _spec(replica: AssignedReplica, library: InstalledLibrary, scene: _Scene) -> WorkerSpec:
    span = scene.packing.spans.get(replica.uid)
    return specs.spec_of(
        replica,
        library,
        assigned=scene.assigned,
        abilities=scene.abilities,
        paths=scene.observed.files,
        domain=span.first if span is not None else 0,
    )


# ---- What is said --------------------------------------------------------------------------------------------------------------


def _state(replica: AssignedReplica, standing: say.Standing, scene: _Scene) -> ReplicaState:
    observed = scene.observed
    worker = observed.workers.get(replica.uid)
    fetch = observed.fetches.get(replica.uid)
    sizes = {file.digest: file.size_bytes for file in replica.files}
    total = sum(sizes.values())
    there = sum(size for digest, size in sizes.items() if digest in observed.files)
    under_way = fetch.fetched_bytes if fetch else 0
    url = scene.abilities.serving_url
    return ReplicaState(
        namespace=replica.namespace,
        name=replica.name,
        uid=replica.uid,
        observed_generation=replica.generation,
        endpoint=f"{url}/replicas/{replica.namespace}/{replica.name}" if url and replica.activation == "Serving" else "",
        progress=Progress(fetched_bytes=min(total, there + under_way), total_bytes=total),
        measured=observed.measured.get(replica.uid),
        restarts=worker.restarts if worker else 0,
        last_exit=worker.last_exit if worker else None,
        conditions=say.conditions_of(replica, standing, complete=not _missing(replica, observed)),
    )


def _served(assignment: Assignment, standings: Mapping[str, say.Standing], scene: _Scene) -> tuple[Served, ...]:
    """Return what clients may ask for: replicas that serve or will, and those that still finish what runs."""
    served: list[Served] = []
    for replica in assignment.replicas:
        if replica.activation == "Serving":
            worker, standing = scene.observed.workers.get(replica.uid), standings[replica.uid]
            one = Served(
                replica=replica, on_demand=residency.is_unloadable(replica), max_concurrent=specs.concurrent_of(replica, scene.abilities)
            )
            if worker is not None and standing.answers:
                served.append(msgspec.structs.replace(one, endpoint=worker.endpoint, api_key=worker.api_key))
            else:
                served.append(msgspec.structs.replace(one, waiting=standing.why, on_demand=standing.on_demand))
    for uid, going in scene.leaving.items():
        worker = scene.observed.workers.get(uid)
        if worker is not None:
            concurrent = specs.concurrent_of(going.replica, scene.abilities)
            served.append(
                Served(replica=going.replica, endpoint=worker.endpoint, api_key=worker.api_key, draining=True, max_concurrent=concurrent)
            )
    return tuple(sorted(served, key=lambda each: (each.replica.namespace, each.replica.name, each.replica.uid)))


def _caches(scene: _Scene) -> frozenset[str]:
    """Return the directories of saved prompts that somebody uses or will."""
    running = (scene.observed.known[uid] for uid in scene.observed.workers if uid in scene.observed.known)
    found = set()
    for replica in (*scene.assigned.values(), *running):
        library = specs.choose_library(replica, scene.abilities)
        if library is not None and specs.runs_on_npu(replica, scene.abilities):
            found.add(specs.cache_name(replica, library))
    return frozenset(found - {""})


def _holders(assignment: Assignment, scene: _Scene) -> Mapping[str, tuple[str, ...]]:
    leaving = (one.replica for uid, one in scene.leaving.items() if uid in scene.observed.workers)
    return {replica.uid: tuple(sorted({file.digest for file in replica.files})) for replica in (*assignment.replicas, *leaving)}


def _look_again_at(scene: _Scene) -> float | None:
    retries = [fetch.retry_at for uid, fetch in scene.observed.fetches.items() if uid in scene.assigned and fetch.reason]
    workers = scene.observed.workers
    leaving = [one for uid, one in scene.leaving.items() if uid in workers and workers[uid].phase != "Stopping"]
    settled = [one.since + SETTLE_SECONDS for one in leaving if scene.observed.now < one.since + SETTLE_SECONDS]
    idle = [_sleeps_at(uid, scene) for uid, worker in workers.items() if uid in scene.assigned and worker.phase == "Ready"]
    finite = [moment for moment in idle if scene.observed.now < moment < math.inf]
    return min((*retries, *settled, *finite, *(_drain_ends_at(one) for one in leaving)), default=None)


def _sleeps_at(uid: str, scene: _Scene) -> float:
    return residency.sleeps_at(scene.assigned[uid], scene.observed.uses.get(uid), scene.observed.workers[uid].ready_at)
