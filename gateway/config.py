"""How the gateway is told what to do: its command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec

from rkfleet.api_keys import ApiKeys, read_api_keys
from rkfleet.errors import Invalid
from rkfleet.ops import is_loopback
from rkfleet.process import LOG_LEVELS

__all__ = ["Config", "parse_config"]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says; `token` and `ca_pin`, or `token_file`, are needed for the first start only."""

    data_dir: Path
    controller: str
    token: str
    ca_pin: str
    token_file: Path | None
    host: str
    port: int
    ops_host: str
    ops_port: int
    api_keys: ApiKeys
    tls_cert: Path | None
    tls_key: Path | None
    lifeline_fd: int | None
    log_level: str


def parse_config(arguments: Sequence[str]) -> Config:
    """Read the command line.

    Raises:
        Invalid: The flags together would open the gateway to everybody.
        SystemExit: The words are off (argparse, status 2).
    """
    parser = argparse.ArgumentParser(prog="rkfleet gateway run", description="One OpenAI endpoint for the fleet.")
    parser.add_argument("--data-dir", type=Path, required=True, help="where identity and routing snapshot are kept")
    parser.add_argument("--controller", required=True, help="URL of the API, https://HOST:7443")
    parser.add_argument("--token", default="", help="join token with role gateway, for the first start")
    parser.add_argument("--ca-pin", default="", help="sha256:HEX of the servers' CA key, for the first start")
    parser.add_argument("--token-file", type=Path, help="file with token and pin, instead of both")
    parser.add_argument("--host", default="127.0.0.1", help="address for clients (default %(default)s)")
    parser.add_argument("--port", type=int, default=7480, help="port for clients (default %(default)s)")
    parser.add_argument("--ops-host", default="127.0.0.1", help="address of /healthz, /readyz and /metrics (default %(default)s)")
    parser.add_argument("--ops-port", type=int, default=7481, help="port of /healthz, /readyz and /metrics (default %(default)s)")
    parser.add_argument(
        "--api-key-file", type=Path, help="file of API keys that clients must send: rkfleet gateway-keys add FILE --name NAME"
    )
    parser.add_argument("--tls-cert", type=Path, help="PEM certificate for clients")
    parser.add_argument("--tls-key", type=Path, help="PEM key for clients")
    parser.add_argument("--lifeline-fd", type=int, help="stop when this descriptor reads end of file")
    parser.add_argument("--log-level", choices=LOG_LEVELS, default="info", help="least level that is logged (default %(default)s)")
    given = parser.parse_args(arguments)
    config = Config(
        data_dir=given.data_dir,
        controller=given.controller.rstrip("/"),
        token=given.token,
        ca_pin=given.ca_pin,
        token_file=given.token_file,
        host=given.host,
        port=given.port,
        ops_host=given.ops_host,
        ops_port=given.ops_port,
        api_keys=read_api_keys(given.api_key_file, "--api-key-file") if given.api_key_file else ApiKeys(),
        tls_cert=given.tls_cert,
        tls_key=given.tls_key,
        lifeline_fd=given.lifeline_fd,
        log_level=given.log_level,
    )
    _check_reach(config)
    return config


def _check_reach(config: Config) -> None:
    if bool(config.tls_cert) != bool(config.tls_key):
        raise Invalid("--tls-cert and --tls-key: give both or none")
    if is_loopback(config.host) or (config.tls_cert and config.api_keys):
        return
    raise Invalid(f"--host: {config.host} is not loopback, so clients need --tls-cert, --tls-key and --api-key-file")
