"""Rows of `auth`, and of what somebody without a token sees."""

from __future__ import annotations

from tests.support.kubectl_rows.row import Bench, Row, row

ROWS: list[Row] = []


@row(ROWS, "auth can-i")
async def _(bench: Bench) -> None:
    assert await bench.ok("auth", "can-i", "create", "modeldeployments.rkfleet.dev") == "yes\n"
    gateway = await bench.run("--token", bench.api.gateway_token, "auth", "can-i", "create", "modeldeployments.rkfleet.dev")
    assert (gateway.code, gateway.out.startswith("no")) == (1, True)
    assert (await bench.run("--token", bench.api.gateway_token, "create", "-f", "-", stdin=bench.deployment())).code == 1
    assert await bench.qwen() == {}


@row(ROWS, "auth can-i --list")
async def _(bench: Bench) -> None:
    assert "*.*" in await bench.ok("auth", "can-i", "--list")


@row(ROWS, "auth whoami")
async def _(bench: Bench) -> None:
    assert "ada" in await bench.ok("auth", "whoami")


@row(ROWS, "any command without a known token (Unauthorized)")
async def _(bench: Bench) -> None:
    refused = await bench.run("--token", "guess", "get", "mdep")
    assert (refused.code, "You must be logged in to the server" in refused.err) == (1, True)


@row(ROWS, "any command that the token's role forbids (Forbidden)")
async def _(bench: Bench) -> None:
    await bench.create(bench.deployments, bench.deployment())
    refused = await bench.run("--token", bench.api.gateway_token, "delete", "mdep", "qwen")
    assert refused.code == 1
    assert 'User "gw-1" cannot delete resource "modeldeployments" in API group "rkfleet.dev"' in refused.err
    assert (await bench.qwen())["metadata"]["name"] == "qwen"
