"""What the documentation promises is there, and what is there is documented."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from rkfleet import conditions
from rkfleet.cli.main import app
from rkfleet.kinds import KINDS
from rkfleet.metric_names import ALL
from toolkit.commands.app import app as toolkit_app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "manifests").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    """A link in a page that names a file of the repository finds it, and the heading in it."""
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        if "://" not in target:
            file = page.parent / target if target else page
            assert file.exists(), f"{page.relative_to(ROOT)} links to {target}"
            assert not anchor or anchor in _anchors(file), f"{page.relative_to(ROOT)} links to {target}#{anchor}"


def _anchors(page: Path) -> set[str]:
    """Return what headings of a page are linked by: lower case, hyphens for spaces, nothing else but letters, digits and underscores."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_metric_is_documented_with_its_meaning() -> None:
    """The metrics page has the name and the help of each metric."""
    text = (ROOT / "docs/reference/metrics.md").read_text()
    for entry in ALL:
        assert f"`{entry.name}`" in text
        assert entry.help in text


def test_every_condition_of_a_kind_has_its_section() -> None:
    """The conditions page has a heading for each condition type of each kind, below the kind's own."""
    text = (ROOT / "docs/reference/conditions.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    for kind in KINDS:
        types = {type for owner in kind.resource.owners.values() for type in owner.conditions}
        headings = set(re.findall(r"\w+", " ".join(re.findall(r"^### (.*)$", sections.get(kind.resource.kind, ""), re.MULTILINE))))
        assert headings == types, kind.resource.kind


def test_every_reason_is_documented_and_written_by_a_program() -> None:
    """The conditions page, or that of failures, has a row for each reason, and none is left over from something that was given up."""
    text = (ROOT / "docs/reference/conditions.md").read_text() + (ROOT / "docs/reference/failures.md").read_text()
    sources = [file.read_text() for folder in ("controller", "agent") for file in (ROOT / folder).rglob("*.py")]
    types = {type for kind in KINDS for owner in kind.resource.owners.values() for type in owner.conditions}
    for name, value in vars(conditions).items():
        if name.isupper() and isinstance(value, str):
            assert value in types or f"`{value}` |" in text or f"`{value}`, `" in text, value
            assert any(re.search(rf"\b{name}\b", source) for source in sources), f"nobody writes {name}"


def test_every_command_has_its_section() -> None:
    """The page of the command line has each command that somebody can type, and the flags of each program."""
    text = (ROOT / "docs/reference/cli.md").read_text()
    names = list(_commands(typer.main.get_command(app), "rkfleet"))
    assert len(names) > 10
    assert [name for name in names if f"\n## `{name}`\n" not in text] == []
    for flag in ("--data-dir", "--artifact-limit-bytes", "--api-key-file", "--token-realm", "--kubeconfig-out", "--lifeline-fd"):
        assert flag in text


def _commands(command: Any, path: str) -> Iterator[str]:
    if path == "rkfleet toolkit":
        command = typer.main.get_command(toolkit_app)
    inner = getattr(command, "commands", {})
    if not inner:
        yield path
    for name, below in inner.items():
        yield from _commands(below, f"{path} {name}")


def test_every_code_of_an_error_that_clients_see_is_documented() -> None:
    """Of boards and of gateways; two are for clients that have left and see nothing."""
    text = (ROOT / "docs/reference/serving-api.md").read_text()
    found = {
        code
        for folder in ("agent/serving", "gateway")
        for file in (ROOT / folder).rglob("*.py")
        for pair in re.findall(r'\bcode="(\w+)"|Failure\(\s*\d+, "(\w+)"', file.read_text())
        for code in pair
        if code
    }
    assert len(found) > 30
    assert [code for code in sorted(found - {"client_left", "incomplete_body"}) if f"`{code}`" not in text] == []


def test_the_index_leads_to_every_page() -> None:
    """A page that nothing links to is not found by anybody."""
    text = (ROOT / "docs/index.md").read_text()
    pages = [str(page.relative_to(ROOT / "docs")) for page in sorted((ROOT / "docs").rglob("*.md"))]
    assert [page for page in pages if page != "index.md" and f"({page})" not in text] == []


def test_every_status_field_and_condition_has_one_writer() -> None:
    """No field has two owners and no condition has; but of a board without a session health says what its agent would say."""
    for kind in KINDS:
        owners = kind.resource.owners
        fields = [field for owner in owners.values() for field in owner.fields]
        types = [type for owner in owners.values() for type in owner.conditions]
        handed_over = set(owners["health"].conditions) if {"agent", "health"} <= set(owners) else set()
        assert len(fields) == len(set(fields)), kind.resource.kind
        assert {type for type in types if types.count(type) > 1} <= handed_over & set(owners["agent"].conditions if handed_over else ())


def test_no_file_names_a_package_index_or_a_path_of_one_machine() -> None:
    """Locks and scripts work with whatever index a machine is set up for."""
    words = ("pythonhosted" + ".", "pypi" + ".org/", "registry.npm" + "js", "deb.debian" + ".", "/work" + "/main", "/root" + "/")
    suffixes = {".py", ".md", ".txt", ".toml", ".yaml", ".yml", ".cfg", ""}
    folders = (
        "rkfleet",
        "controller",
        "agent",
        "gateway",
        "simulation",
        "toolkit",
        "tests",
        "bench",
        "docs",
        "manifests",
        "requirements",
        "proto",
    )
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix in suffixes]
    for path in [*files, ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "README.md"]:
        if "__pycache__" not in path.parts:
            text = path.read_text(errors="replace")
            assert not [word for word in words if word in text], path


def test_pages_say_what_is_and_leave_praise_to_others() -> None:
    """A word like these tells a reader nothing that a figure or a command would not tell better."""
    praise = re.compile(r"\b(easy|easily|simply|robust|powerful|seamless|effortless)\b", re.IGNORECASE)
    assert [f"{page.relative_to(ROOT)}: {found.group()}" for page in PAGES if (found := praise.search(page.read_text()))] == []


@pytest.mark.parametrize("picture", sorted((ROOT / "docs/images").glob("*.svg")), ids=lambda picture: picture.name)
def test_a_picture_is_small_loads_nothing_and_is_shown(picture: Path) -> None:
    """It is shown from wherever somebody reads the page."""
    assert picture.stat().st_size < 200_000
    assert not re.search(r"url\(['\"]?http|<image|<script|@import", picture.read_text())
    assert any(f"images/{picture.name})" in page.read_text() for page in [*PAGES, ROOT / "bench/README.md"])
