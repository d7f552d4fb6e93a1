"""Ports of `rkfleet up`: chosen once, kept, refused when taken."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from rkfleet.errors import FailedPrecondition
from rkfleet.ports import FIRST_PORT, LAST_PORT, LOCAL_PORT_RANGE, Ports, quiet_ports


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


def test_a_port_that_others_learn_anew_moves_when_it_is_taken(tmp_path: Path) -> None:
    """A simulated board's port stays over restarts; one that another program took meanwhile is given up instead of the board."""
    ports = Ports(tmp_path / "ports.json")
    kept = ports.keep_or_choose("rk3588-1")
    ports.save()
    assert Ports(tmp_path / "ports.json").keep_or_choose("rk3588-1") == kept
    with socket.socket() as other:
        other.bind(("127.0.0.1", kept))
        other.listen()
        assert Ports(tmp_path / "ports.json").keep_or_choose("rk3588-1") != kept


def test_a_chosen_port_is_none_that_an_outgoing_connection_may_take(tmp_path: Path) -> None:
    """Between the choice and the listener's start other programs connect to wherever they like."""
    ports = Ports(tmp_path / "ports.json")
    chosen = [ports.keep_or_choose(f"board-{number}") for number in range(50)]
    low, high = (int(word) for word in LOCAL_PORT_RANGE.read_text().split())
    assert [port for port in chosen if low <= port <= high] == []
    assert len(set(chosen)) == 50


def test_a_port_on_which_somebody_listens_is_not_chosen(tmp_path: Path) -> None:
    ports = Ports(tmp_path / "ports.json")
    kept = ports.choose("api", 0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", kept))
        other.listen()
        assert ports.keep_or_choose("api") != kept


def test_ports_lie_beside_those_of_outgoing_connections(tmp_path: Path) -> None:
    ranges = tmp_path / "range"
    for text, expected in (
        ("32768\t60999\n", (FIRST_PORT, 32768)),
        ("10500 40000\n", (40001, LAST_PORT + 1)),
        ("1024 65535\n", (FIRST_PORT, LAST_PORT + 1)),  # Everything: then there is no better place.
        ("none\n", (FIRST_PORT, 32768)),
    ):
        ranges.write_text(text)
        assert quiet_ports(ranges) == expected
    assert quiet_ports(tmp_path / "missing") == (FIRST_PORT, 32768)
