"""What a board must run, and under which number."""

from __future__ import annotations

import msgspec
import pytest

from controller.planning.assignment import next_number, plan_assignment
from rkfleet.assignment import encode_assignment
from tests.support import planned


def named(*objects: object) -> dict[tuple[str, str], object]:
    return {(one.metadata.namespace, one.metadata.name): one for one in objects}  # type: ignore[attr-defined]


CHAT = planned.deployment(servedModelName="gpt")
REVISION = planned.revision("chat-1", CHAT, serving={"contextTokens": 2048, "threads": 3})
MODEL = planned.model("qwen", planned.variant("q4", runtimeVersion=">=1.0", reference={"model": "Qwen2-1.5B", "sdkVersion": "1.1.0"}))


def test_an_assigned_replica_says_all_that_its_board_needs() -> None:
    one = planned.replica("chat-1-0", CHAT, "chat-1", board="a", activation="Staged", replaces="uid-before")
    (assigned,) = plan_assignment([one], named(CHAT), named(REVISION), named(MODEL)).replicas  # type: ignore[arg-type]
    assert (assigned.uid, assigned.served_model_name, assigned.model, assigned.variant) == ("uid-chat-1-0", "gpt", "qwen", "q4")
    assert (assigned.activation, assigned.replaces, assigned.memory_bytes) == ("Staged", "uid-before", 2**30)
    assert (assigned.serving.context_tokens, assigned.serving.threads, assigned.serving.drain_seconds) == (2048, 3, 30)
    assert (assigned.runtime_version, assigned.reference_model, assigned.files[0].size_bytes) == (">=1.0", "Qwen2-1.5B", 1000)


def test_the_order_of_replicas_changes_no_byte() -> None:
    ones = [planned.replica(f"chat-1-{slot}", CHAT, "chat-1", slot=slot, board="a") for slot in range(3)]
    context = (named(CHAT), named(REVISION), named(MODEL))
    forth, back = plan_assignment(ones, *context), plan_assignment(reversed(ones), *context)  # type: ignore[arg-type]
    assert encode_assignment(forth) == encode_assignment(back)


def test_what_cannot_be_known_or_is_going_is_left_out() -> None:
    going = planned.replica("chat-1-0", CHAT, "chat-1", board="a", deletionTimestamp="2026-01-01T00:00:00Z", finalizers=["x"])
    stray = planned.replica("chat-2-1", CHAT, "chat-2", board="a")
    assert plan_assignment([going, stray], named(CHAT), named(REVISION), named(MODEL)).replicas == ()  # type: ignore[arg-type]
    again = planned.make(type(MODEL), "qwen", spec={"variants": [planned.variant()]})
    again = msgspec.structs.replace(again, metadata=msgspec.structs.replace(again.metadata, uid="uid-made-later"))
    fine = planned.replica("chat-1-2", CHAT, "chat-1", board="a")
    assert plan_assignment([fine], named(CHAT), named(REVISION), named(again)).replicas == ()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sha", "minted", "minted_sha", "held", "held_sha", "number"),
    [
        ("x", 0, "", 0, "", 1), ("x", 7, "x", 0, "", 7), ("y", 7, "x", 0, "", 8), ("x", 7, "x", 7, "x", 7), ("x", 7, "x", 7, "other", 8),
        ("x", 7, "x", 9, "x", 10), ("x", 7, "x", 6, "x", 7), ("y", 0, "", 41, "z", 42),
    ],
)  # fmt: skip
def test_the_number_rises_exactly_when_the_board_would_not_take_these_bytes_under_the_old_one(
    *, sha: str, minted: int, minted_sha: str, held: int, held_sha: str, number: int
) -> None:
    assert next_number(sha, minted, minted_sha, held, held_sha) == number
