"""The agent's command line."""

from pathlib import Path

import pytest

from agent.config import Config, parse_arguments
from agent.workers.libraries import NamedLibrary

LEAST = ["--data-dir", "/data", "--controller", "https://c:7443", "--name", "cpu-1"]


def test_the_least_command_line_has_the_documented_defaults() -> None:
    """Ports and addresses are those of the contract."""
    assert parse_arguments(LEAST) == Config(
        data_dir=Path("/data"), controller="https://c:7443", name="cpu-1", advertise_host="127.0.0.1", serving_port=7490
    )


def test_every_flag_reaches_the_configuration() -> None:
    """Quantities become bytes."""
    flags = [
        *LEAST, "--token", "rkj1.a.b", "--ca-pin", "sha256:00", "--token-file", "/join/token",
        "--serving-host", "0.0.0.0", "--advertise-host", "10.0.0.17", "--serving-port", "0", "--ops-host", "0.0.0.0",
        "--ops-port", "7481", "--memory", "2Gi", "--artifact-limit-bytes", "5G", "--filesystem-root", "/fake",
        "--lifeline-fd", "3", "--log-level", "debug", "--runtime-library", "/a.so", "--runtime-library", "/b.so=G4",
    ]  # fmt: skip
    assert parse_arguments(flags) == Config(
        data_dir=Path("/data"), controller="https://c:7443", name="cpu-1", token="rkj1.a.b", ca_pin="sha256:00",
        token_file=Path("/join/token"), serving_host="0.0.0.0", advertise_host="10.0.0.17", serving_port=0,
        ops_host="0.0.0.0", ops_port=7481, memory_bytes=2 << 30,
        artifact_limit_bytes=5_000_000_000, filesystem_root=Path("/fake"), lifeline=3, log_level="debug",
        runtime_libraries=(NamedLibrary(Path("/a.so")), NamedLibrary(Path("/b.so"), "G4")),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--name", "Not_A_Name"], "board name 'Not_A_Name' must be lower-case letters"),
        (["--name", "x" * 64], "has 64 characters, at most 63 are allowed"),
        (["--serving-port", "65536"], "'65536' must be a port, 0..65535"),
        (["--memory", "lots"], "'lots' is not a quantity"),
        (["--serving-host", "0.0.0.0"], "gateways cannot dial 0.0.0.0; name the board's address with --advertise-host"),
        (["--runtime-library", "/b.so=G9"], "generation 'G9' is not known; known are G1, G2, G3, G4"),
        (["--log-level", "loud"], "invalid choice: 'loud'"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_status_2(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the value and the limit."""
    with pytest.raises(SystemExit) as refused:
        parse_arguments([*LEAST, *flags])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
