"""One struct is a kind: it appears everywhere without another line."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import yaml

from controller.api import crds, discovery
from controller.api.admission import Admission
from controller.api.openapi import OpenApi
from rkfleet import manifest
from rkfleet.errors import Invalid, NotFound
from rkfleet.kinds import KINDS, RegardedEvent
from rkfleet.kinds.base import Registry
from rkfleet.manifest import Source
from tests.support.widget import Widget

REGISTRY = Registry((*KINDS, Widget))
GVK = {"group": "test.rkfleet.dev", "version": "v1alpha1", "kind": "Widget"}


def test_a_new_kind_is_in_both_forms_of_discovery() -> None:
    group = next(group for group in discovery.groups(REGISTRY)["items"] if group["metadata"]["name"] == "test.rkfleet.dev")
    (entry,) = group["versions"][0]["resources"]
    assert (entry["resource"], entry["scope"], entry["shortNames"], entry["responseKind"]) == ("widgets", "Namespaced", ["wg"], GVK)
    assert "subresources" not in entry
    legacy = discovery.legacy_resources(REGISTRY, "test.rkfleet.dev", "v1alpha1")
    assert [resource["name"] for resource in legacy["resources"]] == ["widgets"]
    assert discovery.legacy_group(REGISTRY, "test.rkfleet.dev")["preferredVersion"]["version"] == "v1alpha1"


def test_a_new_kind_is_in_openapi_with_its_descriptions() -> None:
    document = OpenApi(REGISTRY).find("apis/test.rkfleet.dev/v1alpha1")
    assert document is not None
    schema = msgspec.json.decode(document.body)["components"]["schemas"]["dev.rkfleet.test.v1alpha1.Widget"]
    assert schema["x-kubernetes-group-version-kind"] == [GVK]
    assert schema["properties"]["spec"]["properties"]["sizeBytes"]["description"] == "Size of the widget."


def test_a_new_kind_has_a_definition() -> None:
    definition = yaml.safe_load(crds.render(REGISTRY)["test.rkfleet.dev_widgets.yaml"])
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert schema["properties"]["spec"]["x-kubernetes-validations"][0]["rule"] == "self.sizeBytes >= oldSelf.sizeBytes"


def test_a_new_kind_is_validated_where_people_write_and_where_it_is_stored() -> None:
    text = b"apiVersion: test.rkfleet.dev/v1alpha1\nkind: Widget\nmetadata: {name: w}\nspec: {sizeBytes: 0}\n"
    with pytest.raises(Invalid, match=r"w.yaml:4: spec.sizeBytes: 0: must be an integer 1..1000"):
        manifest.load([Source("w.yaml", text)], REGISTRY)
    with pytest.raises(Invalid, match=r"spec.sizeBytes: 0: must be an integer 1..1000"):
        Admission(REGISTRY).admit_create(Widget, yaml.safe_load(text))


# ---- discovery of our own kinds


def test_both_forms_of_discovery_tell_the_same() -> None:
    def aggregated(groups: dict[str, Any]) -> set[tuple[str, str, str]]:
        return {
            (group["metadata"].get("name", ""), resource["resource"], ",".join(resource["verbs"]))
            for group in groups["items"]
            for version in group["versions"]
            for resource in version["resources"]
        }

    def legacy(group: str, version: str) -> set[tuple[str, str, str]]:
        listed = discovery.legacy_resources(KINDS, group, version)["resources"]
        return {(group, one["name"], ",".join(one["verbs"])) for one in listed if "/" not in one["name"]}

    assert aggregated(discovery.core(KINDS)) == legacy("", "v1")
    groups = {group["name"]: group["preferredVersion"]["version"] for group in discovery.legacy_groups(KINDS)["groups"]}
    assert groups.keys() >= {"rkfleet.dev", "coordination.k8s.io"}
    assert aggregated(discovery.groups(KINDS)) == {entry for group, version in groups.items() for entry in legacy(group, version)}
    assert discovery.legacy_core()["versions"] == ["v1"]


def test_the_scale_subresource_answers_another_kind() -> None:
    listed = {one["name"]: one for one in discovery.legacy_resources(KINDS, "rkfleet.dev", "v1alpha1")["resources"]}
    scale = listed["modeldeployments/scale"]
    assert (scale["group"], scale["version"], scale["kind"]) == ("autoscaling", "v1", "Scale")
    assert "models/scale" not in listed


def test_short_names_are_given_once() -> None:
    """Two resources with one short name make kubectl warn at every use; only Events have their two groups."""
    found = [kind.resource for kind in KINDS if kind is not RegardedEvent]
    names = [name for resource in found for name in (*resource.short_names, resource.plural, resource.singular)]
    assert len(names) == len(set(names))
    assert not RegardedEvent.resource.short_names


def test_groups_that_are_not_served_are_not_found() -> None:
    with pytest.raises(NotFound):
        discovery.legacy_group(KINDS, "apps")
    with pytest.raises(NotFound):
        discovery.legacy_resources(KINDS, "rkfleet.dev", "v1")
