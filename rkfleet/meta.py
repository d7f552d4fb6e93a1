"""Object metadata, owner references and selectors, as Kubernetes means them.

Everything here is a frozen value or a pure function over plain data; kinds, store, API and planners share it.

Source: Kubernetes API conventions and `apimachinery/pkg/apis/meta/v1/types.go`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, NewType, TypeAlias

import msgspec
from msgspec import Meta

__all__ = [
    "LABEL_DEPLOYMENT",
    "LABEL_REVISION",
    "LABEL_SIMULATED",
    "LABEL_SITE",
    "LABEL_SOC",
    "LabelSelector",
    "MicroTime",
    "ObjectMeta",
    "OwnerReference",
    "Ref",
    "Requirement",
    "ResourceName",
    "Struct",
    "Uid",
    "check_label_key",
    "check_label_value",
    "check_name",
    "format_selector",
    "matches",
    "parse_field_selector",
    "parse_selector",
]

Uid = NewType("Uid", str)
ResourceName = NewType("ResourceName", str)
"""Plural and group, for example `boards.rkfleet.dev`; core kinds have no group: `events`."""

LABEL_SOC: Final = "rkfleet.dev/soc"
LABEL_SITE: Final = "rkfleet.dev/site"
LABEL_SIMULATED: Final = "rkfleet.dev/simulated"
LABEL_DEPLOYMENT: Final = "rkfleet.dev/deployment"
LABEL_REVISION: Final = "rkfleet.dev/revision"

NAME_LENGTH_MAX: Final = 253  # RFC 1123 subdomain, Kubernetes' limit for most kinds.
LABEL_VALUE_LENGTH_MAX: Final = 63
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL: Final = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")


MicroTime: TypeAlias = Annotated[
    str, Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$")
]
"""RFC 3339 with a fraction of a second, as Kubernetes' type of that name."""


class Struct(msgspec.Struct, frozen=True, gc=False, rename="camel", kw_only=True, omit_defaults=True):
    """Base of every value of the API: frozen, camelCase on the wire, defaults left out, unknown fields ignored."""


class Ref(msgspec.Struct, frozen=True, gc=False, order=True):
    """The name of one object: resource, namespace (empty for cluster-scoped kinds) and name."""

    resource: ResourceName
    namespace: str
    name: str

    def __str__(self) -> str:
        """Return `boards.rkfleet.dev/rk3588-1` or `replicas.rkfleet.dev/default/qwen2-0`."""
        return "/".join(part for part in (self.resource, self.namespace, self.name) if part)


class OwnerReference(Struct, frozen=True, kw_only=True):
    """Names the object whose deletion deletes this one."""

    api_version: Annotated[str, Meta(description="Group and version of the owner, for example rkfleet.dev/v1alpha1.")]
    kind: Annotated[str, Meta(description="Kind of the owner.")]
    name: Annotated[str, Meta(description="Name of the owner, in the same namespace or cluster-scoped.")]
    uid: Annotated[str, Meta(description="Uid of the owner; a namesake made later is not the owner.")]
    controller: Annotated[bool, Meta(description="True for the one owner that manages this object.")] = False
    block_owner_deletion: Annotated[
        bool, Meta(description="True keeps a foreground deletion of the owner waiting until this object is gone.")
    ] = False


class ObjectMeta(Struct, frozen=True, kw_only=True):
    """What every object carries about itself."""

    name: Annotated[str, Meta(description="Name of the object, unique within its kind and namespace.")] = ""
    generate_name: Annotated[str, Meta(description="Prefix of a name that the server completes when name is empty.")] = ""
    namespace: Annotated[str, Meta(description="Namespace of the object; empty for cluster-scoped kinds.")] = ""
    uid: Annotated[str, Meta(description="Identity of this object in time; set by the server.")] = ""
    resource_version: Annotated[str, Meta(description="Opaque version of the object; compare for equality only. Set by the server.")] = ""
    generation: Annotated[int, Meta(description="Number that rises with every change of the spec. Set by the server.")] = 0
    creation_timestamp: Annotated[str, Meta(description="When the object was created. Set by the server.")] = ""
    deletion_timestamp: Annotated[str, Meta(description="When deletion was asked for; finalizers hold the object. Set by the server.")] = ""
    deletion_grace_period_seconds: Annotated[int, Meta(description="Seconds that were granted before deletion. Set by the server.")] = 0
    labels: Annotated[dict[str, str], Meta(description="Keys and values that selectors choose by.")] = {}
    annotations: Annotated[dict[str, str], Meta(description="Keys and values that selectors do not see.")] = {}
    owner_references: Annotated[tuple[OwnerReference, ...], Meta(description="Objects whose deletion deletes this one.")] = ()
    finalizers: Annotated[tuple[str, ...], Meta(description="Work that must be done before the object is removed.")] = ()
    managed_fields: Annotated[tuple[dict[str, Any], ...], Meta(description="Which manager set which fields. Set by the server.")] = ()


class Requirement(Struct, frozen=True, kw_only=True):
    """One condition on a label key."""

    key: Annotated[str, Meta(description="Label key that the condition is about.")]
    operator: Annotated[str, Meta(description="In, NotIn, Exists or DoesNotExist.", pattern="^(In|NotIn|Exists|DoesNotExist)$")]
    values: Annotated[tuple[str, ...], Meta(description="Values for In and NotIn.", max_length=64)] = ()


class LabelSelector(Struct, frozen=True, kw_only=True):
    """A choice of objects by their labels; all parts must hold, an empty selector chooses everything."""

    match_labels: Annotated[dict[str, str], Meta(description="Keys and the value each must have.")] = {}
    match_expressions: Annotated[tuple[Requirement, ...], Meta(description="Conditions on keys; all must hold.", max_length=32)] = ()


def matches(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Return whether an object with these labels is chosen."""
    if any(labels.get(key) != value for key, value in selector.match_labels.items()):
        return False
    return all(_requirement_holds(requirement, labels) for requirement in selector.match_expressions)


def _requirement_holds(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value is not None and value in requirement.values
        case "NotIn":
            return value is None or value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case other:
            raise ValueError(f"selector operator {other!r} must be In, NotIn, Exists or DoesNotExist")


_TERM: Final = re.compile(r"(?:[^,()]|\([^()]*\))*")  # Up to a comma that is in no set.
_SET_TERM: Final = re.compile(r"(\S+)\s+(in|notin)\s+\(([^()]*)\)")
_EQUALITY_TERM: Final = re.compile(r"([^=!\s]+)\s*(==|=|!=)\s*([^=!\s]*)")


def parse_selector(text: str) -> LabelSelector:
    """Read a `labelSelector` query: `a=b,c!=d,e in (x,y),f notin (z),g,!h`.

    Raises:
        ValueError: A term is none of these.
    """
    requirements: list[Requirement] = []
    for term in _terms(text):
        if in_set := _SET_TERM.fullmatch(term):
            key, word, values = in_set.groups()
            operator = "In" if word == "in" else "NotIn"
            requirements.append(Requirement(key=key, operator=operator, values=tuple(v.strip() for v in values.split(","))))
        elif equality := _EQUALITY_TERM.fullmatch(term):
            key, sign, value = equality.groups()
            requirements.append(Requirement(key=key, operator="NotIn" if sign == "!=" else "In", values=(value,)))
        elif re.fullmatch(r"![^\s=!(),]+", term):
            requirements.append(Requirement(key=term[1:], operator="DoesNotExist"))
        elif re.fullmatch(r"[^\s=!(),]+", term):
            requirements.append(Requirement(key=term, operator="Exists"))
        else:
            raise ValueError(f"unable to parse requirement {term!r} of selector {text!r}")
    return LabelSelector(match_expressions=tuple(requirements))


def _terms(text: str) -> Iterator[str]:
    """Yield the terms between commas; what is no term must not vanish, or a broken selector would choose everything."""
    position = 0
    while position < len(text):
        found = _TERM.match(text, position)
        assert found is not None, "an empty term matches"
        if term := found.group().strip():
            yield term
        position = found.end()
        if text[position : position + 1] not in ("", ","):
            raise ValueError(f"unable to parse selector {text!r}: unexpected {text[position]!r} at {position}")
        position += 1


def format_selector(selector: LabelSelector) -> str:
    """Return the query text of a selector; `parse_selector` reads it back to the same choice."""
    terms = [f"{key}={value}" for key, value in sorted(selector.match_labels.items())]
    for requirement in selector.match_expressions:
        match requirement.operator:
            case "In" | "NotIn":
                terms.append(f"{requirement.key} {requirement.operator.lower()} ({','.join(requirement.values)})")
            case "Exists":
                terms.append(requirement.key)
            case _:
                terms.append(f"!{requirement.key}")
    return ",".join(terms)


def parse_field_selector(text: str) -> tuple[tuple[tuple[str, ...], str, bool], ...]:
    """Read a `fieldSelector` query into (path, value, equal) terms: `metadata.name=x,involvedObject.uid!=y`.

    Raises:
        ValueError: A term has neither `=`, `==` nor `!=`.
    """
    terms: list[tuple[tuple[str, ...], str, bool]] = []
    for term in filter(None, (part.strip() for part in text.split(","))):
        found = _EQUALITY_TERM.fullmatch(term)
        if found is None:
            raise ValueError(f"invalid field selector {text!r}: can't understand {term!r}")
        path, sign, value = found.groups()
        terms.append((tuple(path.split(".")), value, sign != "!="))
    return tuple(terms)


def check_name(name: str, *, length_max: int = NAME_LENGTH_MAX) -> str:
    """Return why `name` cannot be an object's name, or an empty string."""
    if not name:
        return "must not be empty"
    if len(name) > length_max:
        return f"{name[:80]!r} has {len(name)} characters, at most {length_max} are allowed"
    if not _SUBDOMAIN.fullmatch(name):
        return f"{name!r} must be lower-case letters, digits, '-' or '.', and start and end with a letter or digit"
    return ""


def check_label_key(key: str) -> str:
    """Return why `key` cannot be a label or annotation key, or an empty string."""
    prefix, slash, word = key.rpartition("/")
    if slash and check_name(prefix):
        return f"prefix {check_name(prefix)}"
    if not word or len(word) > LABEL_VALUE_LENGTH_MAX or not _LABEL.fullmatch(word):
        return f"{word[:80]!r} must be 1..63 letters, digits, '-', '_' or '.', and start and end with a letter or digit"
    return ""


def check_label_value(value: str) -> str:
    """Return why `value` cannot be a label's value, or an empty string."""
    if len(value) > LABEL_VALUE_LENGTH_MAX or (value and not _LABEL.fullmatch(value)):
        return f"{value[:80]!r} must be at most 63 letters, digits, '-', '_' or '.', and start and end with a letter or digit"
    return ""
