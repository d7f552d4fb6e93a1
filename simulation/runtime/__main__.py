"""`python -m simulation.runtime build --version 1.2.3 -o DIR`: build the simulated runtime library and print its path."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agent.workers.rkllm.releases import GENERATIONS, VERSIONS
from rkfleet.errors import FleetError
from simulation.runtime.build import build, generation_of


def main(words: list[str]) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(
        prog="rkfleet simulated-runtime", description="A runtime library without an NPU, for machines without one."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    making = commands.add_parser("build", help="build librkllmrt.so with gcc and print its path")
    making.add_argument("--version", default="1.2.3", help=f"release that it says it is; known are {', '.join(VERSIONS)} (default 1.2.3)")
    making.add_argument("--generation", choices=GENERATIONS, help="interface that it has; needed for an unknown release only")
    making.add_argument("-o", "--out-dir", type=Path, required=True, help="directory to put it into, made if missing")
    making.add_argument(
        "--hide-version", action="store_true", help="keep the version out of the file, so that it is told apart by behaviour"
    )
    asked = parser.parse_args(words)
    try:
        path = build(asked.generation or generation_of(asked.version), asked.version, asked.out_dir, literal=not asked.hide_version)
    except FleetError as error:
        print(error.message, file=sys.stderr)  # noqa: T201 (a command's output)
        return error.exit_status
    print(path)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
