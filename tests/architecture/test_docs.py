"""What the documentation promises is there, and what is there is documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rkfleet import conditions
from rkfleet.kinds import KINDS
from rkfleet.metric_names import ALL

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "manifests").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    """A link in a page that names a file of the repository finds it."""
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_every_metric_is_documented_with_its_meaning() -> None:
    """The metrics page has the name and the help of each metric."""
    text = (ROOT / "docs/reference/metrics.md").read_text()
    for entry in ALL:
        assert f"`{entry.name}`" in text
        assert entry.help in text


def test_every_condition_type_and_reason_is_documented() -> None:
    """The conditions page has each constant of rkfleet/conditions.py."""
    text = (ROOT / "docs/reference/conditions.md").read_text()
    words = {value for name, value in vars(conditions).items() if name.isupper() and isinstance(value, str)}
    assert sorted(word for word in words if f"`{word}`" not in text) == []


def test_every_status_field_and_condition_has_one_writer() -> None:
    """Two owners of one kind never name the same field or condition, and each status field has an owner."""
    for kind in KINDS:
        owners = kind.resource.owners.values()
        fields = [field for owner in owners for field in owner.fields]
        types = [type for owner in owners for type in owner.conditions]
        assert len(fields) == len(set(fields)), kind.resource.kind
        assert len(types) == len(set(types)), kind.resource.kind


def test_no_file_names_a_package_index_or_a_path_of_one_machine() -> None:
    """Locks and scripts work with whatever index a machine is set up for."""
    words = ("pythonhosted" + ".", "pypi" + ".org/", "registry.npm" + "js", "deb.debian" + ".", "/work" + "/main", "/root" + "/")
    suffixes = {".py", ".md", ".txt", ".toml", ".yaml", ".yml", ".cfg", ""}
    folders = ("rkfleet", "controller", "agent", "gateway", "tests", "bench", "docs", "manifests", "requirements", "proto")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix in suffixes]
    for path in [*files, ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "README.md"]:
        if "__pycache__" not in path.parts:
            text = path.read_text(errors="replace")
            assert not [word for word in words if word in text], path
