"""`python -m controller`: hold the data directory, then serve until told to stop."""

from __future__ import annotations

import sys

from controller.app import run
from controller.config import parse_arguments
from rkfleet.process import lock_data_dir, main, run_until_stopped, setup_logging


async def _program() -> None:
    config = parse_arguments(sys.argv[1:])
    setup_logging(config.log_level)
    with lock_data_dir(config.data_dir):
        await run_until_stopped(run(config), config.lifeline_fd)


if __name__ == "__main__":
    sys.exit(main(_program))
