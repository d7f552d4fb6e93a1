"""What is declared is what is imported, and what is locked is what is declared."""

from __future__ import annotations

import ast
import itertools
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "rkfleet": ("agent",), "agent": ("agent", "cpu", "vision"), "gateway": ("gateway",), "controller": ("controller",),
    "simulation": ("agent",), "toolkit": ("toolkit",),
}  # fmt: skip
"""Extras that an installation which runs the package has, besides the base; `rkfleet.enroll` runs where an agent or a gateway does."""
APART = {"controller/store/kubernetes": "kubernetes"}
"""Folders that are imported only where a further extra is installed."""


def test_locked_requirements_have_every_dependency_with_hashes() -> None:
    """If this fails: `make lock`. A name that pyproject.toml asks for and a lock lacks would be fetched unchecked."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {
        "agent": [*project["dependencies"], *extras["agent"]],
        "all": [*project["dependencies"], *(each for name in extras if name not in {"all", "dev"} for each in extras[name])],
        "controller": [*project["dependencies"], *extras["controller"]],
        "gateway": [*project["dependencies"], *extras["gateway"]],
        "cpu": [*project["dependencies"], *extras["agent"], *extras["cpu"]],
        "build": tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"],
    }
    wanted["dev"] = [*wanted["all"], *extras["dev"]]
    for lock, requirements in wanted.items():
        lines = (ROOT / f"requirements/{lock}.txt").read_text().splitlines()
        locked = {line.partition("==")[0].partition("[")[0] for line in lines if "==" in line and not line.startswith((" ", "#"))}
        names = {distribution_name(requirement) for requirement in requirements} - {"rkfleet"}
        assert sorted(names - locked) == [], lock
        pinned = [(line, after) for line, after in itertools.pairwise([*lines, ""]) if "==" in line and not line.startswith((" ", "#"))]
        assert [line for line, after in pinned if not line.endswith("\\") or "--hash=sha256:" not in after] == [], lock


def test_a_requirement_has_one_version_in_every_lock() -> None:
    """What runs in an image is what the tests ran with."""
    versions: dict[str, set[tuple[str, ...]]] = {}
    for lock in (ROOT / "requirements").glob("*.txt"):
        lines = [line.split()[0] for line in lock.read_text().splitlines() if "==" in line and not line.startswith((" ", "#"))]
        for name, same in itertools.groupby(sorted(lines), key=lambda line: line.partition("==")[0].partition("[")[0]):
            versions.setdefault(name, set()).add(tuple(line.partition("==")[2] for line in same))  # several: one for each Python
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_its_installation_has(package: str) -> None:
    """A board has the base, `agent`, `cpu` and `vision`; an import of anything else would fail there and nowhere here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *(one for extra in ALLOWED[package] for one in extras[extra])]
    installed = {distribution_name(requirement) for requirement in declared}
    distributions = packages_distributions()
    for file in (ROOT / package).rglob("*.py"):
        foreign = imported(ast.parse(file.read_text())) - sys.stdlib_module_names - set(ALLOWED)
        further = [one for folder, extra in APART.items() if file.is_relative_to(ROOT / folder) for one in extras[extra]]
        here = installed | {distribution_name(one) for one in further}
        missing = {name for name in foreign if not {distribution_name(one) for one in distributions.get(name, ())} & here}
        assert missing == set(), file.relative_to(ROOT)


def distribution_name(requirement: str) -> str:
    return re.split(r"[\[<>=!~ ]", requirement)[0].lower().replace("_", "-")


def imported(tree: ast.AST) -> set[str]:
    """Return the top-level names of all imports, those inside functions included."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names
