"""The floors of the house hold, and a board's agent stays light."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LEFT_AT_HOME = ("cryptography", "httptools", "jsonschema_rs", "kubernetes", "rich", "sqlalchemy", "typer", "uvloop", "xllamacpp", "yaml")
"""What would take a board's memory and is needed by other programs, by commands, or in children of the agent."""


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has after this code."""
    script = f"import sys\n{code}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_contracts_between_packages_hold() -> None:
    """`make arch` says the same."""
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run(['--no-logo'])"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_a_running_agent_carries_nothing_that_belongs_to_others() -> None:
    """Its libraries alone cost 51 MiB of the 60 that it may have; each of these would cost some more."""
    loaded = modules_after("import agent.__main__, agent.app")
    assert {"grpc", "h11", "uvicorn"} <= loaded
    assert sorted(loaded & set(LEFT_AT_HOME)) == []


def test_a_worker_carries_neither_the_session_nor_a_web_server() -> None:
    """It has the model's memory to spare for; a library that it loads comes on top."""
    loaded = modules_after("import agent.workers.child")
    assert sorted(loaded & {"grpc", "uvicorn", "starlette", "cryptography", "prometheus_client"}) == []


def test_a_worker_reads_images_without_the_libraries_that_decode_them() -> None:
    """Those belong to the encoder's process, which may die of a file."""
    loaded = modules_after("import agent.workers.rknn.encoder, agent.workers.rknn.images")
    assert sorted(loaded & {"PIL", "numpy", "rknnlite", "grpc"}) == []


@pytest.mark.parametrize("program", ["controller", "agent", "gateway", "simulation", "toolkit"])
def test_the_command_line_starts_programs_and_never_imports_them(program: str) -> None:
    """A fault of a program, or what it weighs, is no matter of the command line."""
    loaded = modules_after("import rkfleet.cli.main, rkfleet.cli.fleet, rkfleet.cli.demo_steps, rkfleet.cli.push")
    assert program not in loaded


NEEDED_LATER = (
    "asyncio", "cryptography", "grpc", "httpx2", "jsonschema_rs", "prometheus_client", "rich", "starlette", "uvicorn", "yaml",
)  # fmt: skip


def test_help_waits_for_nothing_that_a_command_needs_later() -> None:
    """What `rkfleet --help` imports is what it costs; bench/cli.py measures it."""
    loaded = modules_after("import sys; sys.argv = ['rkfleet', '--help']\nfrom rkfleet.cli.main import app\napp(standalone_mode=False)")
    assert sorted(loaded & set(NEEDED_LATER)) == []


@pytest.mark.parametrize("script", sorted((ROOT / "bench").glob("*.py")), ids=lambda script: script.stem)
def test_every_benchmark_finds_what_it_imports(script: Path) -> None:
    """They run by hand only, so a name that has moved would be noticed by whoever wants a figure."""
    importlib.import_module(f"bench.{script.stem}")
