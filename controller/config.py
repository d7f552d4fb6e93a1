"""The controller's command line."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from rkfleet.process import LOG_LEVELS

__all__ = ["DATABASE_URL_VARIABLE", "Config", "parse_arguments"]

LEASE_SECONDS: Final = 15  # As Kubernetes' own controllers; a standby takes over at most so long after the leader's last sign.
BACKUPS_KEPT_MAX: Final = 1_000  # Three years of days; more is a job for a backup program.
LEASE_SECONDS_MAX: Final = 600  # Nobody waits longer for a holder of the Lease who is not there, whoever wrote it.
DATABASE_URL_VARIABLE: Final = "RKFLEET_DATABASE_URL"


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What the controller is told at its start; each field is a flag, described there."""

    data_dir: Path
    host: str
    api_port: int
    grpc_port: int
    ops_host: str
    ops_port: int
    advertise_host: str
    registry_url: str
    database_url: str
    encryption_key_file: Path | None
    session_address: str
    lease_seconds: int
    backup_every_seconds: float
    backups_kept: int
    audit_log: Path | None
    kubeconfig_out: Path | None
    registry_files_out: Path | None
    lifeline_fd: int | None
    log_level: str

    @property
    def pki_dir(self) -> Path:
        """Where the certificate authorities are."""
        return self.data_dir / "pki"

    @property
    def encryption_key(self) -> Path:
        """Where the keys of Secrets are."""
        return self.encryption_key_file or self.data_dir / "encryption.key"

    @property
    def sessions_at(self) -> str:
        """Where boards reach the sessions, of whichever controller leads."""
        return self.session_address or f"{self.advertise_host}:{self.grpc_port}"

    @property
    def kubeconfig(self) -> Path:
        """Where the admin's kubeconfig is written on the first start."""
        return self.kubeconfig_out or self.data_dir / "kubeconfig"


def parse_arguments(arguments: Sequence[str]) -> Config:
    """Read the command line; a mistake ends the program with status 2."""
    parser = argparse.ArgumentParser(
        prog="rkfleet controller run",
        description="Store models and declared state, place replicas on boards, hold the boards' sessions.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="where store, certificates and tokens are kept")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on for API and sessions")
    parser.add_argument("--api-port", type=int, default=7443, help="HTTPS port of the API; 0 takes any")
    parser.add_argument("--grpc-port", type=int, default=7444, help="port of the board sessions; 0 takes any")
    parser.add_argument("--ops-host", default="127.0.0.1", help="address of /healthz, /readyz and /metrics, which ask nobody who they are")
    parser.add_argument("--ops-port", type=int, default=0, help="port of /healthz, /readyz and /metrics; 0 takes any")
    parser.add_argument("--advertise-host", default="127.0.0.1", help="name or address at which boards and people reach this machine")
    parser.add_argument("--registry-url", default="https://127.0.0.1:7445", help="model registry as boards and people reach it")
    parser.add_argument(
        "--database-url",
        default=os.environ.get(DATABASE_URL_VARIABLE, ""),
        help="PostgreSQL database that several controllers share, postgresql://user:password@host/name; they elect one that leads."
        f" Give it in ${DATABASE_URL_VARIABLE} to keep the password out of the process list. Default: SQLite in DATA_DIR, for one",
    )
    parser.add_argument(
        "--encryption-key-file",
        type=Path,
        help="keys by which Secrets are encrypted where they are stored, a base64 line each: the first encrypts, all decrypt; default"
        " DATA_DIR/encryption.key, which is made on the first start",
    )
    parser.add_argument(
        "--session-address",
        default="",
        help="where boards reach the sessions: host:port, or the ones of all controllers, 10.0.0.1:7444,10.0.0.2:7444, of which only the"
        " leader's answers; default the advertised host and the gRPC port",
    )
    parser.add_argument(
        "--lease-seconds", type=_lease, default=LEASE_SECONDS, help="how long the leader may be silent before a standby takes over"
    )
    parser.add_argument(
        "--backup-every", type=_seconds, default="24h", metavar="DURATION", help="how often DATA_DIR/backups gets a backup; 0 for never"
    )
    parser.add_argument("--backups-kept", type=_count, default=7, metavar="N", help="how many of these are kept; the oldest goes")
    parser.add_argument(
        "--audit-log",
        metavar="DIRECTORY",
        help="where every write and every refusal of the API is noted, in files that rotate; '' for nowhere; default DATA_DIR/audit",
    )
    parser.add_argument("--kubeconfig-out", type=Path, help="where the admin's kubeconfig is written; default DATA_DIR/kubeconfig")
    parser.add_argument(
        "--registry-files-out",
        type=Path,
        help="where certificate, key and token key of a registry are copied to that must not see the authorities; default nowhere",
    )
    parser.add_argument("--lifeline-fd", type=int, help="stop when this descriptor reaches its end")
    parser.add_argument("--log-level", choices=LOG_LEVELS, default="info", help="least level that is logged")
    given = parser.parse_args(arguments)
    return Config(
        data_dir=given.data_dir,
        host=given.host,
        api_port=given.api_port,
        grpc_port=given.grpc_port,
        ops_host=given.ops_host,
        ops_port=given.ops_port,
        advertise_host=given.advertise_host,
        registry_url=given.registry_url.rstrip("/"),
        database_url=given.database_url,
        encryption_key_file=given.encryption_key_file,
        session_address=given.session_address,
        lease_seconds=given.lease_seconds,
        backup_every_seconds=given.backup_every,
        backups_kept=given.backups_kept,
        audit_log=given.data_dir / "audit" if given.audit_log is None else Path(given.audit_log) if given.audit_log else None,
        kubeconfig_out=given.kubeconfig_out,
        registry_files_out=given.registry_files_out,
        lifeline_fd=given.lifeline_fd,
        log_level=given.log_level,
    )


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)([smhd]?)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 90, 30m, 24h or 7d")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def _lease(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= LEASE_SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1..{LEASE_SECONDS_MAX}")
    return int(text)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= BACKUPS_KEPT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1..{BACKUPS_KEPT_MAX}")
    return int(text)
