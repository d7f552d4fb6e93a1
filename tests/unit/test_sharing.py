"""Equal values are kept once, and are still equal."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from bench._seeded import board_of, replica_of
from controller.store.sharing import Sharing
from rkfleet.kinds import Board, Replica

conditions = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["Ready", "Loaded"]),
        "status": st.sampled_from(["True", "False"]),
        "reason": st.sampled_from(["", "Fetched", "Serving"]),
        "message": st.sampled_from(["", "Fetched", "Serving"]),
        "observedGeneration": st.integers(0, 2),
    }
)
statuses = st.lists(st.fixed_dictionaries({"restarts": st.integers(0, 1), "conditions": st.lists(conditions, max_size=3)}), max_size=5)


def replica(status: dict[str, Any]) -> Replica:
    spec = {"deploymentName": "d", "revisionName": "r", "slot": "0"}
    return msgspec.json.decode(msgspec.json.encode({"metadata": {"name": "a"}, "spec": spec, "status": status}), type=Replica)


@given(statuses, st.integers(1, 8))
def test_a_shared_value_says_what_it_said(found: list[dict[str, Any]], remembered_max: int) -> None:
    """Whatever came before, and however little is remembered: a value is equal to itself, type by type, and memory is bounded."""
    sharing = Sharing(remembered_max)
    for status in found:
        shared = sharing.value(replica(status).status)
        assert msgspec.json.encode(shared) == msgspec.json.encode(replica(status).status)
        assert shared == replica(status).status
        assert len(sharing) <= 2 * remembered_max


def test_what_boards_have_in_common_is_in_memory_once() -> None:
    sharing = Sharing()
    one, other = (sharing.value(msgspec.json.decode(msgspec.json.encode(board_of(number)), type=Board).status) for number in (1, 2))
    assert one != other
    assert one.runtimes is other.runtimes
    assert one.versions is other.versions
    assert one.conditions[1].reason is other.conditions[1].reason
    assert sharing.labels({"a": "b"}) is sharing.labels({"a": "b"})


def test_what_holds_a_dictionary_is_shared_as_far_as_it_can_be() -> None:
    sharing = Sharing()
    one, other = (msgspec.json.decode(msgspec.json.encode(replica_of(number)), type=Replica).metadata for number in (1, 1))
    assert sharing.value(one) is not sharing.value(other)
    assert one.owner_references is other.owner_references
    assert one.labels == other.labels
