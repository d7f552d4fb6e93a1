"""The revisions of a deployment as people see them: numbers, what changed from one to the next, and which one an undo goes back to.

In: a ModelDeployment and its ModelRevisions. Out: rows and choices. Pure; `rollout.py` calls it. Templates are compared decoded, with
today's defaults, as the controller compares them; what is written back is the stored JSON, so that no field is lost.

Words are those of `kubectl rollout`. Source: Kubernetes `kubectl/pkg/polymorphichelpers/{history,rollback}.go`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from rkfleet.errors import FailedPrecondition, NotFound
from rkfleet.kinds import ModelDeployment, ModelRevision
from rkfleet.kinds.deployment import Template

__all__ = ["RESTARTED_AT", "changes", "find_number", "history", "previous", "state_of"]

RESTARTED_AT: Final = "rkfleet.dev/restartedAt"
"""Annotation of the template that `rollout restart` sets to the time, as kubectl's `kubectl.kubernetes.io/restartedAt`."""


def history(deployment: ModelDeployment, revisions: Iterable[ModelRevision]) -> tuple[ModelRevision, ...]:
    """Return the revisions that the deployment owns, the oldest first."""
    uid = deployment.metadata.uid
    owned = (one for one in revisions if any(owner.uid == uid for owner in one.metadata.owner_references))
    return tuple(sorted(owned, key=lambda one: (one.spec.revision, one.metadata.name)))


def state_of(revision: ModelRevision, deployment: ModelDeployment) -> str:
    """Return `current` for what the last finished rollout reached, `update` for what is on its way, else nothing."""
    status, name = deployment.status, revision.metadata.name
    return "current" if name == status.current_revision else "update" if name == status.update_revision else ""


def changes(before: ModelRevision | None, after: ModelRevision) -> tuple[str, ...]:
    """Return what a revision changed, as `serving.contextTokens: 1024 -> 2048`; nothing for the first."""
    if before is None:
        return ()
    old, new = dict(_flat(before.spec.template)), dict(_flat(after.spec.template))
    found = [
        f"{path}: {_shown(old.get(path))} -> {_shown(new.get(path))}"
        for path in (*new, *(path for path in old if path not in new))
        if old.get(path) != new.get(path)
    ]
    if before.spec.model_uid != after.spec.model_uid and before.spec.template.model == after.spec.template.model:
        found.append(f"Model {after.spec.template.model} was made anew")
    return tuple(found)


def find_number(revisions: Sequence[ModelRevision], deployment: str, number: int) -> ModelRevision:
    """Return the revision with this number.

    Raises:
        NotFound: There is none; the message lists what there is.
    """
    for one in revisions:
        if one.spec.revision == number:
            return one
    there = ", ".join(str(one.spec.revision) for one in revisions)
    has = f"it has {there}" if there else "it has none yet"
    raise NotFound(f"unable to find revision {number} in the history of deployment {deployment!r}; {has}")


def previous(revisions: Sequence[ModelRevision], deployment: ModelDeployment) -> ModelRevision:
    """Return what an undo goes back to: the newest revision whose template is not today's.

    Raises:
        FailedPrecondition: There is nothing to go back to.
    """
    for one in reversed(revisions):
        if one.spec.template != deployment.spec.template:
            return one
    name, count = deployment.metadata.name, len(revisions)
    why = (
        "it has no revision yet"
        if not count
        else "its template is that of its only revision"
        if count == 1
        else "no other template is kept"
    )
    raise FailedPrecondition(f"deployment {name!r} has nothing to go back to: {why}")


def _flat(template: Template) -> Iterator[tuple[str, Any]]:
    yield from _members("", template)


def _members(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, msgspec.Struct):
        for field in msgspec.structs.fields(value):
            yield from _members(f"{path}.{field.encode_name}" if path else field.encode_name, getattr(value, field.name))
    elif isinstance(value, dict):
        for key, member in value.items():
            yield from _members(f"{path}[{key}]", member)
    else:
        yield path, value


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
