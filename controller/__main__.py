"""`python -m controller`: hold the data directory, then serve until told to stop; or `backup` and `restore` it."""

from __future__ import annotations

import sys

from controller.app import run
from controller.backups import commands
from controller.backups.restoring import refuse_half_restored
from controller.config import parse_arguments
from rkfleet import __version__
from rkfleet.clock import SystemClock
from rkfleet.process import lock_data_dir, main, run_until_stopped, setup_logging


async def _program() -> None:
    if sys.argv[1:2] and sys.argv[1] in commands.WORDS:
        commands.run(sys.argv[1], sys.argv[2:], clock=SystemClock(), version=__version__)
        return
    config = parse_arguments(sys.argv[1:])
    setup_logging(config.log_level)
    with lock_data_dir(config.data_dir):
        refuse_half_restored(config.data_dir)
        await run_until_stopped(run(config), config.lifeline_fd)


if __name__ == "__main__":
    sys.exit(main(_program))
