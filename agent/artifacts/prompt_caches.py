"""Directories of saved prompts: one for each model and runtime version, gone when no replica needs it.

In: names from the planner. Out: bytes removed, and how many are left, which count against the storage of artifacts. A worker writes the
files of its own directory and keeps them below `serving.promptCache`; this is only about whose directories there are. Called by the loop
and by the artifact cache.

    prompt-cache/<sha256 of the weights>-<runtime version>/
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

__all__ = ["PromptCaches"]


class PromptCaches:
    """The directories of one agent."""

    def __init__(self, data_dir: Path) -> None:
        """Take the agent's data directory; nothing is made in it before a worker saves prompts."""
        self.directory: Final = data_dir / "prompt-cache"

    def used_bytes(self) -> int:
        """Return what all of them take."""
        return sum(_sizes(self.directory))

    def foreign(self, names: AbstractSet[str]) -> tuple[str, ...]:
        """Return the directories that are there and not in `names`."""
        try:
            return tuple(sorted(set(os.listdir(self.directory)) - names))
        except OSError:  # most boards save no prompts
            return ()

    def remove(self, names: tuple[str, ...]) -> None:
        """Remove directories with all that is in them. Blocks. What cannot be removed stays and is found again."""
        for name in names:
            shutil.rmtree(self.directory / name, ignore_errors=True)


def _sizes(directory: Path) -> Iterator[int]:
    """Yield the size of every file below; a worker may remove one while this looks."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _sizes(Path(entry.path))
            else:
                with contextlib.suppress(OSError):
                    yield entry.stat(follow_symlinks=False).st_size
