"""`python -m agent.packaging install|uninstall`: what `rkfleet agent install` and `rkfleet agent uninstall` become."""

from __future__ import annotations

import sys

from agent.packaging.config import parse_arguments
from rkfleet.errors import FleetError

if __name__ == "__main__":
    try:
        parse_arguments(sys.argv[1:])()
    except FleetError as error:
        print(f"error: {error.message}", file=sys.stderr)  # noqa: T201 (the person at the terminal reads this line)
        sys.exit(error.exit_status)
