"""`python -m simulation.boards`: see `python -m simulation.boards --help`."""

from __future__ import annotations

import sys

from rkfleet import process
from simulation.boards import app
from simulation.boards.config import parse_arguments

if __name__ == "__main__":
    config = parse_arguments(sys.argv[1:])
    process.setup_logging(config.log_level)
    sys.exit(process.main(lambda: app.run(config)))
