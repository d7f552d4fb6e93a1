"""`python -m agent` that looks at its machine every fraction of a second: for tests that change a file and wait until it is noticed."""

from __future__ import annotations

import sys

import msgspec

from agent import app
from agent.config import Config, parse_arguments
from agent.standalone import app as standalone
from agent.standalone import config as standalone_config
from rkfleet import process

LOOK_SECONDS = 0.25


def quick(config: Config) -> Config:
    return msgspec.structs.replace(config, look_seconds=LOOK_SECONDS)


if __name__ == "__main__":
    if "--standalone" in sys.argv:
        options = standalone_config.parse_arguments(sys.argv[1:])
        options = msgspec.structs.replace(options, agent=quick(options.agent))
        process.setup_logging(options.agent.log_level)
        sys.exit(process.main(lambda: standalone.run(options)))
    config = parse_arguments(sys.argv[1:])
    process.setup_logging(config.log_level)
    sys.exit(process.main(lambda: app.run(quick(config))))
