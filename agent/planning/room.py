"""Whether there is room for one more model, on the machine and in the NPU, and what makes room. Pure.

In: a replica that is about to start, everything that runs. Out: None when it may start, else a standing that says what it waits for,
perhaps with the step that unloads another. Called by `agent/planning/plan.py` for each start.

Memory. Two figures are asked, and the lower decides: what reservations leave, and what the machine has available now, because other
programs take memory too. The controller placed by reservations, so where nothing else is on its way out its word is taken; that the machine
really has the memory is never taken on its word. A model that is idle and may be unloaded makes room, the one used longest ago first. A
model that works on a request, or that is to stay loaded, never does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from agent.planning import conditions as say
from agent.planning import residency
from agent.planning.domains import Claim, Packing, Span, pack
from agent.planning.specs import choose_library, key_of, runs_on_npu
from agent.planning.values import Abilities, Leaving, Observed, Step, Unload
from rkfleet.assignment import AssignedReplica
from rkfleet.quantity import format_bytes, round_bytes

__all__ = ["Room", "pack_domains"]

# Free memory never rests; a sentence that named every byte would be a new report every time the board looks.
AVAILABLE_STEP_BYTES: Final = 256 << 20


class Room(msgspec.Struct, frozen=True):
    """The board at one moment, and what the plan has decided so far.

    Attributes:
        assigned: Every replica of the assignment, by uid.
        leaving: Those whose worker is on its way out.
        starting: Replicas whose workers this plan starts: several may be ready to start in one pass.
        unloading: Those that this plan unloads.
    """

    assigned: Mapping[str, AssignedReplica]
    abilities: Abilities
    observed: Observed
    leaving: Mapping[str, Leaving]
    starting: tuple[AssignedReplica, ...] = ()
    unloading: frozenset[str] = frozenset()

    def refuse(self, replica: AssignedReplica, verify: tuple[Step, ...]) -> say.Standing | None:
        """Return what the replica waits for, or None when it may start now; `verify` goes on meanwhile."""
        observed = self.observed
        used = sum(worker.memory_bytes for worker in observed.workers.values()) + self._starting_bytes()
        over = used + replica.memory_bytes > self.abilities.memory_bytes
        available = self._available_bytes()
        short = available is not None and replica.memory_bytes > available
        if not over and not short:
            return None
        on_demand = residency.loads_on_demand(replica, observed.uses.get(replica.uid))
        going = next((one.replica for uid, one in self.leaving.items() if uid in observed.workers), None)
        if going is not None:
            return say.waiting_for_predecessor(replica, going, verify, on_demand=on_demand)
        others = [self.assigned[uid] for uid in observed.workers if uid in self.assigned and uid != replica.uid]
        turns = [one for one in others if residency.is_unloadable(one)]
        for one in turns:
            if one.uid in self.unloading or observed.workers[one.uid].phase == "Stopping":
                why = f"waits until {_words(one)} is unloaded, to have room for {_need(replica)}"
                return say.waiting_for_memory(why, verify, on_demand=on_demand)
        loaded_at = {uid: worker.ready_at for uid, worker in observed.workers.items()}
        idle = [one for one in turns if not observed.in_flight.get(one.uid) and observed.workers[one.uid].phase in {"Ready", "BackOff"}]
        if (uid := residency.victim(idle, observed.uses, loaded_at)) is not None:
            why = f"waits until {_words(self.assigned[uid])}, which is idle, is unloaded, to have room for {_need(replica)}"
            return say.waiting_for_memory(why, (*verify, Unload(uid=uid)), on_demand=on_demand)
        if short:
            assert available is not None
            rough = round_bytes(max(0, available - available % AVAILABLE_STEP_BYTES))
            why = f"waits for {_need(replica)}; about {rough} are available on the machine, and nothing on it may be unloaded"
            return say.waiting_for_memory(why, verify, on_demand=on_demand)
        in_use = [*turns, *(one for one in self.starting if residency.is_unloadable(one))]
        if in_use:
            busy = ", ".join(sorted(_words(one) for one in in_use))
            why = f"waits for {_need(replica)} until one of the models that are in use is idle: {busy}"
            return say.waiting_for_memory(why, verify, on_demand=on_demand)
        return None

    def _available_bytes(self) -> int | None:
        """Return what the machine has left once every worker that is being loaded has what it reserves."""
        if self.observed.available_bytes is None:
            return None
        coming = sum(one.memory_bytes for one in self.observed.workers.values() if one.phase in {"Starting", "Loading"})
        return self.observed.available_bytes - coming - self._starting_bytes()

    def _starting_bytes(self) -> int:
        return sum(one.memory_bytes for one in self.starting)


def pack_domains(assigned: Mapping[str, AssignedReplica], abilities: Abilities, observed: Observed) -> Packing:
    """Return the IOMMU domains of every model that runs on the NPU or is to."""
    claims: list[Claim] = []
    named: list[Span] = []
    for uid in sorted({*assigned, *observed.workers}):
        replica = assigned.get(uid) or observed.known.get(uid)
        if replica is None or not runs_on_npu(replica, abilities):
            continue
        worker = observed.workers.get(uid)
        library = choose_library(replica, abilities)
        held = worker.domain if worker is not None else -1
        wanted = replica.serving.iommu_domain
        # A worker that is replaced stays where it is, unless the user names another place.
        if worker is not None and library is not None and wanted >= 0 and worker.key != key_of(replica, library, abilities):
            held = -1
        claim = Claim(
            uid=uid,
            name=f"{replica.namespace}/{replica.name}",
            memory_bytes=replica.memory_bytes or sum(file.size_bytes for file in replica.files_of("weight")),
            encoder_bytes=max((file.size_bytes for file in replica.files_of("encoder")), default=0),
            wanted=wanted,
            held=held,
        )
        use = observed.uses.get(uid)
        loaded_at = worker.ready_at if worker is not None else None
        idle = residency.asleep(replica, use, loaded_at, in_flight=observed.in_flight.get(uid, 0), now=observed.now)
        if worker is not None or (replica.activation == "Serving" and not idle):
            claims.append(claim)
        elif wanted >= 0 and replica.activation != "Draining":
            named.append(Span(wanted, claim.count))
    return pack(claims, named)


def _need(replica: AssignedReplica) -> str:
    return f"the {format_bytes(replica.memory_bytes)} of {replica.model}"


def _words(replica: AssignedReplica) -> str:
    return f"{replica.namespace}/{replica.name}"
