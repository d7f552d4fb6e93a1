"""Revisions: when two templates are the same, and what a revision is called.

Two templates are the same if both decode equal under today's defaults, so a controller that learns a new field with a default makes no
new revision of what already runs. The name is only a name: a hash over the canonical JSON of the template. Canonical means RFC 8785
(sorted members, no white space, one spelling of numbers), defaults left out, and quantities in their one canonical spelling; a golden
test keeps the names of every release, because a changed name would look like a changed template to whoever compares names.

Two different templates under one name (a collision, or the same template after its Model was deleted and made again with other bytes)
are told apart by a counter that goes into the hash, as Kubernetes does with `collisionCount`.

Source: RFC 8785; Kubernetes `pkg/controller/history/controller_history.go`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final

import msgspec

from rkfleet.kinds.deployment import Template
from rkfleet.kinds.revision import ModelRevision
from rkfleet.quantity import canonical_quantity

__all__ = ["canonical_json", "find_revision", "name_revision", "revision_hash"]

HASH_DIGITS: Final = 10  # 40 bits: one collision is expected among a million templates of one deployment, and the counter handles it.
COLLISIONS_MAX: Final = 64  # Beyond this it is not chance; the caller's revisions are wrong.


def revision_hash(template: Template, collision_count: int = 0) -> str:
    """Return the ten hexadecimal digits that name a template."""
    body = canonical_json(template)
    if collision_count:
        body += str(collision_count).encode()
    return hashlib.sha256(body).hexdigest()[:HASH_DIGITS]


def find_revision(revisions: Iterable[ModelRevision], template: Template, model_uid: str) -> ModelRevision | None:
    """Return the revision with this template and Model, or None; of several the one with the highest number."""
    same = [one for one in revisions if one.spec.template == template and one.spec.model_uid == model_uid]
    return max(same, key=lambda one: (one.spec.revision, one.metadata.name), default=None)


def name_revision(revisions: Sequence[ModelRevision], deployment: str, template: Template) -> tuple[str, int]:
    """Return a free name for a template that no revision has, and the collision count that made it free."""
    taken = {one.metadata.name for one in revisions}
    for count in range(COLLISIONS_MAX):
        name = f"{deployment}-{revision_hash(template, count)}"
        if name not in taken:
            return name, count
    raise AssertionError(f"deployment {deployment!r}: {COLLISIONS_MAX} revision names are taken by other templates")


def canonical_json(value: msgspec.Struct) -> bytes:
    """Return the one JSON text of a frozen value of the API.

    Members are sorted by UTF-16 code units as RFC 8785 asks. Floats do not occur in specs and are refused, so that the number
    formatting of RFC 8785 is that of integers.
    """
    return json.dumps(_canonical(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _canonical(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        quantities = _quantity_fields(type(value))
        members = {}
        for field in msgspec.structs.fields(value):
            member = getattr(value, field.name)
            if not _is_default(field, member):
                members[field.encode_name] = canonical_quantity(member) if field.name in quantities else _canonical(member)
        return _sorted(members)
    if isinstance(value, dict):
        return _sorted({key: _canonical(member) for key, member in value.items()})
    if isinstance(value, tuple | list):
        return [_canonical(member) for member in value]
    assert value is None or isinstance(value, str | bool | int), f"a spec holds no {type(value).__name__}"
    return value


def _sorted(members: dict[str, Any]) -> dict[str, Any]:
    return {key: members[key] for key in sorted(members, key=lambda key: key.encode("utf-16-be"))}


def _is_default(field: msgspec.structs.FieldInfo, member: Any) -> bool:
    default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
    return bool(member == default and type(member) is type(default))


@cache
def _quantity_fields(kind: type[msgspec.Struct]) -> frozenset[str]:
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    return frozenset(field.name for field in info.fields if _is_quantity(field.type))


def _is_quantity(type_info: msgspec.inspect.Type) -> bool:
    return isinstance(type_info, msgspec.inspect.Metadata) and bool((type_info.extra_json_schema or {}).get("x-rkfleet-quantity"))
