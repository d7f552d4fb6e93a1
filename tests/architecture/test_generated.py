"""What is generated and committed is what its source says today (CRDs: tests/unit/test_crds.py)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROTO = "rkfleet/v1/agent.proto"


def load(script: str) -> Any:
    spec = importlib.util.spec_from_file_location(script, ROOT / f"docs/{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_stubs_are_those_of_the_protocol(tmp_path: Path) -> None:
    """If this fails: `make proto`."""
    outs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I", "proto", *outs, f"proto/{PROTO}"], cwd=ROOT, check=True)
    made = {file.name: file.read_text() for file in (tmp_path / "rkfleet/v1").iterdir()}
    assert made == {name: (ROOT / "rkfleet/v1" / name).read_text() for name in made}


@pytest.mark.parametrize("columns", ["40", "300"])
def test_the_pages_are_those_of_the_code_in_every_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails: `make docs`."""
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")
    for name, made in load("generate").PAGES.items():
        assert made() == (ROOT / "docs" / name).read_text(), name


def test_the_picture_is_that_of_its_transcript(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails: `.venv/bin/python docs/picture.py`."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "dumb")
    images = ROOT / "docs/images"
    assert load("picture").draw((images / "demo.txt").read_text()) == (images / "demo.svg").read_text()
