"""`rkfleet simulated-runtime build --version 1.2.3 -o DIR`: build the simulated runtime library and print its path."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agent.workers.rkllm.releases import GENERATIONS, VERSIONS
from rkfleet.errors import FleetError
from simulation.runtime.build import build, generation_of

__all__ = ["main", "parse_arguments"]


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Return version, generation (or None), out_dir and hide_version."""
    parser = argparse.ArgumentParser(
        prog="rkfleet simulated-runtime build", description="Build a librkllmrt.so that needs no NPU, with gcc, and print its path."
    )
    parser.add_argument("--version", default="1.2.3", help=f"release that it says it is: {', '.join(VERSIONS)} (default 1.2.3)")
    parser.add_argument("--generation", choices=GENERATIONS, help="interface that it has; needed for any other version")
    parser.add_argument("-o", "--out-dir", type=Path, required=True, help="directory to put it into, made if missing")
    parser.add_argument("--hide-version", action="store_true", help="keep the version out of the file, to be told apart by behaviour")
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    """Return the exit status."""
    asked = parse_arguments(words)
    try:
        path = build(asked.generation or generation_of(asked.version), asked.version, asked.out_dir, literal=not asked.hide_version)
    except FleetError as error:
        print(error.message, file=sys.stderr)  # noqa: T201 (a command's output)
        return error.exit_status
    print(path)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
