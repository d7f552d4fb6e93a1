"""`python -m gateway`: enrol once, then serve until told to stop."""

from __future__ import annotations

import random
import sys

from gateway.app import run
from gateway.config import Config, parse_config
from rkfleet.clock import SystemClock
from rkfleet.identity import Enrolment, ensure_identity
from rkfleet.process import lock_data_dir, main, run_until_stopped, setup_logging

NAME = "gateway"


async def _program() -> None:
    config = parse_config(sys.argv[1:])
    setup_logging(config.log_level)
    with lock_data_dir(config.data_dir):
        await run_until_stopped(_serve(config), config.lifeline_fd)


async def _serve(config: Config) -> None:
    enrolment = None
    if config.token or config.token_file:
        enrolment = Enrolment(role="gateway", name=NAME, controller=config.controller, token=config.token, ca_pin=config.ca_pin)
    jitter = random.Random()  # noqa: S311 (spreads retries)
    identity = await ensure_identity(config.data_dir / "identity", enrolment, SystemClock(), jitter, config.token_file)
    await run(config, identity)


if __name__ == "__main__":
    sys.exit(main(_program))
