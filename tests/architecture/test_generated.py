"""What is generated and committed is what its source says today (CRDs: tests/unit/test_crds.py)."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROTO = "rkfleet/v1/agent.proto"


def load_generator() -> Any:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
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
    for name, made in load_generator().PAGES.items():
        assert made() == (ROOT / "docs" / name).read_text(), name


def test_locked_requirements_have_every_dependency_with_hashes() -> None:
    """If this fails: `make lock`. A name that pyproject.toml asks for and a lock lacks would be fetched unchecked."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {
        "agent": [*project["dependencies"], *extras["agent"]],
        "all": [*project["dependencies"], *(each for name in extras if name not in {"all", "dev"} for each in extras[name])],
    }
    wanted["dev"] = [*wanted["all"], *extras["dev"]]
    for lock, requirements in wanted.items():
        lines = (ROOT / f"requirements/{lock}.txt").read_text().splitlines()
        locked = {line.partition("==")[0].partition("[")[0] for line in lines if "==" in line and not line.startswith((" ", "#"))}
        names = {requirement.partition(">")[0].partition("=")[0].partition("[")[0] for requirement in requirements} - {"rkfleet"}
        assert sorted(names - locked) == [], lock
        assert all("--hash=sha256:" in after for line, after in itertools.pairwise(lines) if line.endswith("\\") and "==" in line)
