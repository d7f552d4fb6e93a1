"""`rkfleet logs`: what a worker or an agent wrote, from the board it runs on; also as it comes.

The controller asks the board over its session, so nothing has to be reachable but the API. Lines go to standard output as they are; what
there is to say about them (a replica that has no log) goes to standard error.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rkfleet.cli.options import Kubeconfig, Namespace, with_client
from rkfleet.errors import BadRequest, FleetError, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rkfleet.client import ApiClient

__all__ = ["Target", "log_query", "logs", "parse_seconds", "parse_target", "print_logs"]

LOGS_AT_ONCE_MAX: Final = 10  # A person does not read more; the controller lets all readers together open 64.
UNITS: Final = {"d": 86400, "h": 3600, "m": 60, "s": 1}

Target = tuple[str, str]
"""What is asked for: replica, deployment or board, and its name."""


def logs(
    target: Annotated[str, typer.Argument(help="REPLICA, deployment/NAME or board/NAME.", metavar="TARGET")],
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come; Ctrl-C ends it.")] = False,
    tail: Annotated[int, typer.Option("--tail", help="Only so many lines, the last ones; -1 for all that the board keeps.")] = -1,
    since: Annotated[str, typer.Option("--since", help="Only lines that are no older: 30s, 5m, 1h30m.")] = "",
    previous: Annotated[bool, typer.Option("--previous", "-p", help="The worker's run before the newest.")] = False,
    run: Annotated[int, typer.Option("--run", help="The worker's run with this number; the log names them.", show_default=False)] = 0,
    timestamps: Annotated[bool, typer.Option("--timestamps", help="Begin each line with its time.")] = False,
    agent: Annotated[bool, typer.Option("--agent", help="The log of the agent on the replica's board.")] = False,
    namespace: Namespace = "",
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the log of a replica's worker, of all replicas of a deployment, or of a board's agent."""
    asked = parse_target(target)
    source = "agent" if agent else ""
    query = log_query(follow=follow, tail=tail, since=since, previous=previous, run=run, timestamps=timestamps, source=source)

    async def work(client: ApiClient) -> None:
        await print_logs(client, asked, namespace or client.cluster.namespace, query, say=_say, complain=_complain)

    try:
        with_client(kubeconfig, work)
    except KeyboardInterrupt:  # the way in which a person ends a log that is followed
        raise typer.Exit from None


def parse_target(text: str) -> Target:
    """Read `NAME`, `replica/NAME`, `deployment/NAME` or `board/NAME`; kinds also by their other names.

    Raises:
        BadRequest: The kind has no logs.
    """
    from rkfleet.cli.kind_words import find_resource

    word, slash, name = text.rpartition("/")
    if not slash:
        return "replica", text
    kind = find_resource(word).kind
    names = {"Replica": "replica", "ModelDeployment": "deployment", "Board": "board"}
    if kind not in names or not name:
        raise BadRequest(f"{text!r} has no logs; name a REPLICA, deployment/NAME or board/NAME")
    return names[kind], name


def parse_seconds(text: str) -> int:
    """Read a duration such as `30s`, `5m` or `1h30m`; a bare number is seconds.

    Raises:
        BadRequest: It is none.
    """
    import re

    parts = re.fullmatch(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s?)?", text)
    if not text or parts is None:
        raise BadRequest(f"{text!r} is not a duration such as 30s, 5m or 1h30m")
    return sum(int(number or 0) * seconds for number, seconds in zip(parts.groups(), UNITS.values(), strict=True))


def log_query(
    *, follow: bool, tail: int, since: str, previous: bool, run: int, timestamps: bool, source: str
) -> Mapping[str, str]:  # fmt: skip
    """Return the parameters of the request.

    Raises:
        BadRequest: A value cannot be read, or two contradict each other.
    """
    if tail < -1 or run < 0:
        raise BadRequest(f"--tail is {tail} and --run is {run}; --tail must be -1 or more, --run 0 or more")
    if previous and run:
        raise BadRequest("--previous and --run name two runs; leave one out")
    query = {
        "follow": "true" if follow else "",
        "tailLines": str(tail) if tail >= 0 else "",
        "sinceSeconds": str(max(1, parse_seconds(since))) if since else "",
        "previous": "true" if previous else "",
        "run": str(run) if run else "",
        "timestamps": "true" if timestamps else "",
        "source": source,
    }
    return {name: value for name, value in query.items() if value}


async def print_logs(
    client: ApiClient,
    target: Target,
    namespace: str,
    query: Mapping[str, str],
    *,
    say: Callable[[str], None],
    complain: Callable[[str], None],
) -> None:
    """Print every log that the target means until each has ended.

    Raises:
        NotFound: There is no such object, or the deployment has no replicas.
        BadRequest: More logs than a person can read at once.
        FleetError: The only log cannot be read, or none of several can.
    """
    import asyncio

    kind, name = target
    if kind != "deployment":
        await _print_one(client, _path(client, kind, namespace, name), query, say)
        return
    replicas = await _replicas_of(client, namespace, name)
    failures: list[FleetError] = []

    async def print_replica(replica: str) -> None:
        try:
            await _print_one(client, _path(client, "replica", namespace, replica), query, lambda line: say(f"[{replica}] {line}"))
        except FleetError as error:
            failures.append(error)
            complain(f"[{replica}] {error.message}")

    async with asyncio.TaskGroup() as tasks:
        for replica in replicas:
            tasks.create_task(print_replica(replica))
    if len(failures) == len(replicas):
        raise failures[0]


async def _print_one(client: ApiClient, path: str, query: Mapping[str, str], say: Callable[[str], None]) -> None:
    async for line in client.stream_text(f"{path}/log", query):
        say(line)


async def _replicas_of(client: ApiClient, namespace: str, name: str) -> Sequence[str]:
    from rkfleet.kinds import ModelDeployment, Replica
    from rkfleet.meta import Ref

    await client.get(Ref(ModelDeployment.resource.name, namespace, name))
    listing = await client.list(Replica.resource.name, namespace)
    names = [str(item["metadata"]["name"]) for item in listing.items if item["spec"]["deploymentName"] == name]
    if not names:
        raise NotFound(f"deployment {name} has no replicas; see why: rkfleet describe modeldeployment {name}")
    if len(names) > LOGS_AT_ONCE_MAX:
        some = ", ".join(names[:3])
        raise BadRequest(f"deployment {name} has {len(names)} replicas, at most {LOGS_AT_ONCE_MAX} are read at once; name one: {some}, ...")
    return names


def _path(client: ApiClient, kind: str, namespace: str, name: str) -> str:
    from rkfleet.kinds import Board, Replica
    from rkfleet.meta import Ref

    board = Ref(Board.resource.name, "", name)
    return client.path(board if kind == "board" else Ref(Replica.resource.name, namespace, name))


def _say(line: str) -> None:
    print(line, flush=True)


def _complain(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
