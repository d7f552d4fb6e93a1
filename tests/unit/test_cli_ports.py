"""Ports of `rkfleet up`: chosen once, kept, refused when taken."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from rkfleet.errors import FailedPrecondition
from rkfleet.ports import Ports


def test_a_port_of_zero_is_chosen_once_and_kept(tmp_path: Path) -> None:
    """A second start with the same data directory listens where the first did."""
    first = Ports(tmp_path / "ports.json")
    chosen = {name: first.choose(name, 0) for name in ("api", "grpc", "gateway")}
    first.save()
    again = Ports(tmp_path / "ports.json")
    assert {name: again.choose(name, 0) for name in chosen} == chosen
    assert len(set(chosen.values())) == 3


def test_a_taken_port_is_refused_with_its_number_and_what_to_do(tmp_path: Path) -> None:
    """The message names program, port and the way out."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(FailedPrecondition, match=f"port {port} of api on 127.0.0.1 is taken by another program; choose another one"):
            Ports(tmp_path / "ports.json").choose("api", port)


def test_a_kept_port_may_be_taken_where_nobody_checks(tmp_path: Path) -> None:
    """A host of many boards lets the one board find out that binds it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert Ports(tmp_path / "ports.json").choose("rk3588-1", port, check=False) == port
