"""`rkfleet events`: what happened, the newest last."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rkfleet.cli import completion
from rkfleet.cli.options import AllNamespaces, Format, Kubeconfig, Namespace, Output, Watch, with_client
from rkfleet.errors import BadRequest

if TYPE_CHECKING:
    from datetime import datetime

    from rkfleet.cli import live
    from rkfleet.client import ApiClient
    from rkfleet.kinds import Event

__all__ = ["chosen_events", "event_row", "events"]

HEADS: Final = ("LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE")
TYPES: Final = ("Normal", "Warning")


def events(
    *,
    about: Annotated[
        str, typer.Option("--for", metavar="KIND/NAME", help="Only about this object.", autocompletion=completion.targets)
    ] = "",
    types: Annotated[str, typer.Option("--types", help="Only of these types, comma-separated: Normal, Warning.")] = "",
    namespace: Namespace = "",
    all_namespaces: AllNamespaces = False,
    output: Output = Format.table,
    watch: Watch = False,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show what happened in the last hour or so, the newest last; events of boards are in the namespace default."""
    from rkfleet.cli import live, render
    from rkfleet.cli.following import Following, Wanted, following, look
    from rkfleet.clock import SystemClock
    from rkfleet.kinds import Event

    wanted_types = _parse_types(types)
    clock = SystemClock()

    def collection(client: ApiClient) -> Wanted:
        space, fields = _selection(about, namespace or client.cluster.namespace)
        return Wanted(Event, "" if all_namespaces else space, fields)

    def rows(found: Following) -> dict[str, live.Row]:
        chosen = chosen_events(found.all(Event).values(), wanted_types)
        return {one.metadata.uid: event_row(one, clock.now(), namespace=all_namespaces) for one in chosen}

    heads = ("NAMESPACE", *HEADS) if all_namespaces else HEADS
    if watch:
        if output is not Format.table:
            raise BadRequest(f"--watch shows a table, not --output {output}")

        table = live.Table(HEADS[0], newest_last=True)

        async def updates(client: ApiClient) -> AsyncGenerator[live.Update]:
            async with following(client, [collection(client)], table.outage) as found:
                while True:
                    await found.changed()
                    yield live.Update(rows(found), heads)

        live.watch(kubeconfig, updates, table)
        return
    found = with_client(kubeconfig, lambda client: look(client, [collection(client)]))
    if output is not Format.table:
        import msgspec

        items = [msgspec.to_builtins(one) for one in chosen_events(found.all(Event).values(), wanted_types)]
        render.print_object({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items}, output)
        return
    render.print_rows(heads, [row.cells for row in rows(found).values()])


def chosen_events(found: Iterable[Event], types: frozenset[str] = frozenset()) -> list[Event]:
    """Return events of these types (empty: of every type), the newest last."""
    return sorted((one for one in found if not types or one.type in types), key=lambda one: (_last_seen(one), one.metadata.name))


def event_row(event: Event, now: datetime, *, namespace: bool = False) -> live.Row:
    """Return one event as a row; its age is made when it is drawn, except where it happened more than once."""
    from rkfleet.cli.live import Row
    from rkfleet.clock import human_duration, parse_time

    about = event.involved_object
    seen, first = _last_seen(event), event.first_timestamp
    age = human_duration((now - parse_time(seen)).total_seconds()) if seen else "unknown"
    often = event.count > 1 and first
    if often:
        age = f"{age} (x{event.count} over {human_duration((now - parse_time(first)).total_seconds())})"
    cells = (age, event.type, event.reason, f"{about.kind.lower()}/{about.name}", event.message.strip())
    spaced = (event.metadata.namespace, *cells) if namespace else cells
    return Row(spaced, version=event.metadata.resource_version, since="" if often else seen)


def _last_seen(event: Event) -> str:
    return event.last_timestamp or event.event_time or event.first_timestamp


def _parse_types(text: str) -> frozenset[str]:
    """Read `Warning` or `normal,warning`.

    Raises:
        BadRequest: A type is neither.
    """
    known = {one.lower(): one for one in TYPES}
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word.lower() not in known:
            raise BadRequest(f"--types {word!r} must be Normal or Warning")
    return frozenset(known[word.lower()] for word in words)


def _selection(about: str, namespace: str) -> tuple[str, str]:
    """Return the namespace and the field selector of the events about an object; of a cluster-scoped one they may be in any."""
    from rkfleet.cli.targets import parse_targets

    if not about:
        return namespace, ""
    if "/" not in about:
        raise BadRequest(f"--for {about!r} must be KIND/NAME, for example board/rk3588-1")
    resource, name = parse_targets([about])[0]
    fields = f"involvedObject.kind={resource.kind},involvedObject.name={name}"
    return (namespace if resource.namespaced else ""), fields
