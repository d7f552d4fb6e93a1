"""The agent's allocator gives back what was needed once."""

import subprocess
import sys

# Sixty-four blocks of 100 KiB lie on the heap, below the size that malloc maps for itself; the limit rises with a large block before it.
PROGRAM = """
import ctypes, sys
from pathlib import Path
from agent.allocator import give_back_memory

if sys.argv[1] == "told":
    give_back_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.free(libc.malloc(24 << 20))
blocks = [libc.malloc(100 << 10) for _ in range(64)]
for block in blocks:
    ctypes.memset(block, 1, 100 << 10)
for block in blocks:
    libc.free(block)
status = Path("/proc/self/status").read_text()
print(next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")))
"""


def rss_kib(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True).stdout)


def test_freed_memory_goes_back_to_the_kernel() -> None:
    assert rss_kib("told") < rss_kib("not told") - 4096
