"""What a kind is: a frozen struct that says everything about itself.

A kind is one `Object` subclass with a `resource` class variable. From the registry of kinds, and from nothing else, come discovery,
OpenAPI, CRD YAML, validation, tables and `kubectl explain`. A new kind needs one struct and one entry in a registry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from rkfleet.conditions import Condition
from rkfleet.meta import ObjectMeta, Ref, ResourceName, Struct

__all__ = ["GROUP", "VERSION", "Column", "Condition", "Object", "Registry", "Resource", "Rule", "StatusOwner", "decode"]

GROUP: Final = "rkfleet.dev"
VERSION: Final = "v1alpha1"


class Rule(msgspec.Struct, frozen=True):
    """A CEL rule of a schema node (`x-kubernetes-validations`); it stands in the `rules` class variable of that node's struct.

    Attributes:
        rule: CEL expression over `self`, and `oldSelf` for a transition rule.
        message: Sentence shown when the rule does not hold.
        field_path: Where the fault is, relative to the node, for example `.maxSurge`.
    """

    rule: str
    message: str
    field_path: str = ""


class Column(msgspec.Struct, frozen=True):
    """A column of `kubectl get` (`additionalPrinterColumns`).

    Attributes:
        name: Heading.
        json_path: Simple path, for example `.spec.replicas` or `.status.conditions[?(@.type=="Ready")].reason`. Built-in kinds, which need
            no definition in a cluster, may have several with `|` between them: the first that leads to something counts.
        type: OpenAPI type of the cell: string, integer, number, boolean or date; of built-in kinds also reference: a map that names an
            object, shown as `replica/qwen-0`.
        priority: 0 is always shown, 1 only with `-o wide`.
    """

    name: str
    json_path: str
    description: str
    type: Literal["string", "integer", "number", "boolean", "date", "reference"] = "string"
    priority: int = 0


class StatusOwner(msgspec.Struct, frozen=True):
    """Which status fields (camelCase, directly below `status`) and condition types one writer owns; nobody else writes them."""

    fields: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """How a kind appears in the API.

    Attributes:
        log: It has a log (`.../<name>/log`), as Kubernetes' pods have; only the embedded API serves it.
        read_only: Clients only read it.
        confidential: Fields whose values no message, log or note may show, as dotted paths.
    """

    kind: str
    plural: str
    singular: str
    namespaced: bool = True
    group: str = GROUP
    version: str = VERSION
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    status: bool = True
    scale: bool = False
    log: bool = False
    read_only: bool = False
    confidential: tuple[str, ...] = ()
    name_length_max: int = 253
    owners: Mapping[str, StatusOwner] = {}

    @property
    def name(self) -> ResourceName:
        """`boards.rkfleet.dev`; core kinds have no group."""
        return ResourceName(f"{self.plural}.{self.group}" if self.group else self.plural)

    @property
    def built_in(self) -> bool:
        """Whether Kubernetes itself has this kind, so that it needs no definition there and clients know it by heart."""
        return not self.group or self.group.endswith(".k8s.io")

    @property
    def api_version(self) -> str:
        """`rkfleet.dev/v1alpha1`; core kinds have no group."""
        return f"{self.group}/{self.version}" if self.group else self.version


class Object(Struct, frozen=True, kw_only=True):
    """Base of every kind: what all objects have."""

    resource: ClassVar[Resource]
    rules: ClassVar[tuple[Rule, ...]] = ()

    api_version: Annotated[str, Meta(description="Group and version of the kind.")] = ""
    kind: Annotated[str, Meta(description="Kind of the object.")] = ""
    metadata: Annotated[ObjectMeta, Meta(description="Standard object metadata.")] = ObjectMeta()

    @property
    def ref(self) -> Ref:
        """The name of this object."""
        return Ref(self.resource.name, self.metadata.namespace, self.metadata.name)


class Registry:
    """The kinds that one program serves, by resource name and by (apiVersion, kind). Order is kept."""

    def __init__(self, kinds: tuple[type[Object], ...]) -> None:
        self._by_name: Final = {kind.resource.name: kind for kind in kinds}
        self._by_kind: Final = {(kind.resource.api_version, kind.resource.kind): kind for kind in kinds}

    def __iter__(self) -> Iterator[type[Object]]:
        """All kinds in the order of registration."""
        return iter(self._by_name.values())

    def find(self, name: str) -> type[Object] | None:
        """Return the kind with this resource name (`boards.rkfleet.dev`), or None."""
        return self._by_name.get(ResourceName(name))

    def find_kind(self, api_version: str, kind: str) -> type[Object] | None:
        """Return the kind with this apiVersion and kind, or None."""
        return self._by_kind.get((api_version, kind))


T = TypeVar("T", bound=Object)


def decode(kind: type[T], body: bytes) -> T:
    """Decode a stored object tolerantly: unknown fields are ignored, absent ones have their defaults."""
    return msgspec.json.decode(body, type=kind)
