"""Which runtime libraries of the NPU this board has, and what each of them is.

In: the files that the operator names, else those in the usual places. Out: one `Library` for each version that can be used, and a sentence
for each file that cannot. Called once, by `agent/parts.py` at start; nothing is mapped into the agent (`agent/workers/rkllm/identify.py`).
Several versions side by side are an ordinary state: each worker is told the file that it loads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from agent.workers.rkllm.errors import UnknownRuntime
from agent.workers.rkllm.identify import Identified, identify
from agent.workers.rkllm.probe import run_probe
from agent.workers.rkllm.releases import GENERATIONS, Generation
from rkfleet.versions import version_order

__all__ = ["LIBRARIES_MAX", "Libraries", "Library", "NamedLibrary", "find_libraries", "parse_named_library"]

FILE_NAME: Final = "librkllmrt.so"

# Where the vendor's instructions and packages put it, and where rkfleet expects versions side by side.
PLACES: Final = ("usr/lib", "usr/local/lib")
SIDE_BY_SIDE: Final = "opt/rkfleet/runtimes"

# A Board lists at most 16 runtimes, other ones included. Each library costs the start a read of 12 MB.
LIBRARIES_MAX: Final = 12


class NamedLibrary(msgspec.Struct, frozen=True):
    """A file that the operator names, with its generation where the operator knows it better than the file tells."""

    path: Path
    generation: Generation | None = None


class Library(msgspec.Struct, frozen=True, kw_only=True):
    """One library that can be used.

    Attributes:
        version: Its release; empty where only the generation is known.
        how: By what evidence the generation is known.
        simulated: It needs no NPU.
    """

    path: Path
    version: str
    generation: Generation
    how: str
    simulated: bool = False


class Libraries(msgspec.Struct, frozen=True):
    """What was found, the newest first; `problems` has a sentence for each file that is not used."""

    usable: tuple[Library, ...] = ()
    problems: tuple[str, ...] = ()


def parse_named_library(text: str) -> NamedLibrary:
    """Read `FILE` or `FILE=GENERATION`.

    Raises:
        ValueError: No file is named, or no such generation is known.
    """
    path, _, word = text.rpartition("=") if "=" in text else (text, "", "")
    if not path:
        raise ValueError(f"{text!r} names no file")
    if not word:
        return NamedLibrary(Path(path))
    generation = next((one for one in GENERATIONS if one == word), None)
    if generation is None:
        raise ValueError(f"{text!r}: generation {word!r} is not known; known are {', '.join(GENERATIONS)}")
    return NamedLibrary(Path(path), generation)


def find_libraries(named: Sequence[NamedLibrary], root: Path, probe: Callable[[Path], bytes] = run_probe) -> Libraries:
    """Look for libraries and identify each. Blocks: it reads every file, and may look at one in a child process.

    Args:
        named: What the operator names; then nothing else is looked at.
        root: Root of the file system in which the usual places are.
        probe: How to look at default parameters; see `agent.workers.rkllm.probe`.
    """
    wanted = named or [NamedLibrary(path) for path in _in_usual_places(root)]
    found: dict[str, Library] = {}
    problems = [
        f"runtime library {one.path} is left out: at most {LIBRARIES_MAX} are used; name those that matter with --runtime-library"
        for one in wanted[LIBRARIES_MAX:]
    ]
    for one in wanted[:LIBRARIES_MAX]:
        try:
            identified = identify(one.path, override=one.generation, probe=probe)
        except UnknownRuntime as error:
            problems.append(error.message)
            continue
        before = found.get(identified.version)
        if before is not None:
            problems.append(_same_version(one.path, identified, before))
        else:
            found[identified.version] = Library(
                path=one.path,
                version=identified.version,
                generation=identified.generation,
                how=identified.how,
                simulated=identified.simulated,
            )
    newest_first = sorted(found.values(), key=lambda library: version_order(library.version), reverse=True)
    return Libraries(tuple(newest_first), tuple(problems))


def _in_usual_places(root: Path) -> list[Path]:
    """Return the libraries there, each file once though several names lead to it."""
    candidates = [root / place / FILE_NAME for place in PLACES]
    candidates += sorted((root / SIDE_BY_SIDE).glob(f"*/{FILE_NAME}"))
    files: dict[Path, Path] = {}
    for path in candidates:
        if path.is_file():
            files.setdefault(path.resolve(), path)
    return list(files.values())


def _same_version(path: Path, identified: Identified, before: Library) -> str:
    what = f"release {identified.version}" if identified.version else "a release that cannot be told"
    return f"runtime library {path} is left out: it is {what}, as {before.path} is, which is used"
