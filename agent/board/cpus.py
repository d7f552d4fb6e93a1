"""Sets of CPU cores as the kernel writes them, and which cores the processes of rkfleet may use.

In: `0-3,6` or `0 1 2 3`, or the file system root. Out: sorted core numbers. Sources: Linux `Documentation/admin-guide/cputopology.rst`
(lists), `proc_pid_status(5)` (Cpus_allowed_list).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from agent.board.readings import names_in, read, read_text
from agent.board.snapshot import ProcessMask

__all__ = ["is_ours", "observe_masks", "parse_cpus"]

CPUS_MAX: Final = 1024  # No board has as many; a broken file must not cost memory.
_RANGE: Final = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")
_ALLOWED: Final = re.compile(r"^Cpus_allowed_list:\s*(\S+)", re.MULTILINE)
_WORKERS: Final = "agent.workers."


def parse_cpus(text: str) -> tuple[int, ...]:
    """Return the cores of a list; what is no number is left out."""
    found: set[int] = set()
    for word in re.split(r"[,\s]+", text):
        if (one := _RANGE.fullmatch(word)) is not None:
            first, last = int(one[1]), int(one[2] or one[1])
            found.update(range(first, min(last, CPUS_MAX) + 1))
    return tuple(sorted(found))


def is_ours(root: Path, pid: int) -> str:
    """Return what a process is to rkfleet, agent or worker, by its command line; empty for everything else."""
    words = (read(root / f"proc/{pid}/cmdline").text or "").split("\x00")
    modules = [words[at + 1] for at, word in enumerate(words[:-1]) if word == "-m"]
    if any(module.startswith(_WORKERS) for module in modules):
        return "worker"
    return "agent" if "agent" in modules else ""


def observe_masks(root: Path) -> tuple[ProcessMask, ...]:
    """Return the cores of every agent and worker that runs."""
    found = []
    for name in names_in(root / "proc"):
        if name.isascii() and name.isdecimal() and (role := is_ours(root, int(name))):
            allowed = _ALLOWED.search(read_text(root / f"proc/{name}/status") or "")
            if allowed and (cpus := parse_cpus(allowed[1])):
                found.append(ProcessMask(pid=int(name), name=role, cpus=cpus))
    return tuple(sorted(found, key=lambda one: one.pid))
