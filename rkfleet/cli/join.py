"""`rkfleet join-token create` and `rkfleet kubeconfig`: how boards, gateways and people get in."""

from __future__ import annotations

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
    output: Output = Format.table,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Make a one-time token and print the command that joins with it."""
    from rkfleet.cli import render
    from rkfleet.enrolment import JOIN_TOKENS_PATH

    async def work(client: ApiClient) -> tuple[Any, str]:
        answer = await client.request("POST", JOIN_TOKENS_PATH, body={"role": role})
        return answer, client.cluster.server

    answer, server = with_client(kubeconfig, work)
    if output is not Format.table:
        render.print_object(answer, output)
        return
    words = ["rkfleet", "agent" if role == "board" else "gateway", "run", "--controller", server]
    words += ["--token", answer["token"], "--ca-pin", answer["caPin"]]
    words += ["--name", name, "--data-dir", "/var/lib/rkfleet"] if role == "board" else ["--data-dir", "/var/lib/rkfleet-gateway"]
    print(" ".join(words))


def kubeconfig(kubeconfig: Kubeconfig = None) -> None:
    """Print the kubeconfig in use, for `kubectl --kubeconfig` and other tools."""
    from rkfleet.client import find_kubeconfig

    print(find_kubeconfig(kubeconfig).read_text(), end="")
