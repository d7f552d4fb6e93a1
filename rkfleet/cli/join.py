"""`rkfleet join-token create` and `rkfleet kubeconfig`: how boards, gateways and people get in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rkfleet.cli.options import Format, Kubeconfig, Output, with_client

if TYPE_CHECKING:
    from rkfleet.client import ApiClient

__all__ = ["app", "kubeconfig"]

app = typer.Typer(help="Join tokens: how boards and gateways get in.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Join tokens: how boards and gateways get in."""


@app.command("create")
def create(
    role: Annotated[Literal["board", "gateway"], typer.Option(help="What may join with it.")] = "board",
    name: Annotated[str, typer.Option(help="Name of the board in the printed command.")] = "NAME",
    *,
    token_file: Annotated[
        Path | None,
        typer.Option(help="Write token and pin to this file, for --token-file of agent and gateway; a file that is there is kept."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="With --token-file: make a new token for a file that is there.")] = False,
    output: Output = Format.table,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Make a one-time token and print the command that joins with it."""
    from rkfleet.cli import render
    from rkfleet.enrolment import JOIN_TOKENS_PATH

    if token_file is not None and token_file.exists() and not replace:
        print(f"{token_file} is there already; a new token: --replace")
        return

    async def work(client: ApiClient) -> tuple[Any, str]:
        answer = await client.request("POST", JOIN_TOKENS_PATH, body={"role": role})
        return answer, client.cluster.server

    answer, server = with_client(kubeconfig, work)
    if token_file is not None:
        _write(token_file, answer)
    elif output is not Format.table:
        render.print_object(answer, output)
        return
    words = ["rkfleet", "agent" if role == "board" else "gateway", "run", "--controller", server]
    words += ["--token-file", str(token_file)] if token_file else ["--token", answer["token"], "--ca-pin", answer["caPin"]]
    words += ["--name", name, "--data-dir", "/var/lib/rkfleet"] if role == "board" else ["--data-dir", "/var/lib/rkfleet-gateway"]
    print(" ".join(words))


def _write(path: Path, answer: dict[str, Any]) -> None:
    """Write the answer whole or not at all, readable by its owner only."""
    import msgspec

    from rkfleet.disk import SystemDisk, write_durably
    from rkfleet.errors import Unavailable

    try:
        write_durably(path, msgspec.json.format(msgspec.json.encode(answer)) + b"\n", path.with_name(f".{path.name}.partial"), SystemDisk())
    except OSError as error:
        raise Unavailable(f"--token-file: {path} cannot be written: {error.strerror}") from error


def kubeconfig(kubeconfig: Kubeconfig = None) -> None:
    """Print the kubeconfig in use, for `kubectl --kubeconfig` and other tools."""
    from rkfleet.client import find_kubeconfig

    print(find_kubeconfig(kubeconfig).read_text(), end="")
