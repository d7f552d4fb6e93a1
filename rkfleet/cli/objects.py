"""`rkfleet get`, `describe` and `delete`: objects of any kind, by plural, singular, short name or kind."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rkfleet.cli import completion
from rkfleet.cli.kind_words import find_resource
from rkfleet.cli.options import AllNamespaces, Format, Kubeconfig, Namespace, Output, Watch, with_client
from rkfleet.errors import BadRequest

if TYPE_CHECKING:
    from rkfleet.client import ApiClient
    from rkfleet.kinds import Resource

__all__ = ["delete", "describe", "get"]

KindArgument = Annotated[
    str,
    typer.Argument(
        help="Kind: boards, models, modeldeployments, replicas, ...; short names work. Also KIND/NAME.",
        autocompletion=completion.kinds_or_targets,
    ),
]


def split_name(kind: str, name: str) -> tuple[str, str]:
    """Return kind and name of `KIND NAME` or `KIND/NAME`.

    Raises:
        BadRequest: Both were given.
    """
    before, slash, after = kind.partition("/")
    if not slash:
        return kind, name
    if name or not after:
        raise BadRequest(f"{' '.join(filter(None, (kind, name)))!r} must be KIND NAME or KIND/NAME")
    return before, after


def _without_object(cells: Sequence[str]) -> list[str]:
    """Return the cells of an event without what it is about, which is clear."""
    return [*cells[:3], *cells[4:]]


def get(
    kind: KindArgument,
    name: Annotated[str, typer.Argument(help="Name; all when left out.", autocompletion=completion.names)] = "",
    *,
    namespace: Namespace = "",
    all_namespaces: AllNamespaces = False,
    selector: Annotated[str, typer.Option("--selector", "-l", help="Label selector, for example rkfleet.dev/soc=rk3588.")] = "",
    wide: Annotated[bool, typer.Option("--wide", help="All columns.")] = False,
    output: Output = Format.table,
    watch: Watch = False,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show objects."""
    from rkfleet.cli import render

    kind, name = split_name(kind, name)
    resource = find_resource(kind)
    if name and (all_namespaces or selector):
        raise BadRequest("a name goes with neither --all-namespaces nor --selector")
    if watch:
        if output is not Format.table:
            raise BadRequest(f"--watch shows a table, not --output {output}; for objects use kubectl get -w -o {output}")
        _watch(
            resource, name, "" if all_namespaces else namespace, selector, all_namespaces=all_namespaces, wide=wide, kubeconfig=kubeconfig
        )
        return

    async def work(client: ApiClient) -> Any:
        from rkfleet.client import TABLE

        path = _path(client, resource, "" if all_namespaces else namespace or client.cluster.namespace, name)
        accept = TABLE if output is Format.table else "application/json"
        return await client.request("GET", path, query={"labelSelector": selector} if selector else None, accept=accept)

    answer = with_client(kubeconfig, work)
    if output is Format.table:
        render.print_table(answer, wide=wide, namespace=all_namespaces and resource.namespaced)
    else:
        render.print_object(answer, output)


def _watch(
    resource: Resource, name: str, namespace: str, selector: str, *, all_namespaces: bool, wide: bool, kubeconfig: Path | None
) -> None:
    """Show the table of `get` until it is interrupted."""
    from rkfleet.cli import live
    from rkfleet.cli.tables import TableReader
    from rkfleet.meta import Ref

    table = live.Table()

    async def updates(client: ApiClient) -> AsyncGenerator[live.Update]:
        scope = "" if all_namespaces or not resource.namespaced else namespace or client.cluster.namespace
        if name:
            await client.get(Ref(resource.name, scope, name))  # What is not there is told, not waited for.
        fields = f"metadata.name={name}" if name else ""
        reader = TableReader(wide=wide, namespace=all_namespaces and resource.namespaced)
        async with aclosing(client.follow(resource.name, scope, labels=selector, fields=fields, table=True, trouble=table.outage)) as steps:
            async for step in steps:
                yield reader.update(step)

    live.watch(kubeconfig, updates, table)


def describe(
    kind: KindArgument,
    name: Annotated[str, typer.Argument(help="Name of the object, unless KIND/NAME was given.", autocompletion=completion.names)] = "",
    *,
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show one object with its conditions and its events, the newest last."""
    import msgspec

    from rkfleet.cli import render
    from rkfleet.cli.events import HEADS, chosen_events, event_row
    from rkfleet.clock import SystemClock
    from rkfleet.kinds import Event

    kind, name = split_name(kind, name)
    resource, now = find_resource(kind), SystemClock().now()
    if not name:
        raise BadRequest(f"{kind!r} names a kind and no object; write {kind} NAME or {kind}/NAME")

    async def work(client: ApiClient) -> tuple[Any, Any]:
        found = await client.request("GET", _path(client, resource, namespace or client.cluster.namespace, name))
        query = {"fieldSelector": f"involvedObject.uid={found['metadata']['uid']}"}
        return found, await client.request("GET", "/api/v1/events", query=query)

    found, events = with_client(kubeconfig, work)
    conditions = found.get("status", {}).pop("conditions", [])
    found["metadata"].pop("managedFields", None)
    render.print_yaml(found)
    if conditions:
        print("\nConditions:")
        rows = [[one["type"], one["status"], one["reason"], one.get("message", "")] for one in conditions]
        render.print_rows(["TYPE", "STATUS", "REASON", "MESSAGE"], rows)
    if events["items"]:
        print("\nEvents:")
        rows = [_without_object(event_row(one, now).cells) for one in chosen_events(msgspec.convert(events["items"], list[Event]))]
        render.print_rows(_without_object(HEADS), rows)


def delete(
    kind: KindArgument,
    name: Annotated[str, typer.Argument(help="Name of the object, unless KIND/NAME was given.", autocompletion=completion.names)] = "",
    *,
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = None,
) -> None:
    """Delete an object; what it owns is deleted after it."""
    kind, name = split_name(kind, name)
    resource = find_resource(kind)
    if not name:
        raise BadRequest(f"{kind!r} names a kind and no object; write {kind} NAME or {kind}/NAME")

    async def work(client: ApiClient) -> Any:
        path = _path(client, resource, namespace or client.cluster.namespace, name)
        return await client.request("DELETE", path, body={"propagationPolicy": "Background"})

    with_client(kubeconfig, work)
    print(f"{resource.singular}.{resource.group}/{name} deleted" if resource.group else f"{resource.singular}/{name} deleted")


def _path(client: ApiClient, resource: Resource, namespace: str, name: str) -> str:
    from rkfleet.meta import Ref

    return client.path(Ref(resource.name, namespace if resource.namespaced else "", name))
