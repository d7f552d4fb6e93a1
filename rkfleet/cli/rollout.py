"""`rkfleet rollout`: how far a deployment is, what it was before, and going back, pausing, resuming, restarting.

Words are those of `kubectl rollout`, which does not know our kinds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from rkfleet.cli import completion
from rkfleet.cli.options import Format, Kubeconfig, Namespace, Output, timeout_option, with_client
from rkfleet.errors import Conflict, DeadlineExceeded, FailedPrecondition, Invalid, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rkfleet.client import ApiClient
    from rkfleet.kinds import ModelDeployment, ModelRevision
    from rkfleet.meta import Ref

__all__ = ["app", "follow_rollout", "progress_sentence"]

Json = dict[str, Any]
Name = Annotated[str, typer.Argument(help="Name of the ModelDeployment.", autocompletion=completion.deployments)]

app = typer.Typer(help="Rollouts of a deployment.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Rollouts of a deployment."""


@app.command("status")
def status(
    name: Name,
    *,
    namespace: Namespace = "",
    timeout_seconds: Annotated[float, timeout_option("How long to wait; 0 shows the state and ends.")] = 600.0,
    watch: Annotated[bool, typer.Option("--watch/--no-watch", help="Wait for the end, or show the state and end.")] = True,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show a rollout until it is complete; exit 1 when it is stuck, 7 when the time is over."""

    async def work(client: ApiClient) -> None:
        await follow_rollout(client, namespace or client.cluster.namespace, name, timeout_seconds if watch else 0.0, _say)

    with_client(kubeconfig, work)


@app.command("history")
def history(
    name: Name,
    *,
    namespace: Namespace = "",
    revision: Annotated[int, typer.Option("--revision", min=0, help="Show this revision whole; 0 lists all.")] = 0,
    output: Output = Format.table,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show the revisions of a deployment: which is current, and what each changed."""
    from rkfleet.cli import render, revisions

    stored, objects = with_client(kubeconfig, lambda client: _read_history(client, namespace or client.cluster.namespace, name))
    deployment, kept = _decoded(stored, objects)
    by_name = {one["metadata"]["name"]: one for one in objects}
    if revision:
        found = by_name[revisions.find_number(kept, name, revision).metadata.name]
        if output is Format.table:
            print(f"{_shown(name)} with revision #{revision}")
            render.print_yaml({"template": found["spec"]["template"]})
        else:
            render.print_object(found, output)
        return
    if output is not Format.table:
        listed = {"apiVersion": "v1", "kind": "List", "metadata": {}, "items": [by_name[one.metadata.name] for one in kept]}
        render.print_object(listed, output)
        return
    print(_shown(name))
    render.print_rows(["REVISION", "STATE", "NAME", "MODEL", "CREATED", "CHANGED"], _history_rows(deployment, kept))


@app.command("undo")
def undo(
    name: Name,
    *,
    namespace: Namespace = "",
    to_revision: Annotated[int, typer.Option("--to-revision", min=0, help="Number in the history; 0 is the one before.")] = 0,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Go back to the template of an earlier revision; it is rolled out like any change."""
    from rkfleet.cli import revisions

    async def work(client: ApiClient) -> str:
        stored, objects = await _read_history(client, namespace or client.cluster.namespace, name)
        deployment, kept = _decoded(stored, objects)
        if deployment.spec.paused:
            first = f"resume it first with `rkfleet rollout resume {name} -n {deployment.metadata.namespace}` and try again"
            raise FailedPrecondition(f"you cannot roll back the paused deployment {name!r}; {first}")
        target = revisions.find_number(kept, name, to_revision) if to_revision else revisions.previous(kept, deployment)
        if target.spec.template == deployment.spec.template:
            return f"skipped rollback (current template already matches revision {target.spec.revision})"
        await _require_model(client, target)
        template = next(one["spec"]["template"] for one in objects if one["metadata"]["name"] == target.metadata.name)
        await _replace(client, deployment, [{"op": "replace", "path": "/spec/template", "value": template}])
        return "rolled back"

    print(f"{_shown(name)} {with_client(kubeconfig, work)}")


@app.command("pause")
def pause(name: Name, *, namespace: Namespace = "", kubeconfig: Kubeconfig = None) -> None:
    """Start no new revision until `resume`; what serves goes on, scaling too."""
    print(f"{_shown(name)} {_set_paused(kubeconfig, namespace, name, paused=True)}")


@app.command("resume")
def resume(name: Name, *, namespace: Namespace = "", kubeconfig: Kubeconfig = None) -> None:
    """Roll out again what the template says."""
    print(f"{_shown(name)} {_set_paused(kubeconfig, namespace, name, paused=False)}")


@app.command("restart")
def restart(name: Name, *, namespace: Namespace = "", kubeconfig: Kubeconfig = None) -> None:
    """Replace every replica by a new one, as guarded as any rollout: the template gets an annotation with the time."""
    from rkfleet.cli.revisions import RESTARTED_AT
    from rkfleet.clock import SystemClock, format_time

    async def work(client: ApiClient) -> None:
        deployment = _decode(await client.get(_ref(namespace or client.cluster.namespace, name)))
        if deployment.spec.paused:
            first = f"resume it first with `rkfleet rollout resume {name} -n {deployment.metadata.namespace}`"
            raise FailedPrecondition(f"can't restart the paused deployment {name!r}; {first}")
        now = format_time(SystemClock().now())
        if deployment.spec.template.metadata.annotations.get(RESTARTED_AT) == now:
            raise FailedPrecondition(f"deployment {name!r} was restarted within the past second; wait before doing it again")
        await client.patch(deployment.ref, {"spec": {"template": {"metadata": {"annotations": {RESTARTED_AT: now}}}}})

    with_client(kubeconfig, work)
    print(f"{_shown(name)} restarted")


def _set_paused(kubeconfig: Path | None, namespace: str, name: str, *, paused: bool) -> str:
    word = "paused" if paused else "resumed"

    async def work(client: ApiClient) -> str:
        ref = _ref(namespace or client.cluster.namespace, name)
        if _decode(await client.get(ref)).spec.paused == paused:
            return f"already {word}"
        await client.patch(ref, {"spec": {"paused": paused}})
        return word

    return with_client(kubeconfig, work)


def _ref(namespace: str, name: str) -> Ref:
    from rkfleet.kinds import ModelDeployment
    from rkfleet.meta import Ref

    return Ref(ModelDeployment.resource.name, namespace, name)


def _shown(name: str) -> str:
    return f"modeldeployment.rkfleet.dev/{name}"


def _decode(obj: Json) -> ModelDeployment:
    import msgspec

    from rkfleet.kinds import ModelDeployment

    return msgspec.convert(obj, ModelDeployment)


async def _read_history(client: ApiClient, namespace: str, name: str) -> tuple[Json, tuple[Json, ...]]:
    """Return a deployment and the revisions with its label, as stored."""
    from rkfleet.kinds import ModelRevision
    from rkfleet.meta import LABEL_DEPLOYMENT

    stored = await client.get(_ref(namespace, name))
    return stored, (await client.list(ModelRevision.resource.name, namespace, labels=f"{LABEL_DEPLOYMENT}={name}")).items


def _decoded(stored: Json, objects: tuple[Json, ...]) -> tuple[ModelDeployment, tuple[ModelRevision, ...]]:
    import msgspec

    from rkfleet.cli import revisions
    from rkfleet.kinds import ModelRevision

    deployment = _decode(stored)
    return deployment, revisions.history(deployment, msgspec.convert(objects, tuple[ModelRevision, ...]))


def _history_rows(deployment: ModelDeployment, kept: tuple[ModelRevision, ...]) -> list[list[str]]:
    from rkfleet.cli import revisions

    before = (None, *kept[:-1])
    return [
        [
            str(one.spec.revision),
            revisions.state_of(one, deployment),
            one.metadata.name,
            one.spec.template.model,
            one.metadata.creation_timestamp,
            "; ".join(revisions.changes(older, one)),
        ]
        for older, one in zip(before, kept, strict=True)
    ]


async def _require_model(client: ApiClient, target: ModelRevision) -> None:
    """Refuse to go back to a revision whose Model is gone: nothing could be started from it.

    Raises:
        FailedPrecondition: The Model does not exist any more.
    """
    from rkfleet.kinds import Model
    from rkfleet.meta import Ref

    namespace, model = target.metadata.namespace, target.spec.template.model
    try:
        await client.get(Ref(Model.resource.name, namespace, model))
    except NotFound as error:
        number = target.spec.revision
        raise FailedPrecondition(f"revision {number} runs model {model!r}, which does not exist in {namespace!r} any more") from error


async def _replace(client: ApiClient, deployment: ModelDeployment, operations: list[Json]) -> None:
    """Change a deployment if its spec is still the one that was read.

    Raises:
        Conflict: Somebody else changed it meanwhile.
    """
    same = {"op": "test", "path": "/metadata/generation", "value": deployment.metadata.generation}
    try:
        await client.patch(deployment.ref, [same, *operations])
    except Invalid as error:
        if "test failed" not in error.message:
            raise
        raise Conflict(f"deployment {deployment.metadata.name!r} was changed by somebody else meanwhile; look and try again") from error


def _say(sentence: str) -> None:
    print(sentence, flush=True)


async def follow_rollout(client: ApiClient, namespace: str, name: str, timeout_seconds: float, say: Callable[[str], None]) -> None:
    """Report every change of a rollout until it is complete.

    Raises:
        NotFound: There is no such deployment.
        FailedPrecondition: It is stuck (progress deadline exceeded, or a surge that no board can hold).
        DeadlineExceeded: `timeout_seconds` passed.
    """
    import asyncio
    from contextlib import aclosing

    import msgspec

    from rkfleet.kinds import ModelDeployment
    from rkfleet.meta import Ref

    resource = ModelDeployment.resource.name
    current = msgspec.convert(await client.get(Ref(resource, namespace, name)), ModelDeployment)
    said = ""
    try:
        steps = client.follow(resource, namespace, fields=f"metadata.name={name}")
        async with asyncio.timeout(timeout_seconds or None), aclosing(steps):
            async for step in steps:
                for obj in step.items:
                    current = msgspec.convert(obj, ModelDeployment)
                sentence, done = progress_sentence(current)
                if sentence != said:
                    say(sentence)
                    said = sentence
                if done or not timeout_seconds:
                    return
    except TimeoutError as error:
        raise DeadlineExceeded(f"deployment {name!r} did not complete within {timeout_seconds:.0f} s: {said}") from error


def progress_sentence(deployment: ModelDeployment) -> tuple[str, bool]:
    """Return what there is to say about a rollout, and whether it is complete.

    Raises:
        FailedPrecondition: It is stuck.
    """
    from rkfleet import conditions

    name, spec, status = deployment.metadata.name, deployment.spec, deployment.status
    if status.observed_generation < deployment.metadata.generation:
        return f"deployment {name!r}: waiting for the controller to see generation {deployment.metadata.generation}", False
    progressing = conditions.find(status.conditions, conditions.PROGRESSING)
    stuck = {conditions.PROGRESS_DEADLINE_EXCEEDED, conditions.SURGE_IMPOSSIBLE}
    if progressing is not None and progressing.status == "False" and progressing.reason in stuck:
        raise FailedPrecondition(f"deployment {name!r} is stuck: {progressing.message}")
    counts = f"{status.updated_replicas} of {spec.replicas} updated, {status.available_replicas} available"
    if progressing is not None and progressing.reason == conditions.ROLLOUT_COMPLETE:
        return f"deployment {name!r} is rolled out: {counts}, revision {status.update_revision}", True
    message = progressing.message if progressing is not None else ""
    _, waits, what = message.partition("; waits for ")  # What stands before it are the counts again.
    why = f"{waits}{what}" if waits else f"; {message}" if message else ""
    return f"deployment {name!r}: {counts}{why}", False
