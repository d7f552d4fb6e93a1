"""`python -m agent`: see `python -m agent --help`."""

from __future__ import annotations

import sys

from agent import allocator, app
from agent.config import parse_arguments
from rkfleet import process

if __name__ == "__main__":
    allocator.give_back_memory()
    config = parse_arguments(sys.argv[1:])
    process.setup_logging(config.log_level)
    sys.exit(process.main(lambda: app.run(config)))
