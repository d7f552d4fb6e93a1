"""`python -m controller`: hold the data directory, then serve until told to stop; or `backup` and `restore` it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from controller.app import run
from controller.backups import commands
from controller.backups.restoring import refuse_half_restored
from controller.config import parse_arguments
from rkfleet import __version__
from rkfleet.clock import SystemClock
from rkfleet.errors import FleetError
from rkfleet.process import lock_data_dir, main, run_until_stopped, setup_logging


async def _program() -> None:
    config = parse_arguments(sys.argv[1:])
    setup_logging(config.log_level)
    with lock_data_dir(config.data_dir):
        refuse_half_restored(config.data_dir)
        await run_until_stopped(run(config), config.lifeline_fd)


def _command(word: str, arguments: Sequence[str]) -> int:
    """Do what a person at a terminal asks for, and return the exit status."""
    try:
        commands.run(word, arguments, clock=SystemClock(), version=__version__)
    except FleetError as error:
        print(f"error: {error.message}", file=sys.stderr)  # noqa: T201 (the person at the terminal reads this line)
        return error.exit_status
    return 0


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(_command(given[0], given[1:]) if given and given[0] in commands.WORDS else main(_program))
