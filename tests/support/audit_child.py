"""A process whose audit log is on a real, small, full file system, for `tests/unit/test_audit.py`.

`python -m tests.support.audit_child DIRECTORY` mounts a tmpfs of 1 MiB there, which takes a mount namespace of its own, fills it, writes
lines, frees it, and prints one JSON line: what was said while it was full, and which lines are there in the end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from controller.audit import AuditLog
from rkfleet.clock import SystemClock
from rkfleet.metrics import Metrics

LINES = 2_000  # Of about 300 bytes: more than half of the file system.


def until(holds: Callable[[], bool]) -> None:
    """Wait for a level that the log's thread reaches."""
    waited = threading.Event()
    while not holds():
        waited.wait(0.01)


def main(directory: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(directory)], check=True)
    ballast = directory / "ballast"
    ballast.write_bytes(bytes(700_000))
    with AuditLog(directory / "audit", SystemClock(), Metrics("controller")) as log:
        for number in range(LINES):
            log.wrote({"n": number, "pad": "x" * 280})
        until(lambda: bool(log.why_not()))
        said = log.why_not()
        ballast.unlink()
        until(lambda: not log.why_not())
    kept = [json.loads(line)["n"] for line in (directory / "audit" / "audit.jsonl").read_text().splitlines()]
    print(json.dumps({"said": said, "whole": kept == list(range(LINES))}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
