"""Shell completion: the script that a shell reads, and the words that it asks for.

The script is typer's; it runs `rkfleet` again for each <Tab> with what was typed in the environment. Kinds are known here; names of
objects are asked from the cluster that the typed flags choose, for a moment at most, and when there is none the shell completes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

import typer

__all__ = ["boards", "completion", "deployments", "kinds_or_targets", "names", "replicas", "targets"]

COMPLETION_SECONDS_MAX: Final = 1.5  # A person who pressed <Tab> waits no longer.
NAMES_MAX: Final = 500  # One page; nobody reads more, and more typed letters do not help the server to choose.
PROGRAM: Final = "rkfleet"


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="Shell to write the script for.")],
) -> None:
    """Print the completion script of a shell: `source <(rkfleet completion bash)`, or `rkfleet completion fish | source`."""
    from typer import completion as scripts

    # typer has no other door to its scripts.
    script = scripts.get_completion_script(prog_name=PROGRAM, complete_var=f"_{PROGRAM.upper()}_COMPLETE", shell=shell)  # type: ignore[attr-defined]
    print(script)


def kinds_or_targets(context: typer.Context, incomplete: str) -> list[str]:
    """Return kinds, by plural name, and after a slash `KIND/NAME`."""
    from rkfleet.kinds import KINDS

    if "/" in incomplete:
        return targets(context, incomplete)
    return _matching((kind.resource.plural for kind in KINDS), incomplete)


def names(context: typer.Context, incomplete: str) -> list[str]:
    """Return names of the kind that was typed before."""
    return _matching(_names(context, str(context.params.get("kind") or "")), incomplete)


def targets(context: typer.Context, incomplete: str) -> list[str]:
    """Return `KIND/`, and once a kind was typed `KIND/NAME`."""
    from rkfleet.kinds import KINDS

    kind, slash, _ = incomplete.partition("/")
    if slash:
        return _matching((f"{kind}/{name}" for name in _names(context, kind)), incomplete)
    return _matching((f"{one.resource.singular}/" for one in KINDS), incomplete)


def boards(context: typer.Context, incomplete: str) -> list[str]:
    """Return names of Boards."""
    return _matching(_names(context, "board"), incomplete)


def deployments(context: typer.Context, incomplete: str) -> list[str]:
    """Return names of ModelDeployments."""
    return _matching(_names(context, "modeldeployment"), incomplete)


def replicas(context: typer.Context, incomplete: str) -> list[str]:
    """Return names of Replicas."""
    return _matching(_names(context, "replica"), incomplete)


def _matching(words: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


def _names(context: typer.Context, kind: str) -> list[str]:
    """Return the names of a kind in the chosen cluster; none when it does not answer in time."""
    import asyncio

    from rkfleet.cli.kind_words import find_resource
    from rkfleet.cli.options import with_client
    from rkfleet.errors import FleetError
    from rkfleet.meta import Ref

    async def ask(client: Any) -> list[str]:
        resource = find_resource(kind)
        everywhere = context.params.get("all_namespaces") or not resource.namespaced
        namespace = "" if everywhere else str(context.params.get("namespace") or client.cluster.namespace)
        async with asyncio.timeout(COMPLETION_SECONDS_MAX):
            page = await client.request("GET", client.path(Ref(resource.name, namespace, "")), query={"limit": str(NAMES_MAX)})
        return [one["metadata"]["name"] for one in page["items"]]

    try:
        return with_client(context.params.get("kubeconfig"), ask)
    except (FleetError, TimeoutError, OSError):
        return []
