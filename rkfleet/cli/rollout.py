"""`rkfleet rollout status`: how far a deployment is, live, until it is there or stuck."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rkfleet.cli.options import Kubeconfig, Namespace, with_client
from rkfleet.errors import DeadlineExceeded, FailedPrecondition

if TYPE_CHECKING:
    from collections.abc import Callable

    from rkfleet.client import ApiClient
    from rkfleet.kinds import ModelDeployment

__all__ = ["app", "follow_rollout", "progress_sentence"]

app = typer.Typer(help="Rollouts of a deployment.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Rollouts of a deployment."""


@app.command("status")
def status(
    name: Annotated[str, typer.Argument(help="Name of the ModelDeployment.")],
    *,
    namespace: Namespace = "",
    timeout_seconds: Annotated[float, typer.Option("--timeout", help="Seconds to wait; 0 shows the state and ends.")] = 600.0,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show a rollout until it is complete; exit 1 when it is stuck, 7 when the time is over."""

    async def work(client: ApiClient) -> None:
        await follow_rollout(client, namespace or client.cluster.namespace, name, timeout_seconds, _say)

    with_client(kubeconfig, work)


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

    import msgspec

    from rkfleet.kinds import ModelDeployment
    from rkfleet.meta import Ref

    resource = ModelDeployment.resource.name
    current = msgspec.convert(await client.get(Ref(resource, namespace, name)), ModelDeployment)
    said = ""
    try:
        async with asyncio.timeout(timeout_seconds or None):
            async for step in client.follow(resource, namespace, fields=f"metadata.name={name}"):
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
