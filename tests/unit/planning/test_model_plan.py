"""Whether a Model can be used, and when it may go."""

from __future__ import annotations

from controller.planning.actions import EditMetadata, WriteStatus
from controller.planning.model import IN_USE, plan_model
from tests.support import planned

MODEL = planned.model("qwen", planned.variant("q4", digest="a"), planned.variant("q8", digest="b"))


def test_a_model_with_all_files_is_ready() -> None:
    (write,) = plan_model(MODEL, set(), "", []).actions
    assert isinstance(write, WriteStatus)
    assert (write.conditions[0].status, write.conditions[0].reason) == ("True", "ArtifactsPresent")


def test_a_missing_file_is_named_and_asked_for_again_soon() -> None:
    plan = plan_model(MODEL, {f"sha256:{'b' * 64}"}, "", [])
    (write,) = plan.actions
    assert isinstance(write, WriteStatus)
    (ready,) = write.conditions
    assert (ready.status, ready.reason) == ("False", "ArtifactMissing")
    assert ready.message.startswith("1 of 2 files are not in the registry: m of variant q8 (sha256:bbbbbbbbbbbb")
    assert ". Try: rkfleet model push" in ready.message
    assert plan.again_after_seconds == 5.0


def test_a_registry_that_cannot_be_asked_makes_it_unknown() -> None:
    (write,) = plan_model(MODEL, None, "connection refused", []).actions
    assert isinstance(write, WriteStatus)
    assert (write.conditions[0].status, write.conditions[0].reason) == ("Unknown", "RegistryUnavailable")
    assert "connection refused" in write.conditions[0].message


def test_a_model_in_use_is_held_and_let_go_when_nothing_runs_it() -> None:
    hold = next(one for one in plan_model(MODEL, set(), "", ["chat-1-0"]).actions if isinstance(one, EditMetadata))
    assert hold.finalizers == (IN_USE,)
    dying = planned.model("qwen", deletionTimestamp="2026-01-01T00:00:00Z", finalizers=["mine", IN_USE])
    waiting = plan_model(dying, set(), "", ["chat-1-0"])
    assert not [one for one in waiting.actions if isinstance(one, EditMetadata)]
    assert waiting.waiting == "Replicas chat-1-0 to go"
    (release,) = plan_model(dying, set(), "", []).actions
    assert isinstance(release, EditMetadata)
    assert release.finalizers == ("mine",)
