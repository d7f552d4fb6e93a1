"""A board without a board: takes the planner's steps at once and lets tests decide what happens next."""

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from agent.planning.plan import plan
from agent.planning.residency import Use
from agent.planning.values import (
    Abilities,
    CancelFetch,
    Fetch,
    FetchState,
    InstalledLibrary,
    Observed,
    Plan,
    Start,
    Step,
    Stop,
    Unload,
    Verify,
)
from agent.workers.base import WorkerState
from rkfleet.assignment import AssignedReplica, Assignment
from rkfleet.kinds.replica import LastExit

T = TypeVar("T")

ABILITIES = Abilities(
    libraries={"llamacpp": (InstalledLibrary(version="2026.10"),)}, cores=4, memory_bytes=1 << 30, serving_url="https://127.0.0.1:7490"
)


class BoardWorld:
    """What the loop would keep, as plain values; `step` plans once and acts."""

    def __init__(self, *replicas: AssignedReplica, abilities: Abilities = ABILITIES) -> None:
        self.replicas = replicas
        self.abilities = abilities
        self.observed = Observed(now=0.0)

    def change(self, **fields: object) -> None:
        self.observed = msgspec.structs.replace(self.observed, **fields)

    def plan(self) -> Plan:
        return plan(Assignment(replicas=self.replicas), self.abilities, self.observed)

    def step(self) -> Plan:
        """Plan, act, and remember what the loop remembers."""
        planned = self.plan()
        known = {**self.observed.known, **{replica.uid: replica for replica in self.replicas}}
        self.change(leaving=planned.leaving, known=known)
        for step in planned.steps:
            self.act(step)
        return planned

    def act(self, step: Step) -> None:
        seen = self.observed
        match step:
            case Fetch():
                fetch = FetchState(digests=frozenset(file.digest for file in step.files))
                self.change(fetches={**seen.fetches, step.replica.uid: fetch}, verified=without(seen.verified, step.replica.uid))
            case CancelFetch():
                self.change(fetches=without(seen.fetches, step.uid))
            case Verify():
                self.change(verifying=seen.verifying | {step.uid})
                self.pending_tokens = {**getattr(self, "pending_tokens", {}), step.uid: step.token}
            case Start():
                spec = step.spec
                state = WorkerState(
                    uid=spec.uid, namespace=spec.namespace, name=spec.name, key=spec.key, phase="Starting", memory_bytes=spec.memory_bytes,
                    domain=spec.domain,
                )  # fmt: skip
                self.change(workers={**seen.workers, spec.uid: state})
            case Stop():
                self.worker(step.uid, phase="Stopping")
                self.change(verified=without(self.observed.verified, step.uid))
            case Unload():
                self.worker(step.uid, phase="Stopping", endpoint="", ready_at=None)
                used = Use(last_at=seen.now, unloaded=True, slept=True)
                self.change(verified=without(self.observed.verified, step.uid), uses={**seen.uses, step.uid: used})

    # ---- what happens on the board ----

    def fetched(self, uid: str) -> None:
        fetch = self.observed.fetches[uid]
        files = {**self.observed.files, **{digest: f"/cache/{digest[7:19]}" for digest in fetch.digests}}
        mismatched = {digest: why for digest, why in self.observed.mismatched.items() if digest not in files}
        self.change(files=files, mismatched=mismatched, fetches=without(self.observed.fetches, uid))

    def fetch_failed(self, uid: str, reason: str, retry_after: float) -> None:
        failed = msgspec.structs.replace(
            self.observed.fetches[uid], reason=reason, message=f"{reason} happened", retry_at=self.observed.now + retry_after
        )
        self.change(fetches={**self.observed.fetches, uid: failed})

    def verified(self, uid: str) -> None:
        token = self.pending_tokens[uid]
        self.change(verifying=self.observed.verifying - {uid}, verified={**self.observed.verified, uid: token})

    def mismatched(self, uid: str, digest: str) -> None:
        self.change(
            verifying=self.observed.verifying - {uid},
            files=without(self.observed.files, digest),
            mismatched={**self.observed.mismatched, digest: "model.gguf did not have its digest"},
        )

    def worker(self, uid: str, **fields: object) -> None:
        state = msgspec.structs.replace(self.observed.workers[uid], **fields)
        self.change(workers={**self.observed.workers, uid: state})

    def loaded(self, uid: str) -> None:
        self.worker(uid, phase="Ready", endpoint=f"http://127.0.0.1:1/{uid}", api_key="k", ready_at=self.observed.now)

    def crashed(self, uid: str, restarts: int = 0, reason: str = "Crashed") -> None:
        exit_ = LastExit(reason=reason, message="signal 11", time=f"t{restarts}")  # type: ignore[arg-type]
        self.worker(uid, phase="BackOff", endpoint="", ready_at=None, restarts=restarts, last_exit=exit_)

    def asked(self, uid: str, in_flight: int = 1) -> None:
        """A request arrives, or `in_flight` of them are left."""
        used = Use(last_at=self.observed.now, slept=self.observed.uses[uid].slept if uid in self.observed.uses else False)
        running = {**self.observed.in_flight, uid: in_flight} if in_flight else without(self.observed.in_flight, uid)
        self.change(uses={**self.observed.uses, uid: used}, in_flight=running)

    def gone(self, uid: str) -> None:
        self.change(workers=without(self.observed.workers, uid), in_flight=without(self.observed.in_flight, uid))

    def serve(self, uid: str) -> None:
        """Bring a replica from nothing to tokens."""
        self.step()
        if uid in self.observed.fetches:
            self.fetched(uid)
            self.step()
        self.verified(uid)
        self.step()
        self.loaded(uid)
        self.step()

    def conditions(self, uid: str) -> dict[str, tuple[str, str]]:
        """Return status and reason of each condition."""
        state = next(state for state in self.plan().replicas if state.uid == uid)
        return {one.type: (one.status, one.reason) for one in state.conditions}


def without(mapping: Mapping[str, T], key: str) -> dict[str, T]:
    return {name: value for name, value in mapping.items() if name != key}
