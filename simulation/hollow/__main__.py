"""`python -m simulation.hollow`: play hollow boards until told to stop."""

from __future__ import annotations

import sys

from rkfleet.process import main, setup_logging
from simulation.hollow.app import run
from simulation.hollow.config import parse_arguments


async def _program() -> None:
    config = parse_arguments(sys.argv[1:])
    setup_logging(config.log_level)
    await run(config)


if __name__ == "__main__":
    sys.exit(main(_program))
