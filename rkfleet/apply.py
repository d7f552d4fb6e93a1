"""Declarative apply, as `kubectl apply` does it: a three-way merge of what was applied last, what is wanted, and what is live.

Pure. The last applied manifest is kept in the annotation that kubectl uses, so that the two tools can be mixed.

Source: Kubernetes documentation, "Declarative Management of Kubernetes Objects", merge patch calculation.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Final

import msgspec

__all__ = ["LAST_APPLIED", "three_way_patch", "with_last_applied"]

Json = dict[str, Any]

LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"


def with_last_applied(wanted: Json) -> Json:
    """Return `wanted` with the annotation that remembers it."""
    plain = deepcopy(wanted)
    plain.get("metadata", {}).get("annotations", {}).pop(LAST_APPLIED, None)
    text = msgspec.json.encode(plain, order="sorted").decode() + "\n"
    annotated = deepcopy(plain)
    annotated.setdefault("metadata", {}).setdefault("annotations", {})[LAST_APPLIED] = text
    return annotated


def three_way_patch(wanted: Json, live: Json) -> Json:
    """Return the JSON merge patch that makes `live` what `wanted` says; empty when it is already so.

    Fields that were applied before and are not wanted any more are removed; fields that others set are left alone.
    """
    text = live.get("metadata", {}).get("annotations", {}).get(LAST_APPLIED, "{}")
    try:
        before = msgspec.json.decode(text)
    except msgspec.DecodeError:
        before = {}
    patch = _merge(before if isinstance(before, dict) else {}, with_last_applied(wanted), live)
    return {key: value for key, value in patch.items() if key not in {"apiVersion", "kind"}}


def _merge(before: Json, wanted: Json, live: Json) -> Json:
    patch: Json = {key: None for key in before if key not in wanted and key in live}
    for key, value in wanted.items():
        held = live.get(key)
        if isinstance(value, dict) and isinstance(held, dict):
            old = before.get(key)
            if inner := _merge(old if isinstance(old, dict) else {}, value, held):
                patch[key] = inner
        elif key not in live or held != value:
            patch[key] = value
    return patch
