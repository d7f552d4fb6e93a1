"""The schema that is made from the structs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import msgspec
import pytest
from msgspec import Meta

from rkfleet.kinds import KINDS, Model, ModelDeployment
from rkfleet.kinds.base import Object, Resource
from rkfleet.meta import Struct
from rkfleet.quantity import parse_bytes
from rkfleet.schema import QUANTITY_PATTERN, crd_of, schema_of
from rkfleet.validation import KindValidator
from tests.support.manifests import deployment, model

EVERY_KIND = pytest.mark.parametrize("kind", list(KINDS), ids=lambda kind: kind.resource.kind)
# Keys that a structural schema of apiextensions.k8s.io/v1 may have, of which we use these.
STRUCTURAL_KEYS = {
    "description", "type", "format", "enum", "default", "minimum", "maximum", "minLength", "maxLength", "pattern", "minItems", "maxItems",
    "anyOf", "required", "properties", "items", "additionalProperties", "x-kubernetes-int-or-string", "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys", "x-kubernetes-validations", "x-kubernetes-preserve-unknown-fields",
}  # fmt: skip


def nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, below in node.get("properties", {}).items():
        yield from nodes(below, f"{path}.{name}")
    for part in ("items", "additionalProperties"):
        if part in node:
            yield from nodes(node[part], f"{path}[]")


@EVERY_KIND
def test_every_node_is_structural(kind: type[Object]) -> None:
    """A real kube-apiserver takes the schema: known keys only, a type everywhere, no references."""
    for path, node in nodes(schema_of(kind)):
        assert set(node) <= STRUCTURAL_KEYS, path
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert ("items" in node) == (node.get("type") == "array"), path


@EVERY_KIND
def test_every_field_has_a_description(kind: type[Object]) -> None:
    """`kubectl explain` is the manual."""
    missing = [path for path, node in nodes(schema_of(kind)) if not path.endswith("[]") and not node.get("description")]
    assert missing == []


@EVERY_KIND
def test_a_list_below_a_rule_is_bounded(kind: type[Object]) -> None:
    """kube-apiserver refuses rules whose cost has no limit."""
    for path, node in nodes(schema_of(kind)):
        if "x-kubernetes-validations" in node:
            unbounded = [f"{path}{below}" for below, one in nodes(node) if one.get("type") == "array" and "maxItems" not in one]
            assert unbounded == []


@EVERY_KIND
def test_patterns_are_those_of_re2(kind: type[Object]) -> None:
    """Kubernetes compiles patterns with RE2, which has no look-around and no back-references; and it searches, so both ends are fixed."""
    for path, node in nodes(schema_of(kind)):
        pattern = node.get("pattern")
        if pattern:
            assert not re.search(r"\(\?[=!<]|\\[1-9]|\\[zZA]", pattern), path
            assert (pattern[0], pattern[-1]) == ("^", "$"), path


@pytest.mark.parametrize(("kind", "obj"), [(ModelDeployment, deployment()), (Model, model())], ids=["ModelDeployment", "Model"])
def test_defaults_of_the_schema_are_those_of_the_struct(kind: type[Object], obj: dict[str, Any]) -> None:
    """An object means the same before and after its defaults are written out."""
    settled = KindValidator(kind).settle(obj).obj
    assert settled != obj
    assert msgspec.convert(settled, kind) == msgspec.convert(obj, kind)


@EVERY_KIND
def test_status_and_metadata_have_no_defaults(kind: type[Object]) -> None:
    """They belong to their writers."""
    properties = schema_of(kind)["properties"]
    defaults = [path for part in ("status", "metadata") for path, node in nodes(properties.get(part, {}), part) if "default" in node]
    assert defaults == []


def test_conditions_are_a_map_by_type() -> None:
    conditions = schema_of(Model)["properties"]["status"]["properties"]["conditions"]
    assert (conditions["x-kubernetes-list-type"], conditions["x-kubernetes-list-map-keys"]) == ("map", ["type"])


@pytest.mark.parametrize("text", ["0", "512Mi", "4Gi", "1.5Gi", ".5", "1e3", "+1k", "100m"])
def test_a_quantity_that_the_schema_takes_can_be_read(text: str) -> None:
    assert re.fullmatch(QUANTITY_PATTERN, text)
    assert parse_bytes(text) >= 0


@pytest.mark.parametrize("text", ["", "-1", "4 Gi", "4GB", "1e999", "four", "0x10", "."])
def test_what_is_no_amount_of_bytes_is_no_quantity(text: str) -> None:
    assert not re.fullmatch(QUANTITY_PATTERN, text)


class Knot(Struct, frozen=True, kw_only=True):
    """Holds itself."""

    inner: Annotated[Knot | None, Meta(description="Again.")] = None


class Choice(Struct, frozen=True, kw_only=True):
    """A union that no structural schema can say."""

    either: Annotated[int | bool, Meta(description="Two types.")] = 0


@pytest.mark.parametrize(("spec", "why"), [(Knot, "holds itself"), (Choice, "a union must be int")], ids=["recursion", "union"])
def test_a_field_that_is_not_structural_is_named(spec: type[Struct], why: str) -> None:
    """The author of a kind learns at once which field is wrong."""

    class Odd(Object, frozen=True, kw_only=True):
        """A kind with a mistake."""

        resource: ClassVar[Resource] = Resource(kind="Odd", plural="odds", singular="odd")

    odd = msgspec.defstruct("Odd", [("spec", spec)], bases=(Odd,), rename="camel", kw_only=True, frozen=True)
    with pytest.raises(TypeError, match=rf"Odd\.spec\..*{why}"):
        schema_of(odd)  # type: ignore[arg-type]


def test_a_builtin_kind_has_no_definition() -> None:
    namespace = KINDS.find("namespaces")
    assert namespace is not None
    with pytest.raises(ValueError, match="built-in"):
        crd_of(namespace)
