"""Assignments and offers for tests of the agent."""

import hashlib

import msgspec

from rkfleet.assignment import AssignedFile, AssignedReplica, Assignment, ServingParameters, assignment_sha256, encode_assignment
from rkfleet.session import AssignmentOffer


def digest_of(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def replica(name: str = "chat-1", **changes: object) -> AssignedReplica:
    """Return a replica with one file named after its model; `changes` replace fields."""
    model = str(changes.get("model", "smollm2"))
    made = AssignedReplica(
        namespace="default",
        name=name,
        uid=f"uid-{name}",
        generation=1,
        model=model,
        served_model_name="chat",
        variant="cpu-q4",
        soc="any",
        dtype="q4_k_m",
        runtime="llamacpp",
        files=(AssignedFile(path="model.gguf", digest=digest_of(model), size_bytes=100),),
        memory_bytes=1 << 28,
        serving=ServingParameters(drain_seconds=30),
    )
    return msgspec.structs.replace(made, **changes)


def offer(number: int, *replicas: AssignedReplica) -> AssignmentOffer:
    body = encode_assignment(Assignment(replicas=replicas))
    return AssignmentOffer(number=number, body=body, sha256=assignment_sha256(body))
