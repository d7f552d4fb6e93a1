"""Strategic merge patch and JSON patch, as pure functions from JSON to JSON.

In: an object as stored (decoded) and a patch as sent (decoded). Out: the patched object; the input is never changed. `resources.py` applies
them and hands the result to the write path. The third format, JSON merge patch, is the store's own (`store/writes.py`).

Sources: RFC 6902 with RFC 6901 (JSON patch), Kubernetes `apimachinery/pkg/util/strategicpatch` (directives).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from rkfleet.errors import BadRequest, Cause, Invalid

__all__ = ["JSON_PATCH_OPERATIONS_MAX", "json_patch", "strategic_merge_patch"]

Json = dict[str, Any]

JSON_PATCH_OPERATIONS_MAX: Final = 10_000  # As kube-apiserver: enough for any object below its size limit.
JSON_PATCH_COPIED_BYTES_MAX: Final = 512 << 10  # Half of the largest object: `copy` can double it with every operation.

_MERGE_KEYS: Final[Mapping[str, str]] = {"ownerReferences": "uid", "conditions": "type"}
_SETS: Final = frozenset({"finalizers"})
"""Lists of the built-in kinds that strategic merge joins instead of replacing, by field name."""


# ---- strategic merge patch -----------------------------------------------------------------------------------------------------


def strategic_merge_patch(target: Json, patch: Json) -> Json:
    """Return `target` with a strategic merge patch applied, as the built-in kinds mean it.

    Maps are merged; `ownerReferences` and `conditions` are merged by their key, `finalizers` as a set, every other list is replaced.
    `$patch`, `$retainKeys` and `$deleteFromPrimitiveList/<field>` are honoured; `$setElementOrder/<field>` only orders and is dropped.

    Raises:
        BadRequest: A directive cannot be read.
    """
    directive = patch.get("$patch")
    if directive == "delete":
        return {}
    if directive not in (None, "replace", "merge"):
        raise BadRequest(f"$patch is {directive!r}, it must be replace, merge or delete")
    merged = {} if directive == "replace" else dict(target)
    for key, value in patch.items():
        word, slash, field = key.partition("/")
        if slash and word == "$deleteFromPrimitiveList":
            unwanted = _list(key, value)
            merged[field] = [one for one in _list(field, merged.get(field) or []) if one not in unwanted]
        elif key.startswith("$"):
            continue
        elif value is None or (isinstance(value, dict) and value.get("$patch") == "delete"):
            merged.pop(key, None)
        else:
            merged[key] = _strategic_value(key, merged.get(key), value)
    if "$retainKeys" in patch:
        kept = _list("$retainKeys", patch["$retainKeys"])
        merged = {key: value for key, value in merged.items() if key in kept}
    return merged


def _strategic_value(key: str, before: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return strategic_merge_patch(before if isinstance(before, dict) else {}, value)
    if isinstance(value, list) and key in _SETS:
        known = before if isinstance(before, list) else []
        return [*known, *(one for one in value if one not in known)]
    if isinstance(value, list) and key in _MERGE_KEYS:
        return _merge_by_key(key, before if isinstance(before, list) else [], value)
    return value


def _merge_by_key(field: str, before: list[Any], patch: list[Any]) -> list[Any]:
    key = _MERGE_KEYS[field]
    if any(isinstance(one, dict) and one.get("$patch") == "replace" for one in patch):
        return [one for one in patch if not (isinstance(one, dict) and "$patch" in one)]
    merged = list(before)
    for one in patch:
        if not isinstance(one, dict) or key not in one:
            raise BadRequest(f"{field}: every element of a strategic merge patch must have its merge key {key!r}")
        index = next((i for i, old in enumerate(merged) if isinstance(old, dict) and old.get(key) == one[key]), None)
        if one.get("$patch") == "delete":
            merged = [old for i, old in enumerate(merged) if i != index]
        elif index is None:
            merged.append(strategic_merge_patch({}, one))
        else:
            merged[index] = strategic_merge_patch(merged[index], one)
    return merged


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise BadRequest(f"{name} must be a list in a strategic merge patch")
    return value


# ---- JSON patch ----------------------------------------------------------------------------------------------------------------


class _Operation(msgspec.Struct):
    """One operation; whether `value` and `from` must be there depends on `op`."""

    op: str
    path: str
    from_: str | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="from")
    value: Any = msgspec.UNSET


class _Holder(msgspec.Struct):
    """The document under change; the empty pointer replaces it whole."""

    document: Any
    copied_bytes: int = 0


_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,8}")
_BAD_ESCAPE: Final = re.compile(r"~(?![01])")


def json_patch(target: Any, operations: Any) -> Any:
    """Return `target` with an RFC 6902 JSON patch applied; all operations or none.

    Raises:
        BadRequest: The patch is not a list of operations, or has too many.
        Invalid: An operation cannot be done on this object, or a `test` failed; the message names the operation by its number.
    """
    if isinstance(operations, list) and len(operations) > JSON_PATCH_OPERATIONS_MAX:
        raise BadRequest(f"the JSON patch has {len(operations)} operations, at most {JSON_PATCH_OPERATIONS_MAX} are allowed")
    try:
        parsed = msgspec.convert(operations, list[_Operation])
    except msgspec.ValidationError as error:
        raise BadRequest(f"a JSON patch must be a list of operations with op and path (RFC 6902): {error}") from error
    holder = _Holder(copy.deepcopy(target))
    for number, operation in enumerate(parsed):
        try:
            _apply(holder, operation)
        except _CannotApplyError as error:
            message = f"operation {number} ({operation.op} {operation.path!r}): {error}"
            raise Invalid(f"the JSON patch cannot be applied: {message}", (Cause(f"[{number}]", message),)) from error
    return holder.document


class _CannotApplyError(Exception):
    """Why one operation cannot be done."""


def _apply(holder: _Holder, operation: _Operation) -> None:
    path = _pointer(operation.path)
    match operation.op:
        case "add":
            _add(holder, path, _value(operation))
        case "remove":
            _remove(holder, path)
        case "replace":
            value = _value(operation)
            _find(holder.document, path)
            _set(holder, path, value)
        case "move":
            source = _pointer(_from(operation))
            if len(path) > len(source) and path[: len(source)] == source:
                raise _CannotApplyError("a value cannot be moved into itself")
            _add(holder, path, _remove(holder, source))
        case "copy":
            value = _find(holder.document, _pointer(_from(operation)))
            holder.copied_bytes += len(msgspec.json.encode(value))
            if holder.copied_bytes > JSON_PATCH_COPIED_BYTES_MAX:
                raise _CannotApplyError(f"copies more than {JSON_PATCH_COPIED_BYTES_MAX} bytes in total")
            _add(holder, path, copy.deepcopy(value))
        case "test":
            found, wanted = _find(holder.document, path), _value(operation)
            if not _equal(found, wanted):
                raise _CannotApplyError("test failed, the value is another one")
        case other:
            raise _CannotApplyError(f"op {other!r} must be add, remove, replace, move, copy or test")


def _value(operation: _Operation) -> Any:
    if operation.value is msgspec.UNSET:
        raise _CannotApplyError("value is missing")
    return operation.value


def _from(operation: _Operation) -> str:
    if isinstance(operation.from_, str):
        return operation.from_
    raise _CannotApplyError("from is missing")


def _pointer(text: str) -> list[str]:
    """Return the tokens of an RFC 6901 pointer."""
    if text == "":
        return []
    if not text.startswith("/"):
        raise _CannotApplyError(f"pointer {text!r} must be empty or start with /")
    if _BAD_ESCAPE.search(text):
        raise _CannotApplyError(f"pointer {text!r}: ~ must be followed by 0 or 1")
    return [token.replace("~1", "/").replace("~0", "~") for token in text[1:].split("/")]


def _find(document: Any, path: Sequence[str]) -> Any:
    for token in path:
        if isinstance(document, dict):
            if token not in document:
                raise _CannotApplyError(f"there is no {token!r}")
            document = document[token]
        elif isinstance(document, list):
            document = document[_index(document, token)]
        else:
            raise _CannotApplyError(f"there is no {token!r}: its holder is neither a map nor a list")
    return document


def _index(items: list[Any], token: str, *, end: int = 0) -> int:
    if not _INDEX.fullmatch(token) or int(token) >= len(items) + end:
        raise _CannotApplyError(f"index {token!r} is not in a list of {len(items)}")
    return int(token)


def _add(holder: _Holder, path: Sequence[str], value: Any) -> None:
    parent = _find(holder.document, path[:-1]) if path else None
    if isinstance(parent, list):
        parent.insert(len(parent) if path[-1] == "-" else _index(parent, path[-1], end=1), value)
    else:
        _set(holder, path, value)


def _set(holder: _Holder, path: Sequence[str], value: Any) -> None:
    if not path:
        holder.document = value
        return
    parent = _find(holder.document, path[:-1])
    if isinstance(parent, dict):
        parent[path[-1]] = value
    elif isinstance(parent, list):
        parent[_index(parent, path[-1])] = value
    else:
        raise _CannotApplyError(f"there can be no {path[-1]!r}: its holder is neither a map nor a list")


def _remove(holder: _Holder, path: Sequence[str]) -> Any:
    if not path:
        raise _CannotApplyError("the whole object cannot be removed by a patch")
    removed = _find(holder.document, path)
    parent = _find(holder.document, path[:-1])
    if isinstance(parent, dict):
        del parent[path[-1]]
    else:
        del parent[int(path[-1])]
    return removed


def _equal(one: Any, other: Any) -> bool:
    """Compare as JSON: true is not 1, 1 is 1.0."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
