"""Which runtime libraries are on this board, and by what evidence their generation is known.

In: files, named or in the usual places. Out: `LibraryFacts` of each. Called by `running.py`. The agent decides by the first evidence that
tells (`agent.workers.rkllm.identify`); here all of it is looked at and compared, the default parameters too, which a throw-away child
shows: a library that contradicts itself is what a crash in the first request comes from.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from agent.selftest.values import Verdict, failed, passed, skipped
from agent.workers.libraries import Library, NamedLibrary, find_libraries
from agent.workers.rkllm.errors import UnknownRuntime
from agent.workers.rkllm.identify import Inconclusive, generation_of_defaults, generations_of_symbols, identify, look
from agent.workers.rkllm.probe import run_probe
from agent.workers.rkllm.releases import CONTENTS

__all__ = ["Found", "LibraryFacts", "check_library", "look_at_libraries"]

POINTER_BYTES: Final = struct.calcsize("P")  # A library of another width cannot be mapped by this interpreter.


class LibraryFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One library.

    Attributes:
        content: Its git object id, and `release_by_content` the release that has it; empty for none that is known.
        symbols: Generations whose functions it exports.
        literals: Strings in it that look like a release.
        defaults: The generation that its default parameters are of; else why that is unknown.
        generation: What the agent takes it for, by the evidence `how`; empty with a `problem`.
    """

    path: str
    size_bytes: int = 0
    machine: str = ""
    content: str = ""
    release_by_content: str = ""
    symbols: tuple[str, ...] = ()
    literals: tuple[str, ...] = ()
    defaults: str = ""
    generation: str = ""
    version: str = ""
    how: str = ""
    problem: str = ""


class Found(msgspec.Struct, frozen=True):
    """All libraries, those that are used first, the newest first; the agent would use `usable`."""

    usable: tuple[Library, ...]
    facts: tuple[LibraryFacts, ...]
    problems: tuple[str, ...]


def look_at_libraries(named: Sequence[NamedLibrary], root: Path) -> Found:
    """Find and examine libraries. Blocks: each is read whole and mapped in a child of its own, for some seconds at most."""
    found = find_libraries(named, root)
    names = {one.path: one for one in named}
    facts = [_facts(one.path, names.get(one.path)) for one in found.usable]
    facts += [_facts(one.path, one) for one in named if one.path not in {library.path for library in found.usable}]
    return Found(found.usable, tuple(facts), found.problems)


def check_library(found: Found, *, needed: bool) -> Verdict:
    """Return whether there is a library whose evidence agrees.

    Args:
        found: What `look_at_libraries` found.
        needed: A model is to be run with it.
    """
    wrong = [*found.problems, *(why for facts in found.facts if (why := contradiction(facts)))]
    if wrong:
        return failed("; ".join(dict.fromkeys(wrong)), remedy="install a release as it was published: docs/reference/rkllm-runtimes.md")
    if not found.usable:
        why = "no librkllmrt.so is in the usual places; name one with --runtime-library FILE"
        return failed(why, remedy="rkfleet doctor --self-test --runtime-library FILE") if needed else skipped(why)
    unknown = [one for one in found.facts if one.defaults not in {"G1", "G2", "G3", "G4"}]
    shown = ", ".join(
        f"{Path(one.path).name} {one.version or 'of an unknown release'} is {one.generation} by its {one.how}" for one in found.usable
    )
    sure = f"; {unknown[0].defaults}" if unknown else "; default parameters agree"
    return passed(shown + sure, {"libraries": len(found.usable)})


def contradiction(facts: LibraryFacts) -> str:
    """Return what does not fit together, or empty."""
    if not facts.generation or facts.defaults in {"", facts.generation} or not facts.defaults.startswith("G"):
        return ""
    return (
        f"runtime library {facts.path} is {facts.generation} by its {facts.how}, and its default parameters are those of {facts.defaults}"
    )


def _facts(path: Path, named: NamedLibrary | None) -> LibraryFacts:
    facts = LibraryFacts(path=str(path))
    try:
        seen = look(path)
        facts = msgspec.structs.replace(
            facts,
            size_bytes=path.stat().st_size,
            machine=seen.shared.machine,
            content=seen.content,
            release_by_content=CONTENTS.get(seen.content, ""),
            literals=tuple(sorted(seen.versions)),
        )
        facts = msgspec.structs.replace(facts, symbols=generations_of_symbols(seen.shared.symbols), defaults=_defaults(path))
        known = identify(path, override=named.generation if named else None, probe=run_probe)
    except (UnknownRuntime, OSError) as error:
        return msgspec.structs.replace(facts, problem=error.message if isinstance(error, UnknownRuntime) else str(error))
    return msgspec.structs.replace(facts, generation=known.generation, version=known.version, how=known.how)


def _defaults(path: Path) -> str:
    try:
        generation = generation_of_defaults(run_probe(path), POINTER_BYTES)
    except Inconclusive as error:
        return f"looking at default parameters failed: {error.message}"
    return generation or "its default parameters fit no generation that is known"
