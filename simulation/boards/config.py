"""What the command line of the host of simulated boards says, as one frozen value.

In: arguments of `python -m simulation.boards`. Out: `Config`. Called by `simulation/boards/__main__.py`; apart from `app.py` so that a test
runs the true program with its own values.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from rkfleet.errors import Invalid
from rkfleet.ports import port_argument
from rkfleet.process import LOG_LEVELS
from rkfleet.simulated import format_boards, parse_boards

__all__ = ["Config", "parse_arguments"]

_WILDCARDS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 (named to be refused)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration of one host.

    Attributes:
        boards: How many boards of each chip.
        kubeconfig: Of an operator who may make join tokens; asked for boards that have no identity yet.
        controller: Base URL of the API that boards enrol at; empty takes the kubeconfig's.
        serving_host: Address of every board's HTTPS listener for gateways.
        advertise_host: Address that gateways are told to dial.
        serving_port_base: Port of the first board, the next has the next; 0 takes any free ones and keeps them.
        ops_host: Address of the host's own listener. Boards can be switched off and on from loopback only, whatever it is.
        load_speedup: How much faster than the assumed storage models load.
        lifeline: Descriptor whose end stops the host, or None.
    """

    data_dir: Path
    boards: Mapping[str, int]
    kubeconfig: Path
    controller: str = ""
    serving_host: str = "127.0.0.1"
    advertise_host: str = "127.0.0.1"
    serving_port_base: int = 0
    ops_host: str = "127.0.0.1"
    ops_port: int = 0
    load_speedup: float = 1.0
    lifeline: int | None = None
    log_level: str = "info"


def parse_arguments(arguments: Sequence[str]) -> Config:
    """Read the command line; exits with status 2 and a usage line when it cannot be read."""
    parser = _parser()
    values = vars(parser.parse_args(arguments))
    values["advertise_host"] = values["advertise_host"] or values["serving_host"]
    if values["advertise_host"] in _WILDCARDS:
        parser.error(f"gateways cannot dial {values['advertise_host']}; name this machine's address with --advertise-host")
    if values["serving_port_base"] + sum(values["boards"].values()) > 65536:
        parser.error(f"--serving-port-base {values['serving_port_base']} leaves no ports for {format_boards(values['boards'])}")
    return Config(**values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rkfleet simulated-boards run",
        description="Host boards that do not exist: the shipped agent for each, answering at the speed of the vendor's benchmark table.",
    )
    add = parser.add_argument
    add("--data-dir", type=Path, required=True, help="directory of all boards; one host each")
    add("--boards", type=_boards, required=True, metavar="rk3588=N,rk3576=M", help="how many boards of each chip")
    add("--kubeconfig", type=Path, required=True, metavar="FILE", help="of an operator, to make a join token for each new board")
    add("--controller", default="", metavar="URL", help="API that boards enrol at (default: the server of the kubeconfig)")
    add("--serving-host", default="127.0.0.1", metavar="ADDRESS", help="address of the HTTPS listeners for gateways (default %(default)s)")
    add("--advertise-host", default="", metavar="ADDRESS", help="address that gateways dial (default: --serving-host)")
    add(
        "--serving-port-base", type=port_argument, default=0, metavar="PORT",
        help="HTTPS port of the first board; the others follow (default: any free ports, kept over restarts)",
    )  # fmt: skip
    add("--ops-host", default="127.0.0.1", metavar="ADDRESS", help="address of this program's own HTTP listener (default %(default)s)")
    add("--ops-port", type=port_argument, default=0, help="its port: health, metrics, discovery, boards (0 = any)")
    add(
        "--load-speedup", type=_factor, default=1.0, metavar="N",
        help="load models N times faster than the assumed storage of 1 GiB/s (default %(default)s)",
    )  # fmt: skip
    add("--lifeline-fd", dest="lifeline", type=int, default=None, metavar="N", help="stop when this descriptor reaches its end")
    add("--log-level", choices=LOG_LEVELS, default="info", help="lowest level that is logged (default %(default)s)")
    return parser


def _boards(text: str) -> Mapping[str, int]:
    try:
        counts = parse_boards(text)
    except Invalid as error:
        raise argparse.ArgumentTypeError(error.message) from error
    if not sum(counts.values()):
        raise argparse.ArgumentTypeError(f"{text!r} names no board")
    return counts


def _factor(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0.01 <= factor <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number, 0.01..1000")
    return factor
