"""Restores that are killed: `python -m tests.support.restore_child HERE BACKUP DIRECTORY`.

For n = 0, 1, … it copies the data directory HERE to DIRECTORY/n and forks a child that restores BACKUP into it and kills itself before the
n-th thing it does to files: opening, making, renaming or removing one, or a statement of SQLite. It ends with the first n that is not
reached.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from controller.backups.restoring import restore_backup
from rkfleet.clock import SystemClock
from rkfleet.process import lock_data_dir
from tests.support.killing import die_before


def main() -> None:
    here, backup, directory = map(Path, sys.argv[1:])
    for number in range(1_000):
        target = directory / str(number)
        shutil.copytree(here, target)
        child = os.fork()
        if not child:
            with lock_data_dir(target):
                die_before(number, ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"))
                restore_backup(target, backup, now=SystemClock().now())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            sys.exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main()
