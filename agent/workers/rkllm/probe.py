"""`python -m agent.workers.rkllm.probe FILE`: print the default parameters of a runtime library, in a process that may crash.

In: a file. Out: `PROBE_BYTES` bytes on standard output: what `rkllm_createDefaultParam` returned, and zeros or rubbish behind it.
`run_probe` starts it by exec and waits with a limit; it is what the agent gives to `identify`, and it imports no ctypes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from agent.workers.rkllm.identify import PROBE_BYTES, Inconclusive

__all__ = ["PROBE_SECONDS", "main", "run_probe"]

PROBE_SECONDS: Final = 10.0  # Mapping 12 MB and its C++ initializers takes well under a second, also from a cold eMMC.


def run_probe(path: Path, *, seconds: float = PROBE_SECONDS) -> bytes:
    """Return the default parameters of a library, as `identify` takes them. Blocks for at most `seconds`.

    Raises:
        Inconclusive: The child crashed, took too long, or printed anything else.
    """
    command = [sys.executable, "-m", "agent.workers.rkllm.probe", str(path)]
    try:
        # What the library prints is not kept: it might be endless.
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Inconclusive(f"the child took more than {seconds:g} s") from error
    if done.returncode != 0 or len(done.stdout) != PROBE_BYTES:
        words = done.stdout.decode(errors="replace").strip()
        raise Inconclusive(f"the child ended with status {done.returncode}{words and f': {words}'}")
    return done.stdout


def main(path: str) -> int:
    """Print the bytes, or why the library cannot be mapped; return the exit status."""
    import ctypes  # noqa: PLC0415 (only the child maps libraries)

    output = os.dup(1)
    os.dup2(2, 1)  # what the library prints must not mix with the bytes
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        os.write(output, str(error).encode()[: PROBE_BYTES - 1])
        return 1
    room = type("Room", (ctypes.Structure,), {"_fields_": [("bytes", ctypes.c_uint8 * PROBE_BYTES)]})
    function = library["rkllm_createDefaultParam"]
    function.restype = room
    os.write(output, bytes(function()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
