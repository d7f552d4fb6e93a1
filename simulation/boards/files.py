"""Enough open files for all boards: many systems allow a process 1024, and a hundred boards that stream need about as many.

In: how many boards. Out: the process's own limit, raised as far as it may be. Called by `app.py` before it opens anything.
"""

from __future__ import annotations

import logging
import resource
from typing import Final

__all__ = ["allow_open_files"]

# Lock, session and two listeners of an idle board; its worker's listener; and while it streams, connections of gateway, client and worker.
FILES_PER_BOARD: Final = 16
FILES_BESIDE: Final = 256  # Of the process itself: libraries, threads, joining, the host's own clients.

_log = logging.getLogger(__name__)


def allow_open_files(boards: int) -> int:
    """Raise the limit of open files to what so many boards need, if it is lower, and return what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_BESIDE + boards * FILES_PER_BOARD
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return soft
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        _log.warning(
            "too few open files for all boards at work; raise the hard limit (ulimit -Hn)", extra={"allowed": allowed, "needed": needed}
        )
    return allowed
