"""Assignment: everything that one board must run, as exact bytes.

The controller plans it from the Replicas bound to a board, encodes it once, numbers it when its hash changes and offers it on the
session; the agent writes the same bytes to its ledger and converges to them. It holds what must run, with which digests and load
parameters, and nothing else: no addresses, no tokens, no times, because all of those would change the hash without changing the work.

Encoding is canonical (sorted replicas, msgspec's field order, defaults left out), so equal assignments have equal hashes.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from rkfleet.errors import Invalid

__all__ = [
    "AssignedFile",
    "AssignedReplica",
    "Assignment",
    "ServingParameters",
    "assignment_sha256",
    "decode_assignment",
    "encode_assignment",
]

ASSIGNMENT_BYTES_MAX = 1 << 20  # One board runs tens of replicas at 1 kB each; a megabyte is a mistake.


class _Value(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True, omit_defaults=True):
    pass


class AssignedFile(_Value, frozen=True, kw_only=True):
    """One file to have on the board: `digest` is `sha256:<hex>`, `size_bytes` its length."""

    path: str
    digest: str
    size_bytes: int
    role: str = "weight"
    scale_percent: int = 100


class ServingParameters(_Value, frozen=True, kw_only=True):
    """Load and serving parameters; the meaning of each is that of `ModelDeployment.spec.template.serving`."""

    context_tokens: int = 1024
    max_concurrent: int = 1
    max_queued: int = 8
    max_output_tokens: int = 512
    threads: int = 0
    drain_seconds: int = 30
    load: Literal["Eager", "OnDemand"] = "Eager"
    idle_unload_seconds: int = 0
    context_overflow: Literal["Stop", "Shift"] = "Stop"
    keep_tokens: int = 0
    prompt_cache_bytes: int = 0
    runtime_version: str = ""
    embed_flash: bool = False
    cpus: str = ""
    iommu_domain: int = -1


class AssignedReplica(_Value, frozen=True, kw_only=True):
    """One replica to have.

    Attributes:
        uid: Uid of the Replica object.
        served_model_name: Name that OpenAI clients ask for.
        memory_bytes: Memory reserved while loaded.
        activation: Staged has the bytes only, Serving is loaded and answers, Draining finishes what runs.
        replaces: Uid of the replica on this board whose worker must be gone before this one loads; empty for none.
    """

    namespace: str
    name: str
    uid: str
    generation: int
    model: str
    served_model_name: str
    variant: str
    soc: str
    dtype: str
    runtime: Literal["rkllm", "rknn", "llamacpp"]
    files: tuple[AssignedFile, ...]
    memory_bytes: int = 0
    runtime_version: str = ""
    reference_model: str = ""
    reference_sdk_version: str = ""
    activation: Literal["Staged", "Serving", "Draining"] = "Serving"
    replaces: str = ""
    serving: ServingParameters = ServingParameters()

    def files_of(self, role: str) -> tuple[AssignedFile, ...]:
        """Return the files of a role, in their order."""
        return tuple(file for file in self.files if file.role == role)

    @property
    def weight(self) -> AssignedFile:
        """The file that the runtime is given as the model: the first weight, or the first file where none is called so."""
        return next(iter(self.files_of("weight")), self.files[0])


class Assignment(_Value, frozen=True, kw_only=True):
    """All replicas of one board, sorted by namespace and name, and how its clocks are to run (`Board.spec.tuning.clocks`)."""

    replicas: tuple[AssignedReplica, ...] = ()
    clocks: Literal["Unmanaged", "Fixed"] = "Unmanaged"


def encode_assignment(assignment: Assignment) -> bytes:
    """Return the exact bytes of an assignment; equal assignments give equal bytes."""
    ordered = tuple(sorted(assignment.replicas, key=lambda replica: (replica.namespace, replica.name, replica.uid)))
    return msgspec.json.encode(msgspec.structs.replace(assignment, replicas=ordered))


def decode_assignment(body: bytes) -> Assignment:
    """Read an assignment tolerantly: fields of a newer controller are ignored.

    Raises:
        Invalid: `body` is too large or is not an assignment.
    """
    if len(body) > ASSIGNMENT_BYTES_MAX:
        raise Invalid(f"assignment has {len(body)} bytes, at most {ASSIGNMENT_BYTES_MAX} are allowed")
    try:
        return msgspec.json.decode(body, type=Assignment)
    except msgspec.MsgspecError as error:
        raise Invalid(f"assignment cannot be read: {error}") from error


def assignment_sha256(body: bytes) -> str:
    """Return the hex sha256 of the exact bytes."""
    return hashlib.sha256(body).hexdigest()
