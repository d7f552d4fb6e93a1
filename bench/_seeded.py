"""A store full of Boards and Replicas as real ones are, written before a controller starts over it.

In: the data directory of a controller that never ran. Out: its database. Boards carry all that an agent reports; no board has a session,
because what is measured is what objects cost, and a session costs its own. Replicas are placed, two on each board, and were Ready.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from bench._control_plane import ControlPlane, control_plane
from bench.store import model_of
from controller.store.sql.store import SqlStore
from rkfleet.clock import Clock
from rkfleet.kinds import KINDS, Board, Model, Replica
from rkfleet.meta import Ref

__all__ = ["BOARDS", "REPLICAS", "board_name", "seeded_control_plane"]

BOARDS: Final = 5_000
REPLICAS: Final = 10_000
AT_ONCE: Final = 200
MODEL: Final = "qwen2-1.5b-instruct"

Json = dict[str, Any]


def board_name(number: int) -> str:
    return f"site-{number // 100:02d}-rk3588-{number:04d}"


def _uid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, name))


def _time(number: int) -> str:
    """Return a second of some week: boards join and replicas become Ready when they do, not all at once."""
    return f"2026-01-{1 + number % 7:02d}T{number % 24:02d}:{number * 7 % 60:02d}:{number * 13 % 60:02d}Z"


def _condition(time: str, type: str, status: str, reason: str, message: str = "") -> Json:
    said = {"type": type, "status": status, "reason": reason, "lastTransitionTime": time}
    return {**said, "message": message, "observedGeneration": 1} if message else said


def _metadata(name: str, time: str, labels: Json) -> Json:
    return {"name": name, "uid": _uid(name), "creationTimestamp": time, "labels": labels}


def board_of(number: int) -> Json:
    """Return a Board of about 2 kB that has enrolled and reported, and waits for its first session."""
    name, time = board_name(number), _time(number)
    labels = {"rkfleet.dev/soc": "rk3588", "rkfleet.dev/site": f"site-{number // 100:02d}"}
    digest = hashlib.sha256(name.encode()).hexdigest()
    annotations = {"rkfleet.dev/key-sha256": digest, "rkfleet.dev/machine-id": digest[:32]}
    start = f"rkfleet agent run --name {name} ... (on the board, with the arguments that it joined with)"
    never = f"Board {name} has enrolled and never opened a session. Try: {start}"
    healthy = [
        _condition(time, type, status, reason)
        for type, status, reason in (
            ("MemoryPressure", "False", "Sufficient"),
            ("DiskPressure", "False", "Sufficient"),
            ("NPUReady", "True", "DriverLoaded"),
            ("ThermalPressure", "False", "Cool"),
            ("ClocksPinned", "False", "Unmanaged"),
        )
    ]
    status = {
        "observedGeneration": 1,
        "soc": "rk3588",
        "capacity": {"memory": "16Gi", "storage": "58Gi", "npuCores": 3},
        "allocatable": {"memory": "15Gi", "storage": "50Gi"},
        "versions": {"agent": "0.1.0", "kernel": "5.10.209-rk3588", "npuDriver": {"family": "rknpu", "version": "0.9.8"}},
        "runtimes": [
            {"name": "rkllm", "version": "1.1.4", "backend": "rkllm"},
            {"name": "rknn", "version": "2.3.0", "backend": "rknn"},
            {"name": "llamacpp", "version": "b4000", "backend": "llamacpp"},
        ],
        "servingEndpoint": f"https://10.{number // 256 % 256}.{number % 256}.7:8443",
        "running": [{"replica": f"default/{name}-{slot}", "uid": _uid(f"{name}-{slot}"), "memory": "2530Mi"} for slot in (0, 1)],
        "conditions": [_condition(time, "Ready", "Unknown", "NeverConnected", never), *healthy],
    }
    return {"metadata": {**_metadata(name, time, labels), "annotations": annotations}, "spec": {}, "status": status}


def replica_of(number: int) -> Json:
    """Return a Replica of about 1.5 kB, placed and Ready when it was last heard of."""
    board, time = board_name(number // 2), _time(number)
    name = f"{board}-{number % 2}"
    metadata = _metadata(name, time, {"rkfleet.dev/deployment": "assistant", "rkfleet.dev/revision": "c578bf33c7"})
    owner = {"apiVersion": Model.resource.api_version, "kind": "Model", "name": MODEL, "uid": _uid(MODEL), "controller": True}
    status = {
        "observedGeneration": 1,
        "endpoint": f"https://{board}:8443/default/{name}",
        "progress": {"fetchedBytes": 1_786_706_944, "totalBytes": 1_786_706_944},
        "measured": {"timeToFirstTokenSeconds": 0.41, "decodeTokensPerSecond": 15.0},
        "conditions": [
            _condition(time, "Scheduled", "True", "Placed", f"Placed on board {board} with variant rk3588-w8a8."),
            _condition(time, "ArtifactAvailable", "True", "Fetched"),
            _condition(time, "Loaded", "True", "ModelLoaded"),
            _condition(_time(number + 5), "Ready", "True", "Serving"),
        ],
    }
    spec = {
        "deploymentName": "assistant",
        "revisionName": "assistant-c578bf33c7",
        "slot": str(number),
        "boardName": board,
        "variantName": "rk3588-w8a8",
    }
    return {"metadata": {**metadata, "ownerReferences": [owner]}, "spec": spec, "status": status}


async def _seed(path: Path, boards: int, replicas: int) -> None:
    model = {"metadata": _metadata(MODEL, _time(0), {}), "spec": model_of(0)["spec"]}
    objects = [(Ref(Model.resource.name, "default", MODEL), model)]
    objects += [(Ref(Board.resource.name, "", board_name(number)), board_of(number)) for number in range(boards)]
    for number in range(replicas):
        obj = replica_of(number)
        objects.append((Ref(Replica.resource.name, "default", obj["metadata"]["name"]), obj))
    async with SqlStore.open(path, KINDS) as store:
        for first in range(0, len(objects), AT_ONCE):
            some = objects[first : first + AT_ONCE]
            await asyncio.gather(*(store.create(ref, obj, keep_status=True) for ref, obj in some))


@asynccontextmanager
async def seeded_control_plane(
    directory: Path, clock: Clock, *, boards: int = 0, replicas: int = 0, program: str = "controller"
) -> AsyncIterator[ControlPlane]:
    """Run a controller over so many objects; the directory is empty, `program` is the module that is run."""
    data = directory / "controller"
    data.mkdir(mode=0o700)
    await _seed(data / "store.db", boards, replicas)
    async with control_plane(directory, clock, _say, program=program) as plane:
        yield plane


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)
