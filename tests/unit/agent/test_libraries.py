"""Which runtime libraries a board uses: found or named, each version once, and a sentence for every other file."""

from pathlib import Path

import pytest

from agent.workers.libraries import LIBRARIES_MAX, NamedLibrary, find_libraries, parse_named_library
from agent.workers.rkllm.identify import PROBE_BYTES
from tests.support.runtimes import SYMBOLS, shared_object


def put(path: Path, generation: str, version: str = "") -> Path:
    """Write a library that exports what its generation does and has its version in it, as releases do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(shared_object(SYMBOLS[generation], [version] if version else []))  # type: ignore[index]
    return path


def nothing_to_see(path: Path) -> bytes:
    return bytes(PROBE_BYTES)


def test_libraries_side_by_side_are_all_used_the_newest_first(tmp_path: Path) -> None:
    """The usual places, and a directory for each version; one file under two names is one."""
    new = put(tmp_path / "opt/rkfleet/runtimes/1.3.0/librkllmrt.so", "G4", "1.3.0")
    old = put(tmp_path / "usr/lib/librkllmrt.so", "G3", "1.2.3")
    (tmp_path / "usr/local/lib").mkdir(parents=True)
    (tmp_path / "usr/local/lib/librkllmrt.so").symlink_to(old)
    found = find_libraries((), tmp_path, nothing_to_see)
    assert [(one.version, one.generation, one.path) for one in found.usable] == [("1.3.0", "G4", new), ("1.2.3", "G3", old)]
    assert found.problems == ()


def test_named_libraries_are_the_only_ones_and_the_operators_word_is_taken(tmp_path: Path) -> None:
    """A file that does not tell its version needs the word; without it a sentence names the option."""
    put(tmp_path / "usr/lib/librkllmrt.so", "G3", "1.2.3")
    silent = put(tmp_path / "mine.so", "G4")
    told = find_libraries([NamedLibrary(silent, "G4")], tmp_path, nothing_to_see)
    assert [(one.version, one.generation, one.how) for one in told.usable] == [("", "G4", "override")]
    untold = find_libraries([NamedLibrary(silent)], tmp_path, nothing_to_see)
    assert untold.usable == ()
    (problem,) = untold.problems
    assert str(silent) in problem


def test_what_cannot_be_used_is_said_and_the_rest_is_used(tmp_path: Path) -> None:
    """A missing file, one that is no library, and a second file of a version that is used already."""
    good = put(tmp_path / "good.so", "G4", "1.3.0")
    twin = put(tmp_path / "twin.so", "G4", "1.3.0")
    text = tmp_path / "text.so"
    text.write_text("hello")
    found = find_libraries([NamedLibrary(one) for one in (good, tmp_path / "none.so", text, twin)], tmp_path, nothing_to_see)
    assert [one.path for one in found.usable] == [good]
    assert len(found.problems) == 3
    assert found.problems[2] == f"runtime library {twin} is left out: it is release 1.3.0, as {good} is, which is used"


def test_no_more_libraries_are_read_than_a_board_may_list(tmp_path: Path) -> None:
    one = NamedLibrary(put(tmp_path / "good.so", "G4", "1.3.0"))
    found = find_libraries([one] * (LIBRARIES_MAX + 2), tmp_path, nothing_to_see)
    assert sum("at most 12 are used" in problem for problem in found.problems) == 2


def test_a_named_library_is_read_with_and_without_its_generation() -> None:
    assert parse_named_library("/a=b.so=G4") == NamedLibrary(Path("/a=b.so"), "G4")
    assert parse_named_library("/lib.so") == NamedLibrary(Path("/lib.so"))
    for text in ("/lib.so=G9", "=G4", ""):
        with pytest.raises(ValueError, match=r"generation 'G9'|names no file"):
            parse_named_library(text)
