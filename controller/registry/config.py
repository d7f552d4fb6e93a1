"""The registry's command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec

from rkfleet.process import LOG_LEVELS
from rkfleet.quantity import parse_bytes

__all__ = ["Config", "parse_arguments"]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What the registry is told at its start; each field is a flag, described there."""

    data_dir: Path
    pki_dir: Path
    host: str
    port: int
    ops_host: str
    ops_port: int
    token_realm: str
    reserve_bytes: int
    lifeline_fd: int | None
    log_level: str


def parse_arguments(arguments: Sequence[str]) -> Config:
    """Read the command line; a mistake ends the program with status 2."""
    parser = argparse.ArgumentParser(
        prog="rkfleet registry run", description="Store and serve the artifacts of models (OCI distribution API)."
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="directory of blobs, manifests and uploads")
    parser.add_argument(
        "--pki-dir",
        type=Path,
        required=True,
        help="directory with registry.crt, registry.key and registry-signing.pub, made by the controller",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=7445, help="HTTPS port; 0 takes any")
    parser.add_argument("--ops-host", default="127.0.0.1", help="address of /healthz, /readyz and /metrics, which ask nobody who they are")
    parser.add_argument("--ops-port", type=int, default=0, help="port of /healthz, /readyz and /metrics; 0 takes any")
    parser.add_argument("--token-realm", required=True, help="URL at which clients get tokens: https://CONTROLLER/registry/v1alpha1/token")
    parser.add_argument(
        "--reserve", type=_bytes, default="64Mi", help="free space that uploads leave on the disk, for the controller's database beside it"
    )
    parser.add_argument("--lifeline-fd", type=int, help="stop when this descriptor reaches its end")
    parser.add_argument("--log-level", choices=LOG_LEVELS, default="info")
    given = parser.parse_args(arguments)
    return Config(
        data_dir=given.data_dir,
        pki_dir=given.pki_dir,
        host=given.host,
        port=given.port,
        ops_host=given.ops_host,
        ops_port=given.ops_port,
        token_realm=given.token_realm,
        reserve_bytes=given.reserve,
        lifeline_fd=given.lifeline_fd,
        log_level=given.log_level,
    )


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
