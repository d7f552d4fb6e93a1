"""`rkfleet token`: API tokens for people and programs; made, listed, revoked by an admin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from rkfleet.cli.options import Format, Kubeconfig, Output, with_client

if TYPE_CHECKING:
    from rkfleet.client import ApiClient, Cluster

__all__ = ["app"]

DAY_SECONDS: Final = 86400

app = typer.Typer(help="API tokens: who may use the API, and for what.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """API tokens: who may use the API, and for what."""


def _lifetime(text: str | int) -> int:
    """Read a lifetime: `12h`, `30d`, `90m`, or seconds.

    Raises:
        typer.BadParameter: It is none.
    """
    import re

    found = re.fullmatch(r"(\d+)([smhd]?)", str(text))
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a duration such as 90m, 12h or 30d")
    return int(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": DAY_SECONDS}[found[2]]


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Whose it is; it has one token until that is revoked.")],
    role: Annotated[Literal["admin", "operator", "viewer"], typer.Option(help="What may be done with it.")],
    namespace: Annotated[
        list[str] | None, typer.Option("--namespace", "-n", help="Where the role counts, may be repeated; default everywhere.")
    ] = None,
    expires: Annotated[
        Any, typer.Option(metavar="DURATION", parser=_lifetime, help="When it ends: 12h, 30d. Default: when it is revoked.")
    ] = None,
    *,
    kubeconfig_out: Annotated[
        Path | None, typer.Option(help="Write a kubeconfig with it, for kubectl and rkfleet, instead of printing the token.")
    ] = None,
    output: Output = Format.table,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Make a token and print it, once: only its hash is kept."""
    import msgspec

    from rkfleet.access import TOKENS_PATH, TokenRequest
    from rkfleet.cli import render

    asked = TokenRequest(name=name, role=role, namespaces=tuple(namespace or ()), lifetime_seconds=expires)

    async def work(client: ApiClient) -> tuple[Any, Cluster]:
        return await client.request("POST", TOKENS_PATH, body=msgspec.to_builtins(asked)), client.cluster

    answer, cluster = with_client(kubeconfig, work)
    if kubeconfig_out is not None:
        _write(kubeconfig_out, cluster, answer["token"], namespace[0] if namespace else "default")
        print(kubeconfig_out)
    elif output is not Format.table:
        render.print_object(answer, output)
    else:
        print(answer["token"])


@app.command("list")
def list_(output: Output = Format.table, kubeconfig: Kubeconfig = None) -> None:
    """Show all tokens without their secrets; LAST USED is since the controller started."""
    from rkfleet.access import TOKENS_PATH
    from rkfleet.cli import render

    async def work(client: ApiClient) -> Any:
        return await client.request("GET", TOKENS_PATH)

    answer = with_client(kubeconfig, work)
    if output is not Format.table:
        render.print_object(answer, output)
        return
    rows = [
        [one["id"], one["name"], one["role"], ",".join(one["namespaces"]) or "*", one["expires"] or "never", one["lastUsed"] or "never"]
        for one in answer["items"]
    ]
    render.print_rows(("ID", "NAME", "ROLE", "NAMESPACES", "EXPIRES", "LAST USED"), rows)


@app.command("revoke")
def revoke(token: Annotated[str, typer.Argument(metavar="ID|NAME", help="Which one ends.")], kubeconfig: Kubeconfig = None) -> None:
    """End a token now, and what is open with it within seconds."""
    from urllib.parse import quote

    from rkfleet.access import TOKENS_PATH

    async def work(client: ApiClient) -> Any:
        return await client.request("DELETE", f"{TOKENS_PATH}/{quote(token, safe='')}")

    ended = with_client(kubeconfig, work)
    print(f"token {ended['id']} of {ended['name']} ({ended['role']}) revoked")


def _write(path: Path, cluster: Cluster, token: str, namespace: str) -> None:
    """Write a kubeconfig whole or not at all, readable by its owner only."""
    import base64

    import yaml

    from rkfleet.disk import SystemDisk, write_durably
    from rkfleet.errors import Unavailable

    name = "rkfleet"
    ca = {"certificate-authority-data": base64.b64encode(cluster.ca_pem.encode()).decode()} if cluster.ca_pem else {}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": cluster.server, **ca}}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": namespace}}],
        "current-context": name,
    }
    text = yaml.safe_dump(document, sort_keys=False)
    try:
        write_durably(path, text.encode(), path.with_name(f".{path.name}.partial"), SystemDisk())
    except OSError as error:
        raise Unavailable(f"--kubeconfig-out: {path} cannot be written: {error.strerror}; the token is made, revoke it") from error
