"""What the command line makes for programs that join: token files, and the certificate and keys of a gateway."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path

import httpx2
import pytest
from typer.testing import CliRunner

from gateway.config import parse_config
from rkfleet.cli.main import app
from rkfleet.identity import read_join_token
from rkfleet.ops import Tls, ops_app, serve_asgi


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_gateway_serves_with_what_was_made_and_only_clients_that_trust_it_talk_to_it(tmp_path: Path) -> None:
    """The certificate is good for each of its names; a second call keeps everything."""
    words = ("gateway-keys", "create", str(tmp_path / "keys"), "--name", "gateway", "--name", "127.0.0.1")
    flags = run(*words).split()
    made = {path.name: path.read_bytes() for path in (tmp_path / "keys").iterdir()}
    assert sorted(made) == ["api-keys", "tls.crt", "tls.key"]
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "keys").iterdir()} == {0o600}
    run(*words)
    assert {path.name: path.read_bytes() for path in (tmp_path / "keys").iterdir()} == made
    config = parse_config(["--data-dir", "/data", "--controller", "https://c:7443", "--host", "0.0.0.0", *flags])
    assert config.api_keys.name_of(b"Bearer " + made["api-keys"].strip())
    assert config.tls_cert is not None
    assert config.tls_key is not None

    async def scenario() -> None:
        assert config.tls_cert is not None
        assert config.tls_key is not None
        trusting = ssl.create_default_context(cafile=str(config.tls_cert))
        async with serve_asgi(ops_app(lambda: "", lambda: b""), "127.0.0.1", 0, tls=Tls(config.tls_cert, config.tls_key)) as listener:
            async with httpx2.AsyncClient(verify=trusting) as client:
                assert (await client.get(f"{listener.url}/healthz")).text == "ok\n"
            async with httpx2.AsyncClient(verify=ssl.create_default_context()) as client:
                with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                    await client.get(f"{listener.url}/healthz")

    asyncio.run(scenario())


def test_a_token_file_that_is_there_is_kept_and_no_token_is_made(tmp_path: Path) -> None:
    """A service that makes the file at every start asks the controller once."""
    file = tmp_path / "token"
    file.write_text("{}")
    said = run("join-token", "create", "--token-file", str(file), "--kubeconfig", str(tmp_path / "there is none"))
    assert said == f"{file} is there already; a new token: --replace\n"
    assert file.read_text() == "{}"


def test_what_the_command_line_prints_as_json_is_a_token_file(tmp_path: Path) -> None:
    """`rkfleet join-token create -o json > FILE` makes one on a machine that has the kubeconfig."""
    file = tmp_path / "token"
    file.write_text(json.dumps({"token": "rkj1.a.b", "role": "gateway", "expires": "2026-01-01T00:00:00Z", "caPin": "sha256:00"}))
    assert (read_join_token(file).token, read_join_token(file).ca_pin) == ("rkj1.a.b", "sha256:00")
