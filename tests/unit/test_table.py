"""What `kubectl get` prints."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

import msgspec
import pytest
from msgspec import Meta

from controller.api.table import table
from controller.store.base import Item
from rkfleet.clock import human_duration
from rkfleet.errors import BadRequest
from rkfleet.kinds import KINDS, Event, Model, ModelDeployment, Namespace, Replica
from rkfleet.kinds.base import Column, Object, Resource
from rkfleet.meta import Ref
from tests.support.manifests import deployment, model, replica, stored, variant

NOW = datetime(2026, 11, 23, 8, 5, 30, tzinfo=UTC)


def item(kind: type[Object], obj: dict[str, Any]) -> Item:
    ref = Ref(kind.resource.name, "default", obj["metadata"]["name"])
    return Item(ref, "u", "7", {}, msgspec.json.encode(obj))


def cells(kind: type[Object], obj: dict[str, Any]) -> dict[str, Any]:
    made = table(kind, [item(kind, obj)], NOW)
    return dict(zip([column["name"] for column in made["columnDefinitions"]], made["rows"][0]["cells"], strict=True))


def test_cells_are_found_by_path_and_condition() -> None:
    conditions = [{"type": "Available", "reason": "No"}, {"type": "Ready", "status": "True", "reason": "MinimumReplicasAvailable"}]
    obj = stored(deployment(replicas=3)) | {"status": {"conditions": conditions, "availableReplicas": 2}}
    assert cells(ModelDeployment, obj) == {
        "Name": "smollm2",
        "Status": "MinimumReplicasAvailable",
        "Model": "smollm2-135m",
        "Desired": 3,
        "Updated": 0,
        "Available": 2,
        "Revision": "",
        "Age": "5m30s",
    }


def test_a_field_that_is_not_stored_shows_the_default_of_its_struct() -> None:
    assert cells(Namespace, {"metadata": {"name": "lab"}})["Status"] == "Active"
    shown = cells(Replica, replica())
    assert (shown["Activation"], shown["Restarts"], shown["Tokens/s"], shown["Status"]) == ("Serving", 0, None, None)


def test_many_values_share_a_cell() -> None:
    assert cells(Model, model("m", variant("a"), variant("b")))["Variants"] == "a,b"


def test_a_time_that_cannot_be_read_is_shown_as_such() -> None:
    assert cells(Event, {"metadata": {"name": "e"}, "lastTimestamp": "yesterday"})["Last Seen"] == "<invalid>"
    assert cells(Event, {"metadata": {"name": "e"}})["Last Seen"] == "<unknown>"


def test_events_of_old_and_new_reporters_read_alike() -> None:
    """Old ones have first and last times and a count, new ones an exact time, or a series; columns as kube-apiserver's."""
    about = {"kind": "Replica", "name": "qwen-0"}
    old = {
        "metadata": {"name": "e"}, "involvedObject": about, "source": {"component": "agent"}, "count": 4,
        "firstTimestamp": "2026-11-23T08:00:30Z", "lastTimestamp": "2026-11-23T08:05:00Z",
    }  # fmt: skip
    new = {"metadata": {"name": "e"}, "involvedObject": about, "eventTime": "2026-11-23T08:00:30.000000Z", "reportingComponent": "agent"}
    series = {**new, "series": {"count": 7, "lastObservedTime": "2026-11-23T08:05:00.000000Z"}}
    names = ("Last Seen", "Object", "Source", "First Seen", "Count")
    shown = [tuple(cells(Event, obj)[name] for name in names) for obj in (old, new, series)]
    assert shown == [
        ("30s", "replica/qwen-0", "agent", "5m", 4),
        ("5m", "replica/qwen-0", "agent", "5m", 1),
        ("30s", "replica/qwen-0", "agent", "5m", 7),
    ]
    assert cells(Event, {"metadata": {"name": "e"}})["Object"] == ""


def test_a_row_carries_what_was_asked_for() -> None:
    obj = stored(deployment())
    one = [item(ModelDeployment, obj)]
    metadata = table(ModelDeployment, one, NOW)["rows"][0]["object"]
    assert metadata == {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}
    whole = msgspec.json.decode(msgspec.json.encode(table(ModelDeployment, one, NOW, "Object")))
    assert whole["rows"][0]["object"] == obj
    assert "object" not in table(ModelDeployment, one, NOW, "None")["rows"][0]
    with pytest.raises(BadRequest, match="includeObject 'Some' must be None, Metadata or Object"):
        table(ModelDeployment, one, NOW, "Some")


def test_the_first_column_is_the_name() -> None:
    """kubectl knows by `format: name` where to put the kind."""
    for kind in KINDS:
        columns = table(kind, [], NOW)["columnDefinitions"]
        assert (columns[0]["name"], columns[0]["format"]) == ("Name", "name")


def test_a_column_path_that_is_not_understood_is_refused() -> None:
    class Odd(Object, frozen=True, kw_only=True):
        """A kind with a mistake."""

        resource: ClassVar[Resource] = Resource(
            kind="Odd", plural="odds", singular="odd", columns=(Column("X", ".spec.x[0:2]", "A slice."),)
        )
        spec: Annotated[dict[str, str], Meta(description="Anything.")] = {}

    with pytest.raises(ValueError, match=r"Odd: column path '.spec.x\[0:2\]' is not understood from '\[0:2\]' on"):
        table(Odd, [], NOW)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-2, "<invalid>"), (-1, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (150, "2m30s"), (600, "10m"), (10799, "179m"), (10800, "3h"),
        (15000, "4h10m"), (28800, "8h"), (172799, "47h"), (172800, "2d"), (180000, "2d2h"), (691200, "8d"), (63071999, "729d"),
        (63072000, "2y"), (70000000, "2y80d"), (252288000, "8y"),
    ],
)  # fmt: skip
def test_ages_read_as_kubernetes_writes_them(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text
