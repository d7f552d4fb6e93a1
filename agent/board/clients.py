"""Who else has the NPU open. A second client can hang the whole board, so it is looked for before that happens.

In: the file system root, the NPU's nodes, whose children are ours. Out: `Client` values and how many processes hid their files. Called by
`telemetry.py`. A look at every open file of a busy machine takes longer than a pass of the agent may, so `ClientScan` looks at a bounded
number of links in each step and knows the whole after a few; the doctor takes one step without a bound.

Sources: `proc_pid_fd(5)`; Linux `Documentation/gpu/drm-usage-stats.rst` (`drm-driver` in fdinfo).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from agent.board.cpus import is_ours
from agent.board.readings import names_in, read_text
from agent.board.snapshot import Client

__all__ = ["ClientScan"]

# A readlink takes about 3 µs on a PC and three times that on a slow core: 300 of them fit into a step of a millisecond or three.
LINKS_PER_STEP: Final = 300
ANCESTORS_MAX: Final = 32  # Processes are nested a handful deep; a table that loops, as a broken one may, ends here.
_RKNPU: Final = re.compile(r"^drm-driver:\s*rknpu\b", re.MULTILINE | re.IGNORECASE)


class ClientScan:
    """A look at the open files of all processes, in steps. What is known is that of the last whole look.

    Attributes:
        clients: Other users of the NPU; None before the first whole look.
        hidden: Processes that did not let their files be read in it.
    """

    def __init__(self, root: Path, agent_pid: int = 0) -> None:
        """Take the root, and the process whose children are no other users; 0 for none."""
        self._proc: Final = root / "proc"
        self._root: Final = root
        self._agent_pid: Final = agent_pid
        self._under_way: Iterator[None] | None = None
        self.clients: tuple[Client, ...] | None = None
        self.hidden = 0

    def step(self, nodes: Collection[str], links_max: int | None = LINKS_PER_STEP) -> None:
        """Look at up to `links_max` more links (None for all that are left); a look that is whole replaces the one before."""
        if self._under_way is None:
            self._under_way = self._look(frozenset(nodes))
        for count, _ in enumerate(self._under_way, 1):
            if links_max is not None and count >= links_max:
                return
        self._under_way = None

    def _look(self, nodes: frozenset[str]) -> Iterator[None]:
        """Go through all processes, giving way after each link; ends by keeping what was found."""
        found, hidden = [], 0
        for name in names_in(self._proc):
            if not (name.isascii() and name.isdecimal()):
                continue
            yield
            try:
                descriptors = os.listdir(self._proc / name / "fd")
            except PermissionError:
                hidden += 1
                continue
            except OSError:
                continue
            node = ""
            for descriptor in descriptors:
                yield
                if node := self._node(name, descriptor, nodes):
                    break
            if node and not self._is_own(int(name)):
                comm = read_text(self._proc / name / "comm") or "unknown"
                found.append(Client(pid=int(name), name=comm, node=node))
        self.clients, self.hidden = tuple(sorted(found, key=lambda one: one.pid)), hidden

    def _node(self, pid: str, descriptor: str, nodes: frozenset[str]) -> str:
        """Return the node of the NPU that a descriptor is; empty for every other file."""
        try:
            target = os.readlink(self._proc / pid / "fd" / descriptor)
        except OSError:
            return ""
        if target in nodes:
            return target
        # In a container the node may have another name, and the driver is told beside the link.
        if target.startswith("/dev/dri/renderD") and _RKNPU.search(read_text(self._proc / pid / "fdinfo" / descriptor) or ""):
            return target
        return ""

    def _is_own(self, pid: int) -> bool:
        """Return whether a process is the agent, one of its children, or a worker by its command line."""
        if is_ours(self._root, pid):
            return True
        at = pid
        for _ in range(ANCESTORS_MAX):
            if at == self._agent_pid:
                return True
            at = self._parent(at)
            if at <= 1:
                break
        return False

    def _parent(self, pid: int) -> int:
        fields = (read_text(self._proc / str(pid) / "stat") or "").rpartition(")")[2].split()
        return int(fields[1]) if len(fields) > 1 and fields[1].isascii() and fields[1].isdecimal() else 0
