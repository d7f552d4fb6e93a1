"""A board as its agent would run it, without a process: for tests of the loops, which see only what it reports."""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import Any

from controller.planning.assignment import Offer
from controller.store.base import Store, decode_item
from rkfleet import conditions
from rkfleet.assignment import AssignedReplica, Assignment, decode_assignment
from rkfleet.errors import NotFound
from rkfleet.kinds import Board, Replica
from rkfleet.meta import Ref
from rkfleet.quantity import parse_bytes

Json = dict[str, Any]


def model_spec(memory: str, digest: str = "a", *, context_tokens: int = 4096) -> Json:
    """Return the spec of a Model with one variant that every board here can run."""
    file = {"path": "m.gguf", "digest": f"sha256:{digest * 64}", "sizeBytes": 1000}
    variant = {"name": "q4", "soc": "any", "dtype": "q4_k_m", "runtime": "llamacpp", "contextTokens": context_tokens}
    return {"variants": [{**variant, "artifact": {"files": [file]}, "requires": {"memory": memory}}]}


class SimBoard:
    """A board as its agent would run it: fetches, loads when there is room, drains, and reports what it sees."""

    def __init__(self, name: str, uid: str, memory: str) -> None:
        self.name = name
        self.uid = uid
        self.memory = memory
        self.connected = False
        self.since = 0.0
        self.number, self.sha256 = 0, ""
        self.assignment = Assignment()
        self.files: set[str] = set()
        self.loaded: dict[str, AssignedReplica] = {}
        self.serving: set[str] = set()

    def take(self, offer: Offer) -> None:
        """Accept an offer as the fence says."""
        if offer.number > self.number:
            self.number, self.sha256, self.assignment = offer.number, offer.sha256, decode_assignment(offer.body)

    def work(self) -> None:
        """Do one step of everything."""
        wanted = {one.uid: one for one in self.assignment.replicas}
        for uid in [uid for uid in self.loaded if uid not in wanted or wanted[uid].activation != "Serving"]:
            del self.loaded[uid]
            self.serving.discard(uid)
        self.serving |= set(self.loaded)
        for one in self.assignment.replicas:
            digests = {file.digest for file in one.files}
            if one.activation != "Draining" and not digests <= self.files:
                self.files |= digests
            elif one.activation == "Serving" and one.uid not in self.loaded and one.replaces not in self.loaded:
                used = sum(other.memory_bytes for other in self.loaded.values())
                if used + one.memory_bytes <= parse_bytes(self.memory):
                    self.loaded[one.uid] = one

    def crash(self) -> None:
        """Lose every worker; they are started again."""
        self.loaded.clear()
        self.serving.clear()

    def conditions_of(self, one: AssignedReplica) -> list[Json]:
        fetched = {file.digest for file in one.files} <= self.files
        drained = [_said(conditions.DRAINED, one.uid not in self.loaded, conditions.DRAIN_COMPLETE, conditions.DRAINING)]
        return [
            _said(conditions.ARTIFACT_AVAILABLE, fetched, conditions.FETCHED, conditions.FETCHING),
            _said(conditions.LOADED, one.uid in self.loaded, conditions.MODEL_LOADED, conditions.LOADING),
            _said(conditions.READY, one.uid in self.serving, conditions.SERVING, conditions.LOADING),
            *(drained if one.activation == "Draining" else ()),
        ]

    async def open_session(self, store: Store, now: datetime, monotonic: float) -> None:
        """Take the next session number, as the hub does."""
        ref = Ref(Board.resource.name, "", self.name)
        number = decode_item(Board, await store.get(ref)).status.session.number + 1
        await store.patch_status(ref, self.uid, "session", {"session": {"controller": "c-0", "number": number}}, [], now=now)
        self.connected, self.since = True, monotonic

    async def report(self, store: Store, now: datetime) -> None:
        """Write what the board says about itself and its replicas, if it can be heard."""
        if not self.connected:
            return
        running = [
            {"replica": f"{one.namespace}/{one.name}", "uid": one.uid, "memory": str(one.memory_bytes)} for one in self.loaded.values()
        ]
        fields: Json = {
            "soc": "cpu",
            "allocatable": {"memory": self.memory, "storage": "10Gi"},
            "running": running,
            "runtimes": [{"name": "llamacpp", "version": "1.0", "backend": "llamacpp"}],
        }
        await store.patch_status(Ref(Board.resource.name, "", self.name), self.uid, "agent", fields, [], now=now)
        for one in self.assignment.replicas:
            ref = Ref(Replica.resource.name, one.namespace, one.name)
            fields = {"observedGeneration": one.generation, "endpoint": f"https://{self.name}/replicas/{one.namespace}/{one.name}"}
            with contextlib.suppress(NotFound):
                await store.patch_status(ref, one.uid, "agent", fields, self.conditions_of(one), now=now)


def _said(type: str, holds: bool, good: str, bad: str) -> Json:
    return {"type": type, "status": "True" if holds else "False", "reason": good if holds else bad, "message": ""}
