"""Admission over objects that nobody would write: it answers every one, and what it admits is sound."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.api.admission import Admission, Admitted
from rkfleet.errors import BadRequest, Cause, Invalid
from rkfleet.kinds import KINDS, Model, ModelDeployment, Replica
from rkfleet.kinds.base import Object
from rkfleet.validation import format_path, parse_path, value_at
from tests.support.manifests import deployment, model, replica, stored, variant

ADMISSION = Admission(KINDS)
Json = dict[str, Any]

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "0%", "25%", "1Gi", "-1", "any", "rk3588", "a\n", "True"])
    | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3), max_leaves=6
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(below for key, member in members for below in paths(member, (*path, key)))]


def full(kind: type[Object], obj: Json) -> Json:
    return ADMISSION.admit_create(kind, obj).obj


EXAMPLES = [
    (
        ModelDeployment,
        full(ModelDeployment, deployment(placement={"tolerations": [{"key": "a"}], "boardSelector": {"matchLabels": {"a": "b"}}})),
    ),
    (Model, full(Model, model("m", variant("a"), variant("b", reference={"model": "x"})))),
    (Replica, full(Replica, replica(boardName="b"))),
]


def judged(admit: Callable[[], Admitted]) -> tuple[Json | None, tuple[Cause, ...]]:
    """Return what was admitted, or the causes of the refusal; a refusal without causes is shown as one that says nothing."""
    try:
        return admit().obj, ()
    except BadRequest as refused:
        return None, (Cause(field="-", message=refused.message),)
    except Invalid as refused:
        return None, refused.causes or (Cause(field="", message=""),)


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[type[Object], Json]:
    """A valid object with some values replaced, removed or added."""
    kind, example = draw(st.sampled_from(EXAMPLES))
    obj = deepcopy(example)
    for _ in range(draw(st.integers(0, 3))):
        places = [path for path in paths(obj) if path and path[0] not in ("apiVersion", "kind")]
        if not places:
            break
        path = draw(st.sampled_from(places))
        holder = value_at(obj, path[:-1])
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "remove":
                holder.pop(path[-1])
            case "add" if isinstance(holder, dict):
                holder[draw(st.text(max_size=6))] = draw(VALUES)
            case _:
                holder[path[-1]] = draw(VALUES)
    return kind, obj


@given(spoiled())
@settings(max_examples=200, deadline=None)
def test_every_object_is_admitted_or_refused_with_causes(case: tuple[type[Object], Json]) -> None:
    """What is admitted decodes into its struct and is admitted again unchanged; what is refused says why."""
    kind, obj = case
    admitted, causes = judged(lambda: ADMISSION.admit_create(kind, obj))
    assert all(cause.message and cause.field for cause in causes)
    if admitted is not None:
        msgspec.convert(admitted, kind)
        assert ADMISSION.admit_create(kind, admitted, mode="Strict").obj == admitted


@given(spoiled(), spoiled())
@settings(max_examples=150, deadline=None)
def test_what_is_stored_can_be_written_back(before: tuple[type[Object], Json], after: tuple[type[Object], Json]) -> None:
    """Whatever is stored, also by an older release with laxer rules: only duplicate keys keep it from being written as it is."""
    (kind, old), (_, new) = before, after
    old = stored({**old, "metadata": {"name": "x", "namespace": "default"}})
    same, causes = judged(lambda: ADMISSION.admit_update(kind, old, old))
    assert {cause.reason for cause in causes} <= {"FieldValueDuplicate"}
    if same is not None:
        assert ADMISSION.admit_update(kind, same, same, mode="Strict").obj == same
    changed = {**new, "apiVersion": old["apiVersion"], "kind": old["kind"], "metadata": {}}
    _, causes = judged(lambda: ADMISSION.admit_update(kind, old, changed))
    assert all(cause.message for cause in causes)


@given(
    st.lists(
        st.from_regex(r"[a-zA-Z$][a-zA-Z0-9-]{0,5}|[a-z]{1,4}\.[a-z]{1,4}/[a-z.]{1,5}", fullmatch=True) | st.integers(0, 99), max_size=6
    )
)
def test_a_path_can_be_read_back(path: list[str | int]) -> None:
    assert parse_path(format_path(path)) == tuple(path)
