"""`python -m agent`: see `python -m agent --help`, and `python -m agent --standalone --help` for a board without a fleet."""

from __future__ import annotations

import faulthandler
import sys

from agent import allocator, app
from agent.config import parse_arguments
from rkfleet import process

if __name__ == "__main__":
    faulthandler.enable()  # a watchdog ends a hung agent by SIGABRT, which then prints where it hung
    allocator.give_back_memory()
    arguments = sys.argv[1:]
    if "--standalone" in arguments:
        # Imported here: a board of a fleet does not carry it, and its memory is counted.
        from agent.standalone import app as standalone
        from agent.standalone import config as standalone_config

        options = standalone_config.parse_arguments(arguments)
        process.setup_logging(options.agent.log_level)
        sys.exit(process.main(lambda: standalone.run(options)))
    config = parse_arguments(arguments)
    process.setup_logging(config.log_level)
    sys.exit(process.main(lambda: app.run(config)))
