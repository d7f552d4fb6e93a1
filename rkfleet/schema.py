"""From a kind's struct to its structural OpenAPI v3 schema and its CustomResourceDefinition.

In: a kind (`Object` subclass). Out: plain JSON values. The structs are the only source; the served OpenAPI, `kubectl explain`, the CRD
YAML in `manifests/crds/`, validation here (`rkfleet/validation.py`) and on a real kube-apiserver all come from `schema_of`.

It is our own generator over `msgspec.inspect`, because msgspec's JSON schema has `$ref` and unions with null, which a structural schema
must not have. What a struct may use is therefore small, and anything else raises TypeError when the schema is made:

- str, int, float, bool, Literal of strings, tuples and lists, `dict[str, X]`, other structs, `X | None` (optional), `int | str`;
- `dict[str, Any]` keeps unknown fields;
- `Meta` limits; `extra_json_schema` is taken over, and two words of ours are spelt out: `x-rkfleet-quantity` (an amount of memory or
  storage) and `x-rkfleet-int-or-percent`.

Defaults are static. Numbers, booleans and non-empty text have their default in the schema, a struct of such fields has `default: {}`;
empty text, lists, maps and None are absent instead, and so is every default of `metadata` (the server's) and `status` (its writers').

Source: Kubernetes, "Extend the Kubernetes API with CustomResourceDefinitions", section "Specifying a structural schema".
"""

from __future__ import annotations

import inspect
from typing import Any, Final

import msgspec
from msgspec import inspect as mi

from rkfleet.conditions import Condition
from rkfleet.kinds.base import Object, Rule
from rkfleet.meta import ObjectMeta

__all__ = ["PERCENT_PATTERN", "QUANTITY_PATTERN", "Schema", "component_name", "crd_of", "metadata_schema", "schema_of"]

Schema = dict[str, Any]

QUANTITY_PATTERN: Final = r"^\+?([0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2}|Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E)?$"
"""`rkfleet.quantity.PATTERN` without a minus sign and without exponents that `parse_quantity` refuses: an amount of bytes is neither."""
QUANTITY_LENGTH_MAX: Final = 32  # 20 digits say any number of bytes below 2^64; the rest is fraction and suffix.
PERCENT_PATTERN: Final = "^(100|[1-9]?[0-9])%$"

_QUANTITY: Final = {"pattern": QUANTITY_PATTERN, "maxLength": QUANTITY_LENGTH_MAX}
_INT_OR_PERCENT: Final = {"minimum": 0, "pattern": PERCENT_PATTERN}
_MERGED_LISTS: Final[dict[str, Schema]] = {
    "finalizers": {"x-kubernetes-list-type": "set", "x-kubernetes-patch-strategy": "merge"},
    "ownerReferences": {
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["uid"],
        "x-kubernetes-patch-merge-key": "uid",
        "x-kubernetes-patch-strategy": "merge",
    },
}
"""Lists of ObjectMeta that clients may merge by item, as the document of kube-apiserver says."""
_NO_DEFAULTS: Final = frozenset({"metadata", "status"})
_KEY_ORDER: Final = (
    "description", "type", "format", "enum", "default", "minimum", "maximum", "minLength", "maxLength", "pattern", "minItems", "maxItems",
    "anyOf", "x-kubernetes-int-or-string", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "required", "properties", "items",
    "additionalProperties",
)  # fmt: skip


def schema_of(kind: type[Object]) -> Schema:
    """Return the structural schema of a whole object of `kind`, with `metadata` spelt out.

    Raises:
        TypeError: A field's type cannot be said in a structural schema; the message names the field.
    """
    return _struct(mi.type_info(kind), kind.resource.kind, (), defaults=True)


def metadata_schema() -> Schema:
    """Return the schema of ObjectMeta, with how its lists are merged."""
    schema = _struct(mi.type_info(ObjectMeta), "ObjectMeta", (), defaults=False)
    for field, merged in _MERGED_LISTS.items():
        schema["properties"][field] = _ordered({**schema["properties"][field], **merged})
    return schema


def component_name(kind: type[Object]) -> str:
    """Return the name of the kind's schema in an OpenAPI document, for example `dev.rkfleet.v1alpha1.Board`."""
    resource = kind.resource
    group = ".".join(reversed(resource.group.split("."))) if resource.group else "io.k8s.api.core"
    return f"{group}.{resource.version}.{resource.kind}"


def crd_of(kind: type[Object]) -> dict[str, Any]:
    """Return the CustomResourceDefinition that installs `kind` on a real kube-apiserver.

    Raises:
        ValueError: `kind` is a built-in of Kubernetes, which needs no definition.
    """
    resource = kind.resource
    if resource.built_in:
        raise ValueError(f"{resource.kind} is a built-in kind of Kubernetes and has no CustomResourceDefinition")
    schema = schema_of(kind)
    # A CRD may restrict only metadata.name and metadata.generateName; the API server owns the rest of metadata.
    schema["properties"]["metadata"] = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": resource.name_length_max}},
    }
    version: dict[str, Any] = {
        "name": resource.version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "additionalPrinterColumns": [_column(column) for column in resource.columns],
    }
    if subresources := _subresources(kind):
        version["subresources"] = subresources
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": resource.name},
        "spec": {
            "group": resource.group,
            "scope": "Namespaced" if resource.namespaced else "Cluster",
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.singular,
                "shortNames": list(resource.short_names),
                "categories": list(resource.categories),
            },
            "versions": [version],
        },
    }


def _subresources(kind: type[Object]) -> dict[str, Any]:
    subresources: dict[str, Any] = {}
    if kind.resource.status:
        subresources["status"] = {}
    if kind.resource.scale:
        subresources["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    return subresources


def _column(column: Any) -> dict[str, Any]:
    said = {"name": column.name, "type": column.type, "description": column.description, "jsonPath": column.json_path}
    return {**said, "priority": column.priority} if column.priority else said


def _struct(info: mi.Type, path: str, outer: tuple[type, ...], *, defaults: bool) -> Schema:
    """Return the node of a struct; `outer` are the structs around it, to find a struct that holds itself."""
    assert isinstance(info, mi.StructType)
    if info.cls in outer:
        raise TypeError(f"{path}: {info.cls.__name__} holds itself, which a structural schema cannot say")
    properties: dict[str, Schema] = {}
    required: list[str] = []
    for field in info.fields:
        name = field.encode_name
        below = defaults and not (not outer and name in _NO_DEFAULTS)
        node = _node(field.type, f"{path}.{name}", (*outer, info.cls), defaults=below)
        if field.required:
            required.append(name)
        elif below:
            node.update(_default(field, node))
        properties[name] = _ordered(node)
    node = {"description": inspect.cleandoc(info.cls.__doc__ or ""), "type": "object", "properties": properties}
    if required:
        node["required"] = required
    if rules := getattr(info.cls, "rules", ()):
        node["x-kubernetes-validations"] = [_rule(rule) for rule in rules]
    return _ordered(node)


def _node(info: mi.Type, path: str, outer: tuple[type, ...], *, defaults: bool) -> Schema:
    match info:
        case mi.Metadata():
            node = _node(info.type, path, outer, defaults=defaults)
            return {**node, **_spelt_out(info.extra_json_schema or {})}
        case mi.StructType():
            return _struct(info, path, outer, defaults=defaults)
        case mi.BoolType():
            return {"type": "boolean"}
        case mi.IntType():
            return {"type": "integer", "format": "int64", **_range(info, path)}
        case mi.FloatType():
            return {"type": "number", "format": "double", **_range(info, path)}
        case mi.StrType():
            return _given(type="string", minLength=info.min_length, maxLength=info.max_length, pattern=info.pattern)
        case mi.LiteralType() if all(isinstance(value, str) for value in info.values):
            return {"type": "string", "enum": list(info.values)}
        case mi.VarTupleType() | mi.ListType():
            return _array(info, path, outer, defaults=defaults)
        case mi.DictType() if isinstance(info.key_type, mi.StrType):
            if isinstance(info.value_type, mi.AnyType):
                return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
            return {"type": "object", "additionalProperties": _node(info.value_type, f"{path}[*]", outer, defaults=defaults)}
        case mi.UnionType():
            return _union(info, path, outer, defaults=defaults)
        case other:
            raise TypeError(f"{path}: {type(other).__name__} cannot be said in a structural schema")


def _array(info: mi.VarTupleType | mi.ListType, path: str, outer: tuple[type, ...], *, defaults: bool) -> Schema:
    node = _given(type="array", minItems=info.min_length, maxItems=info.max_length)
    node["items"] = _node(info.item_type, f"{path}[*]", outer, defaults=defaults)
    node["x-kubernetes-list-type"] = "atomic"
    if isinstance(info.item_type, mi.StructType) and info.item_type.cls is Condition:
        node["x-kubernetes-list-type"] = "map"
        node["x-kubernetes-list-map-keys"] = ["type"]
    return node


def _union(info: mi.UnionType, path: str, outer: tuple[type, ...], *, defaults: bool) -> Schema:
    members = [member for member in info.types if not isinstance(member, mi.NoneType)]
    if len(members) == 1:
        return _node(members[0], path, outer, defaults=defaults)
    if {type(member) for member in members} == {mi.IntType, mi.StrType}:
        return {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}
    raise TypeError(f"{path}: a union must be int | str or X | None")


def _spelt_out(extra: Schema) -> Schema:
    node = {key: value for key, value in extra.items() if not key.startswith("x-rkfleet-")}
    if extra.get("x-rkfleet-quantity"):
        node.update(_QUANTITY)
    if extra.get("x-rkfleet-int-or-percent"):
        node.update(_INT_OR_PERCENT)
    return node


def _range(info: mi.IntType | mi.FloatType, path: str) -> Schema:
    if info.gt is not None or info.lt is not None or info.multiple_of is not None:
        raise TypeError(f"{path}: only ge and le limits can be said in every draft of JSON schema")
    return _given(minimum=info.ge, maximum=info.le)


def _default(field: mi.Field, node: Schema) -> Schema:
    """Return `{"default": value}` where the schema carries the field's default, else `{}`."""
    value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    if isinstance(value, msgspec.Struct):
        said = msgspec.to_builtins(value)
        return {"default": said} if said or any("default" in below for below in node["properties"].values()) else {}
    if isinstance(value, bool | int | float) or (isinstance(value, str) and value):
        return {"default": value}
    return {}


def _rule(rule: Rule) -> Schema:
    said = {"rule": rule.rule, "message": rule.message}
    return {**said, "fieldPath": rule.field_path} if rule.field_path else said


def _given(**facts: Any) -> Schema:
    return {key: value for key, value in facts.items() if value is not None}


def _ordered(node: Schema) -> Schema:
    known: Schema = {key: node[key] for key in _KEY_ORDER if key in node}
    return {**known, **{key: value for key, value in node.items() if key not in known}}
