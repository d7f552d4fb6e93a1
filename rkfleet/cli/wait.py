"""`rkfleet wait`: until objects have a condition, a value, or are gone; as `kubectl wait`, also without kubectl.

Source of the forms: Kubernetes `kubectl/pkg/cmd/wait/wait.go`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rkfleet.cli import completion
from rkfleet.cli.options import Kubeconfig, Namespace, timeout_option, with_client
from rkfleet.errors import BadRequest, DeadlineExceeded, NotFound

if TYPE_CHECKING:
    from rkfleet.client import ApiClient
    from rkfleet.kinds import Resource

__all__ = ["Goal", "parse_goal", "wait"]

Json = dict[str, Any]
Goal = Callable[[Json | None], bool]
"""Whether an object as stored, or None for one that is gone, is what was waited for."""

_STEP: Final = re.compile(r"\.(\w+)|\[(\d+)\]|\[\?\(@\.(\w+)\s*==\s*[\"']([^\"']*)[\"']\)\]")


def wait(
    target: Annotated[
        list[str],
        typer.Argument(help="KIND/NAME..., or KIND NAME...", metavar="TARGET...", autocompletion=completion.targets),
    ],
    *,
    goal: Annotated[
        str,
        typer.Option(
            "--for", metavar="GOAL", help="condition=TYPE, condition=TYPE=STATUS, delete, jsonpath={.path}=VALUE or jsonpath={.path}."
        ),
    ],
    timeout_seconds: Annotated[float, timeout_option("How long to wait; 0 looks once.")] = 30.0,
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = None,
) -> None:
    """Wait until every object is as asked; exit 7 when the time is over, 3 when an object is not there."""
    import asyncio

    from rkfleet.cli.targets import parse_targets

    reached = parse_goal(goal)
    targets = parse_targets(target)
    left = {f"{resource.singular}/{name}" for resource, name in targets}

    async def one(client: ApiClient, resource: Resource, name: str) -> None:
        await _wait_for(client, resource, namespace or client.cluster.namespace, name, reached, once=not timeout_seconds)
        left.discard(f"{resource.singular}/{name}")
        print(f"{resource.singular}{f'.{resource.group}' if resource.group else ''}/{name} condition met", flush=True)

    async def work(client: ApiClient) -> None:
        try:
            async with asyncio.timeout(timeout_seconds or None), asyncio.TaskGroup() as group:
                for resource, name in targets:
                    group.create_task(one(client, resource, name))
        except TimeoutError as error:
            what = ", ".join(sorted(left))
            raise DeadlineExceeded(f"timed out after {timeout_seconds:g} s waiting for {goal} of {what}") from error

    with_client(kubeconfig, work)


async def _wait_for(client: ApiClient, resource: Resource, namespace: str, name: str, reached: Goal, *, once: bool) -> None:
    current: Json | None = None
    scope = namespace if resource.namespaced else ""
    async with aclosing(client.follow(resource.name, scope, fields=f"metadata.name={name}")) as steps:
        async for step in steps:
            current = None if step.type == "DELETED" or not step.items else step.items[-1]
            if reached(current):
                return
            if current is None:
                raise NotFound(f"{resource.singular} {name!r} is not there" + (f" in namespace {scope!r}" if scope else ""))
            if once:
                raise DeadlineExceeded(f"{resource.singular} {name!r} is not as asked for now")


def parse_goal(text: str) -> Goal:
    """Read the value of `--for`.

    Raises:
        BadRequest: It is no form that is known.
    """
    form, _, rest = text.partition("=")
    match form:
        case "delete" if not rest:
            return lambda obj: obj is None
        case "condition" if rest:
            type, _, status = rest.partition("=")
            return lambda obj: obj is not None and _has_condition(obj, type, status or "True")
        case "jsonpath" if rest:
            return _parse_path_goal(rest)
    raise BadRequest(f"--for {text!r} must be condition=TYPE, condition=TYPE=STATUS, delete, or jsonpath={{.path}}=VALUE")


def _has_condition(obj: Json, type: str, status: str) -> bool:
    """Return whether the condition is so, and about the spec as it is now."""
    generation = obj["metadata"].get("generation", 0)
    for one in obj.get("status", {}).get("conditions", ()):
        if one["type"].lower() == type.lower():
            current = (one.get("observedGeneration") or generation) >= generation
            return bool(current and one["status"].lower() == status.lower())
    return False


def _parse_path_goal(rest: str) -> Goal:
    path, brace, value = rest.strip("'\"").partition("}")
    inner = path.removeprefix("{")
    if not brace or not path.startswith("{") or not re.fullmatch(rf"(?:{_STEP.pattern})+", inner) or (value and value[0] != "="):
        message = 'must be {.path} or {.path}=VALUE, with .name, [0] and [?(@.key=="value")] as steps'
        raise BadRequest(f"--for {f'jsonpath={rest}'!r} {message}")
    steps = list(_STEP.finditer(inner))
    wanted = value[1:].strip("'\"") if value else None

    def reached(obj: Json | None) -> bool:
        found = _value_at(obj, steps)
        return found is not None if wanted is None else _text(found) == wanted

    return reached


def _value_at(value: Any, steps: list[re.Match[str]]) -> Any:
    for step in steps:
        name, index, key, wanted = step.groups()
        if name is not None:
            value = value.get(name) if isinstance(value, dict) else None
        elif not isinstance(value, list):
            return None
        elif index is not None:
            value = value[int(index)] if int(index) < len(value) else None
        else:
            value = next((one for one in value if isinstance(one, dict) and one.get(key) == wanted), None)
    return value


def _text(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
