"""The host of simulated boards: its words, its HTTP listener, and what a machine that does not exist tells."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rkfleet.errors import FleetError, Invalid
from rkfleet.metrics import Metrics
from rkfleet.simulated import CHIPS, board_names, parse_boards
from simulation.boards.board import Socket, State, _sentence
from simulation.boards.config import Config, parse_arguments
from simulation.boards.http import HostApp
from simulation.boards.machine import SimulatedMachine, ensure_machine_id

LEAST = ["--data-dir", "/data", "--boards", "rk3588=2,rk3576=1", "--kubeconfig", "/kubeconfig"]


class FakeAgent:
    """What the host asks of an agent."""

    def __init__(self) -> None:
        self.metrics = Metrics("agent")


class FakeBoard:
    """A board that is switched without an agent behind it."""

    def __init__(self, name: str, state: State = "in session", why: str = "") -> None:
        self.name = name
        self.chip = CHIPS[name.partition("-")[0]]
        self.socket = Socket(serving_host="127.0.0.1", serving_port=7490, advertise_host="10.0.0.1", ops_port=9001)
        self.ops_url, self.serving_url = "http://127.0.0.1:9001", "https://10.0.0.1:7490"
        self.state: State = state
        self.why = why
        self.agent = FakeAgent() if state == "in session" else None

    def switch_off(self) -> None:
        self.state, self.why = "off", "it was switched off"

    def cut(self) -> None:
        self.state, self.why = "off", "it was cut"

    def switch_on(self) -> None:
        self.state, self.why = "in session", ""


def ask(app: HostApp, method: str, path: str, *, client: str = "127.0.0.1", **headers: str) -> tuple[int, bytes]:
    """Ask the application without a socket."""
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("no body is read")

    async def send(message: Any) -> None:
        sent.append(message)

    encoded = [(name.encode(), value.encode()) for name, value in {"host": "host:9000", **headers}.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": encoded, "client": (client, 1)}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]


def host(*boards: FakeBoard) -> HostApp:
    return HostApp(boards, Metrics("simulated-boards"))  # type: ignore[arg-type]


def test_the_least_command_line_has_the_documented_defaults() -> None:
    """Boards, directory and kubeconfig are all that is needed."""
    assert parse_arguments(LEAST) == Config(
        data_dir=Path("/data"), boards={"rk3588": 2, "rk3576": 1}, kubeconfig=Path("/kubeconfig"), advertise_host="127.0.0.1"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--boards", "rk3399=1"], "chip 'rk3399' must be one of rk3588, rk3576"),
        (["--boards", "rk3588"], "rk3588 needs a number of boards, as rk3588=3, and has ''"),
        (["--boards", "rk3588=1,rk3588=2"], "rk3588 is there twice"),
        (["--boards", "rk3588=501"], "501 boards, one host carries at most 500"),
        (["--boards", "rk3588=0"], "names no board"),
        (["--serving-host", "0.0.0.0"], "gateways cannot dial 0.0.0.0; name this machine's address with --advertise-host"),
        (["--serving-port-base", "65534"], "leaves no ports for rk3588=2,rk3576=1"),
        (["--load-speedup", "0"], "'0' must be a number, 0.01..1000"),
    ],
)
def test_a_wrong_flag_is_named_with_its_value(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2 and one sentence."""
    with pytest.raises(SystemExit) as caught:
        parse_arguments([*LEAST, *flags])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_boards_are_numbered_by_chip() -> None:
    """As everything calls them: rk3588-1, rk3588-2, rk3576-1."""
    assert {name: chip.soc for name, chip in board_names(parse_boards("rk3588=2, rk3576=1")).items()} == {
        "rk3588-1": "rk3588", "rk3588-2": "rk3588", "rk3576-1": "rk3576",
    }  # fmt: skip
    assert parse_boards("") == {}
    with pytest.raises(Invalid):
        parse_boards("rk3588=x")


def test_the_host_is_ready_when_every_board_that_is_on_is_in_session() -> None:
    """Else it names them, and says why the first is not; a board that was switched off is not waited for."""
    assert ask(host(FakeBoard("rk3588-1"), FakeBoard("rk3588-2", "off")), "GET", "/readyz") == (200, b"ok\n")
    status, body = ask(host(FakeBoard("rk3588-1"), FakeBoard("rk3588-2", "failed", "its disk is full")), "GET", "/readyz")
    assert status == 503
    assert body == b"1 of 2 boards are not in session (rk3588-2); rk3588-2: its disk is full\n"


def test_boards_are_switched_from_loopback_only() -> None:
    """Not from another machine, and not by a web page that a browser on this one shows."""
    board = FakeBoard("rk3588-1")
    app = host(board)
    assert ask(app, "POST", "/boards/rk3588-1/stop", client="10.0.0.9")[0] == 403
    assert ask(app, "POST", "/boards/rk3588-1/stop", origin="http://example.org")[0] == 403
    assert board.state == "in session"
    status, body = ask(app, "POST", "/boards/rk3588-1/stop")
    assert (status, board.state) == (200, "off")
    assert msgspec.json.decode(body)["running"] is False
    assert ask(app, "POST", "/boards/rk3588-1/start")[0] == 200
    assert board.state == "in session"
    assert ask(app, "POST", "/boards/rk3588-1/cut")[0] == 200
    assert board.why == "it was cut"
    assert ask(app, "POST", "/boards/rk3588-9/stop")[0] == 404
    assert ask(app, "GET", "/boards/rk3588-1/stop")[0] == 404


def test_every_board_is_listed_and_says_that_it_is_simulated() -> None:
    """With its state and where it listens."""
    _, body = ask(host(FakeBoard("rk3588-1"), FakeBoard("rk3576-1", "away", "it starts")), "GET", "/boards")
    listed = msgspec.json.decode(body)["boards"]
    assert [(one["name"], one["soc"], one["simulated"], one["running"], one["state"], one["message"]) for one in listed] == [
        ("rk3588-1", "rk3588", True, True, "in session", ""),
        ("rk3576-1", "rk3576", True, True, "away", "it starts"),
    ]
    assert listed[0]["opsUrl"] == "http://127.0.0.1:9001"


def test_prometheus_finds_every_board_at_the_address_by_which_it_asks() -> None:
    """One target per board, labelled; its path leads to that board's metrics."""
    app = host(FakeBoard("rk3588-1"), FakeBoard("rk3576-1", "off", "it was switched off"))
    _, body = ask(app, "GET", "/discovery")
    targets = msgspec.json.decode(body)
    assert targets[0] == {
        "targets": ["host:9000"],
        "labels": {"__metrics_path__": "/boards/rk3588-1/metrics", "board": "rk3588-1", "soc": "rk3588", "simulated": "true"},
    }
    status, text = ask(app, "GET", targets[0]["labels"]["__metrics_path__"])
    assert status == 200
    assert b"rkfleet_board_simulated" in text
    assert ask(app, "GET", targets[1]["labels"]["__metrics_path__"])[0] == 503


def test_the_metrics_of_all_boards_are_told_apart_by_their_labels() -> None:
    """Each family is there once, with the samples of every board that is on."""
    _, text = ask(host(FakeBoard("rk3588-1"), FakeBoard("rk3588-2"), FakeBoard("rk3576-1", "off")), "GET", "/metrics")
    lines = text.decode().splitlines()
    assert lines.count("# TYPE rkfleet_board_simulated gauge") == 1
    assert 'rkfleet_board_simulated{board="rk3588-2",simulated="true",soc="rk3588"} 0.0' in lines
    assert 'rkfleet_simulated_boards{state="off"} 1.0' in lines


def test_a_machine_that_does_not_exist_keeps_its_identity_and_boots_anew(tmp_path: Path) -> None:
    """The machine id survives the process, the boot id does not, and two boards share neither."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, again, other = (ensure_machine_id(tmp_path / name) for name in ("a", "a", "b"))
    assert first == again != other
    chip = CHIPS["rk3576"]
    boots = [SimulatedMachine(chip, tmp_path, first, (), lambda: 2 << 30) for _ in range(2)]
    assert boots[0].machine_id() == boots[1].machine_id() == first
    assert boots[0].boot_id() != boots[1].boot_id()
    facts = boots[0].facts(0)
    assert (facts.simulated, facts.soc, facts.npu_cores, facts.memory_bytes) == (True, "rk3576", 2, 8 << 30)
    assert boots[0].memory().available_bytes == 5 << 30


def test_a_failed_board_tells_the_reason_that_is_ours() -> None:
    """Errors come in nested groups; people get one sentence."""
    ours = FleetError("port 1 is taken")
    assert _sentence(ExceptionGroup("x", [ValueError("y"), ExceptionGroup("z", [ours])])) == "port 1 is taken"
    assert _sentence(ValueError("y")) == "internal error: ValueError('y')"
