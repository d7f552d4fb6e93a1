"""`rkfleet scale`: another number of replicas, through the scale subresource."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from rkfleet.cli import completion
from rkfleet.cli.options import Kubeconfig, Namespace, with_client
from rkfleet.errors import BadRequest, Conflict

if TYPE_CHECKING:
    from rkfleet.client import ApiClient
    from rkfleet.meta import Ref

__all__ = ["scale"]

TRIES_MAX: Final = 5  # Every step of a rollout changes the version too; five collisions in a row are no accident.


def scale(
    target: Annotated[
        list[str],
        typer.Argument(help="KIND/NAME..., or KIND NAME...", metavar="TARGET...", autocompletion=completion.targets),
    ],
    *,
    replicas: Annotated[int, typer.Option("--replicas", min=0, help="Wanted replicas.")],
    current_replicas: Annotated[
        int | None, typer.Option("--current-replicas", min=0, help="Only if this many are wanted now.", show_default=False)
    ] = None,
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = None,
) -> None:
    """Change how many replicas are wanted; exit 4 when --current-replicas does not hold."""
    from rkfleet.cli.targets import parse_targets
    from rkfleet.meta import Ref

    targets = parse_targets(target)
    for resource, name in targets:
        if not resource.scale:
            raise BadRequest(f"{resource.singular}/{name} cannot be scaled; kinds with replicas can, such as modeldeployments")

    async def work(client: ApiClient) -> None:
        for resource, name in targets:
            ref = Ref(resource.name, namespace or client.cluster.namespace, name)
            await _scale(client, ref, replicas, current_replicas)
            print(f"{resource.singular}.{resource.group}/{name} scaled", flush=True)

    with_client(kubeconfig, work)


async def _scale(client: ApiClient, ref: Ref, replicas: int, current: int | None) -> None:
    """Write one Scale; with `current` only onto the version of which that was seen to be true."""
    if current is None:
        await client.patch(ref, {"spec": {"replicas": replicas}}, subresource="scale")
        return
    for _ in range(TRIES_MAX):
        found = await client.request("GET", f"{client.path(ref)}/scale")
        wanted = found["spec"].get("replicas", 0)
        if wanted != current:
            raise Conflict(f"{ref}: expected replicas to be {current}, was {wanted}")
        version = {"resourceVersion": found["metadata"]["resourceVersion"]}
        try:
            await client.patch(ref, {"metadata": version, "spec": {"replicas": replicas}}, subresource="scale")
        except Conflict:
            continue
        return
    raise Conflict(f"{ref} was changed by others {TRIES_MAX} times in a row; try again")
