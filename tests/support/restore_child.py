"""Backups and restores that are killed: each n-th child kills itself before the n-th thing it does to files.

That is opening, making, renaming or removing one, or a statement of SQLite. The first n that is not reached ends it.

- `python -m tests.support.restore_child restore HERE DIRECTORY BACKUP` copies the data directory HERE to DIRECTORY/n and restores into it.
- `python -m tests.support.restore_child backup HERE DIRECTORY` backs HERE up into DIRECTORY/n.tar and writes DIRECTORY/count.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from controller.backups.restoring import restore_backup
from controller.backups.taking import take_backup
from rkfleet.clock import SystemClock
from rkfleet.process import lock_data_dir
from tests.support.killing import die_before

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
CLOCK = SystemClock()


def restore(number: int, target: Path, backup: Path) -> None:
    with lock_data_dir(target):
        die_before(number, EVENTS)
        restore_backup(target, backup, now=CLOCK.now())


def main() -> None:
    what, (here, directory) = sys.argv[1], map(Path, sys.argv[2:4])
    for number in range(1_000):
        if what == "restore":
            shutil.copytree(here, directory / str(number))
        child = os.fork()
        if not child:
            if what == "restore":
                restore(number, directory / str(number), Path(sys.argv[4]))
            else:
                die_before(number, EVENTS)
                take_backup(here, directory / f"{number}.tar", clock=CLOCK, version="1")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            (directory / "count").write_text(str(number + 1)) if what == "backup" else None
            sys.exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main()
