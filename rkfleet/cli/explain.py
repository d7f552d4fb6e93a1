"""`rkfleet explain`: why is this not running, in one sentence with one command. What fields mean, `kubectl explain` tells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rkfleet.cli import completion
from rkfleet.cli.options import Format, Kubeconfig, Namespace, Output, with_client
from rkfleet.errors import BadRequest

if TYPE_CHECKING:
    from rkfleet.client import ApiClient
    from rkfleet.explanation import Explanation
    from rkfleet.kinds import Object
    from rkfleet.world import World

__all__ = ["explain"]


def explain(
    target: Annotated[
        list[str],
        typer.Argument(
            help="KIND/NAME, KIND NAME, or a name; it is looked for among deployments, replicas, boards and models, in this order.",
            metavar="TARGET",
            autocompletion=completion.targets,
        ),
    ],
    *,
    namespace: Namespace = "",
    output: Output = Format.table,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Say why something is not running: one sentence from the object to its root cause, and one command that helps.

    Exit 0 when all is well or gets there by itself, 1 when it waits for somebody.
    """
    from rkfleet import explanation
    from rkfleet.cli import render
    from rkfleet.cli.following import look
    from rkfleet.clock import SystemClock

    async def work(client: ApiClient) -> tuple[Object, Explanation]:
        world = (await look(client)).world(SystemClock())
        obj = _find(world, namespace or client.cluster.namespace, target)
        return obj, explanation.explain(obj, world)

    obj, found = with_client(kubeconfig, work)
    if output is not Format.table:
        import msgspec

        about = {"kind": obj.resource.kind, "namespace": obj.metadata.namespace, "name": obj.metadata.name}
        render.print_object({**about, **msgspec.to_builtins(found)}, output)
    else:
        print(found.sentence)
        if found.command:
            print(f"{'try' if found.verdict == 'NeedsHelp' else 'see'}: {found.command}")
    if found.verdict == "NeedsHelp":
        raise typer.Exit(1)


def _find(world: World, namespace: str, words: list[str]) -> Object:
    from rkfleet.cli.targets import parse_targets
    from rkfleet.world import EXPLAINED, find_named

    if len(words) == 1 and "/" not in words[0]:
        return find_named(world, namespace, words[0])
    targets = parse_targets(words)
    if len(targets) > 1:
        raise BadRequest(f"{' '.join(words)!r} names {len(targets)} objects; explain takes one")
    resource, name = targets[0]
    kinds = [kind for kind in EXPLAINED if kind.resource == resource]
    if not kinds:
        known = ", ".join(kind.resource.plural for kind in EXPLAINED)
        raise BadRequest(f"{resource.plural} run nothing; what can be explained are {known}")
    return find_named(world, namespace, name, kinds)
