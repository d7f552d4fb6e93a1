"""Explanations of any world: always one sentence, a command where somebody is needed, and the same answer for the same world."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from rkfleet import conditions, explanation
from rkfleet.kinds import Board, Model, ModelDeployment, Replica
from rkfleet.kinds.board import TAINT_DRAIN
from rkfleet.world import World
from tests.support.planned import NOW, board, deployment, model, replica, revision, said

REASONS = sorted(value for name, value in vars(conditions).items() if name.isupper() and isinstance(value, str) and value.isalnum())
NAMES = ("a", "b")


def some_conditions(*types: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Conditions of these types, some of them missing, with any status and reason."""
    message = st.sampled_from(["", "Something is so", "Something is so. Try: do this"])
    one = st.builds(
        said,
        st.sampled_from(types),
        st.sampled_from(["True", "False", "Unknown"]),
        st.sampled_from(REASONS),
        message,
    )
    return st.lists(one, max_size=len(types), unique_by=lambda made: made["type"])


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Two boards, Models and deployments with up to two replicas each, in any state, consistent or not."""
    taints = st.sampled_from([[], [{"key": TAINT_DRAIN, "effect": "NoExecute"}], [{"key": "other"}]])
    boards: dict[str, Board] = {}
    for name in draw(st.sets(st.sampled_from(NAMES))):
        spec = {"unschedulable": draw(st.booleans()), "taints": draw(taints)}
        running = draw(st.sampled_from([[], [{"replica": "default/old", "uid": "x"}]]))
        message = draw(st.sampled_from(["", "refused."]))
        assignment = {"number": 2, "acceptedNumber": draw(st.integers(1, 2)), "message": message}
        said_of_it = draw(some_conditions("Ready", "DiskPressure", "MemoryPressure"))
        boards[name] = board(name, spec=spec, conditions=said_of_it, running=running, assignment=assignment)
    models: dict[tuple[str, str], Model] = {}
    for name in draw(st.sets(st.sampled_from(NAMES))):
        status = {"conditions": draw(some_conditions("Ready"))}
        models["default", name] = msgspec.convert({**msgspec.to_builtins(model(name)), "status": status}, Model)
    deployments: dict[tuple[str, str], ModelDeployment] = {}
    replicas: dict[tuple[str, str], Replica] = {}
    revisions = {}
    for name in draw(st.sets(st.sampled_from(NAMES))):
        status = {
            "observedGeneration": draw(st.integers(0, 1)),
            "currentRevision": draw(st.sampled_from(["", f"{name}-r"])),
            "conditions": draw(some_conditions("Ready", "Progressing", "Available")),
        }
        made = deployments["default", name] = deployment(
            name, model=draw(st.sampled_from(NAMES)), paused=draw(st.booleans()), status=status
        )
        revisions["default", f"{name}-r"] = revision(f"{name}-r", made, model=made.spec.template.model)
        for slot in range(draw(st.integers(0, 2))):
            told = draw(some_conditions("Scheduled", "ArtifactAvailable", "Loaded", "Ready"))
            where = draw(st.sampled_from(["", *NAMES]))
            replicas["default", f"{name}-r-{slot}"] = replica(
                f"{name}-r-{slot}", made, f"{name}-r", slot=slot, board=where, conditions=told
            )
    return World(now=NOW, boards=boards, models=models, deployments=deployments, revisions=revisions, replicas=replicas)


@given(worlds())
def test_everything_in_any_world_has_an_explanation(world: World) -> None:
    """It ends, it is one sentence, it has a command unless all is well, and its way never passes the same object twice."""
    for one in (*world.boards.values(), *world.models.values(), *world.deployments.values(), *world.replicas.values()):
        found = explanation.explain(one, world)
        assert found == explanation.explain(one, world)
        assert found.sentence.endswith(".")
        assert ". Try:" not in found.sentence
        assert found.command or found.verdict == "Well"
        way = [(cause.kind, cause.name) for cause in found.causes]
        assert way[0] == (one.resource.kind, one.metadata.name)
        assert len(set(way)) == len(way)
