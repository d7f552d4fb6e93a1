"""`python -m controller.registry`: the registry process."""

from __future__ import annotations

import sys

from controller.registry import app, config
from rkfleet import process


def main() -> int:
    """Run the registry and return its exit status."""
    chosen = config.parse_arguments(sys.argv[1:])
    process.setup_logging(chosen.log_level)
    return process.main(lambda: app.run(chosen))


if __name__ == "__main__":
    sys.exit(main())
