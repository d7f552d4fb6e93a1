"""Revisions as people see them: what changed, what is current, and what an undo goes back to."""

from __future__ import annotations

import pytest

from rkfleet.cli import revisions
from rkfleet.errors import FailedPrecondition, NotFound
from tests.support.planned import deployment, revision

CHAT = deployment(status={"currentRevision": "r1", "updateRevision": "r2"})


def test_only_the_deployments_own_revisions_count_and_numbers_order_them() -> None:
    namesake = revision("other", deployment("other"), number=9)
    found = revisions.history(CHAT, [revision("r2", CHAT, number=12), namesake, revision("r1", CHAT, number=3)])
    assert [one.metadata.name for one in found] == ["r1", "r2"]
    assert [revisions.state_of(one, CHAT) for one in found] == ["current", "update"]


def test_a_change_is_told_by_field_with_defaults_filled_in() -> None:
    before = revision("r1", CHAT, serving={"contextTokens": 2048}, metadata={"annotations": {"a": "1"}}, variants=["q4"])
    after = revision("r2", CHAT, number=2, model="qwen3", metadata={"annotations": {"b": "2"}})
    assert revisions.changes(before, after) == (
        "model: qwen -> qwen3",
        "metadata.annotations[b]: nothing -> 2",
        "variants: [q4] -> []",
        "serving.contextTokens: 2048 -> 1024",
        "metadata.annotations[a]: 1 -> nothing",
    )
    assert revisions.changes(None, before) == ()
    assert revisions.changes(before, before) == ()


def test_a_model_that_was_made_anew_is_a_change_of_its_own() -> None:
    after = revision("r2", CHAT, number=2)
    anew = revisions.changes(revision("r1", CHAT), type(after)(metadata=after.metadata, spec=type(after.spec)(
        template=after.spec.template, model_uid="another", revision=2, deployment_name="chat")))  # fmt: skip
    assert anew == ("Model qwen was made anew",)


def test_an_undo_goes_to_the_newest_template_that_is_not_todays() -> None:
    """A template that never became a revision, because its Model does not exist, is left by one undo too."""
    kept = (revision("r1", CHAT, number=1, variants=["a"]), revision("r2", CHAT, number=2), revision("r3", CHAT, number=3, variants=["b"]))
    assert revisions.previous(kept, deployment(template={"variants": ["b"]})).metadata.name == "r2"
    assert revisions.previous(kept, deployment(model="mistyped")).metadata.name == "r3"


def test_without_another_template_there_is_nothing_to_go_back_to() -> None:
    for kept, why in (
        ((), "no revision yet"),
        ((revision("r1", CHAT),), "its only revision"),
        ((revision("r1", CHAT), revision("r2", CHAT)), "no other"),
    ):
        with pytest.raises(FailedPrecondition, match=why):
            revisions.previous(kept, CHAT)


def test_a_number_that_is_not_there_is_answered_with_those_that_are() -> None:
    kept = (revision("r1", CHAT, number=2), revision("r2", CHAT, number=5))
    assert revisions.find_number(kept, "chat", 5).metadata.name == "r2"
    with pytest.raises(NotFound, match="unable to find revision 4 in the history of deployment 'chat'; it has 2, 5"):
        revisions.find_number(kept, "chat", 4)
    with pytest.raises(NotFound, match="it has none yet"):
        revisions.find_number((), "chat", 1)
