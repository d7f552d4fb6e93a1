"""What the command line of the agent says, as one frozen value.

In: arguments of `python -m agent`. Out: `Config`. Called by `agent/__main__.py`; apart from `app.py` so that a test runs the true program
with its own values.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.board import clock_wire
from agent.board.sensors import LOOK_SECONDS
from agent.workers.libraries import NamedLibrary, parse_named_library
from rkfleet.api_keys import ApiKeys, read_api_keys
from rkfleet.errors import Invalid
from rkfleet.meta import check_name
from rkfleet.ports import port_argument
from rkfleet.process import LOG_LEVELS
from rkfleet.quantity import parse_bytes

__all__ = ["Config", "add_client_options", "add_machine_options", "library_argument", "parse_arguments", "read_client_flags"]

_WILDCARDS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 (named to be refused)
BOARD_NAME_LENGTH_MAX: Final = 63  # As `Board.resource.name_length_max`: the name is also a label value.


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration of one agent.

    Attributes:
        controller: Base URL of the API that this board enrols at; used until there is an identity.
        token: Join token; empty when the board has enrolled before.
        ca_pin: `sha256:<hex>` of the controller's CA key; empty when the board has enrolled before.
        token_file: File with both, read on the first start only.
        name: Name of the board.
        serving_host: Address of the HTTPS listener for gateways.
        advertise_host: Address that gateways are told to dial; the same if the operator names none.
        serving_port: Its port; 0 takes any free one, which gateways learn with the next report.
        ops_host: Address of the plain HTTP listener for health and metrics; on loopback it serves local clients too.
        ops_port: Its port; 0 takes any free one.
        memory_bytes: Memory that the board reports to have; 0 for what the machine has.
        artifact_limit_bytes: Bytes that artifacts may take; 0 for what the disk allows.
        filesystem_root: Where `/proc`, `/sys` and `/etc` are found; tests describe other machines with it.
        runtime_libraries: Libraries of the NPU's runtime to use; empty looks in the usual places.
        clocks_helper: Socket of the privileged helper for clocks.
        client_host: Address of the HTTPS listener for clients of other machines, who need an API key; empty for none.
        client_port: Its port; 0 takes any free one.
        api_keys: Keys that it lets in.
        client_tls_cert: PEM chain that it shows; None for the board's serving certificate.
        client_tls_key: PEM key of that chain.
        cors_origins: Origins of web pages that may ask, on any listener for clients.
        lifeline: Descriptor whose end stops the agent, or None.
        look_seconds: How often the machine is looked at when nobody tells of a change; no option, but for tests that make changes.
    """

    data_dir: Path
    controller: str
    name: str
    token: str = ""
    ca_pin: str = ""
    token_file: Path | None = None
    serving_host: str = "127.0.0.1"
    advertise_host: str = ""
    serving_port: int = 7490
    ops_host: str = "127.0.0.1"
    ops_port: int = 0
    memory_bytes: int = 0
    artifact_limit_bytes: int = 0
    filesystem_root: Path = Path("/")
    runtime_libraries: tuple[NamedLibrary, ...] = ()
    clocks_helper: Path = clock_wire.SOCKET
    client_host: str = ""
    client_port: int = 7493
    api_keys: ApiKeys = ApiKeys()
    client_tls_cert: Path | None = None
    client_tls_key: Path | None = None
    cors_origins: tuple[str, ...] = ()
    lifeline: int | None = None
    log_level: str = "info"
    look_seconds: float = LOOK_SECONDS


def parse_arguments(arguments: Sequence[str]) -> Config:
    """Read the command line; exits with status 2 and a usage line when it cannot be read."""
    parser = _parser()
    values = vars(parser.parse_args(arguments))
    values["advertise_host"] = values["advertise_host"] or values["serving_host"]
    if values["advertise_host"] in _WILDCARDS:
        parser.error(f"gateways cannot dial {values['advertise_host']}; name the board's address with --advertise-host")
    read_client_flags(parser, values)
    return Config(**values)


def read_client_flags(parser: argparse.ArgumentParser, values: dict[str, Any]) -> None:
    """Put what the flags about clients mean into `values`; exits where together they would open the board to everybody."""
    keys_file = values.pop("api_keys_file")
    try:
        values["api_keys"] = read_api_keys(keys_file, "--api-keys-file") if keys_file else ApiKeys()
    except Invalid as error:
        parser.error(error.message)
    if values["client_host"] and not values["api_keys"]:
        parser.error(f"--client-host {values['client_host']}: clients of other machines need keys; name them with --api-keys-file")
    if bool(values["client_tls_cert"]) != bool(values["client_tls_key"]):
        parser.error("--client-tls-cert and --client-tls-key: give both or none")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rkfleet agent run",
        description="Run models on this board: fetch, load, serve and report what the controller assigns.",
        epilog="A board without a fleet serves files of its own: rkfleet agent run --standalone --model FILE; see run --standalone --help.",
    )
    add = parser.add_argument
    add("--data-dir", type=Path, required=True, help="directory of identity, ledger and artifacts; one agent each")
    add("--controller", required=True, metavar="URL", help="API of the controller, https://HOST:7443")
    add("--name", type=_board_name, required=True, help="name of the board")
    add("--token", default="", help="join token, for the first start only; see: rkfleet join-token create")
    add("--ca-pin", default="", metavar="sha256:HEX", help="pin of the controller's CA, printed with the token")
    add("--token-file", type=Path, metavar="FILE", help="file with token and pin, instead of both: rkfleet join-token create --token-file")
    add("--serving-host", default="127.0.0.1", metavar="ADDRESS", help="address of the HTTPS listener for gateways (default %(default)s)")
    add("--advertise-host", default="", metavar="ADDRESS", help="address that gateways dial (default: --serving-host)")
    add("--serving-port", type=port_argument, default=7490, help="HTTPS port for gateways (default %(default)s; 0 = any)")
    add("--ops-host", default="127.0.0.1", metavar="ADDRESS", help="address of health and metrics; only on loopback with /v1 (%(default)s)")
    add("--ops-port", type=port_argument, default=0, help="plain HTTP port of health, metrics and /v1 for local clients (0 = any)")
    add("--artifact-limit-bytes", type=_bytes, default=0, metavar="N", help="bytes that artifacts may take (default: what the disk allows)")
    add_client_options(parser)
    add_machine_options(parser)
    return parser


def add_client_options(parser: argparse.ArgumentParser) -> None:
    """Add who may ask besides programs of this machine, in a fleet or without one; `read_client_flags` reads them."""
    add = parser.add_argument
    add("--client-host", default="", metavar="ADDRESS", help="address of an HTTPS listener for clients of other machines (default: none)")
    add("--client-port", type=port_argument, default=7493, help="its port (default %(default)s; 0 = any)")
    add("--api-keys-file", type=Path, metavar="FILE", help="API keys of those clients: rkfleet gateway-keys add FILE --name NAME")
    add("--client-tls-cert", type=Path, metavar="FILE", help="PEM certificate for them (default: the board's serving certificate)")
    add("--client-tls-key", type=Path, metavar="FILE", help="PEM key of that certificate")
    add(
        "--cors-origin",
        dest="cors_origins",
        action=_AppendToTuple,
        default=(),
        metavar="ORIGIN",
        help="web pages that may ask; may be repeated",
    )


def add_machine_options(parser: argparse.ArgumentParser, log_level: str = "info") -> None:
    """Add what every agent may be told about its machine and process, in a fleet or without one."""
    add = parser.add_argument
    add(
        "--memory",
        dest="memory_bytes",
        type=_bytes,
        default=0,
        metavar="QUANTITY",
        help="memory to report instead of the machine's, e.g. 2Gi",
    )
    add("--filesystem-root", type=Path, default=Path("/"), help="where /proc, /sys and /etc are read from (default %(default)s)")
    add(
        "--runtime-library",
        dest="runtime_libraries",
        type=library_argument,
        action=_AppendToTuple,
        default=(),
        metavar="FILE[=GENERATION]",
        help="an RKLLM runtime to use, repeatable (default: librkllmrt.so in /usr/lib, /usr/local/lib, /opt/rkfleet/runtimes/*)",
    )
    add("--clocks-helper", type=Path, default=clock_wire.SOCKET, metavar="FILE", help="socket of the clock helper (default %(default)s)")
    add("--lifeline-fd", dest="lifeline", type=int, default=None, metavar="N", help="stop when this descriptor reaches its end")
    add("--log-level", choices=LOG_LEVELS, default=log_level, help="lowest level that is logged (default %(default)s)")


class _AppendToTuple(argparse.Action):
    """`append` for frozen values."""

    def __call__(self, _parser: object, namespace: argparse.Namespace, value: object, _option: object = None) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest), value))


def _board_name(text: str) -> str:
    why = check_name(text, length_max=BOARD_NAME_LENGTH_MAX)
    if why:
        raise argparse.ArgumentTypeError(f"board name {why}")
    return text


def library_argument(text: str) -> NamedLibrary:
    """Read a value of `--runtime-library`; for argparse."""
    try:
        return parse_named_library(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
