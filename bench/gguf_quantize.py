"""How fast weights become blocks of GGUF, beside the `gguf` package's own numpy, in the same run; both must make the same bytes.

    python -m bench.gguf_quantize [--rounds 15] [--rows 2048]

Matrices of 4096 columns, normally distributed. One thread and two; the peer has one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import gguf
import numpy as np

from bench.report import Goal, Result, finish, interleave, result
from rkfleet.clock import SystemClock
from toolkit.quantize.blocks import encode

KINDS: Final = ("Q8_0", "Q4_0", "Q4_1", "F16", "BF16")
GOALS: Final = {"Q8_0": Goal("ratio", ">=", 2.0), "Q4_0": Goal("ratio", ">=", 2.0)}
COLUMNS: Final = 4096


def main() -> int:
    """Measure, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, default=2048)
    given = parser.parse_args()
    values = np.random.default_rng(1).standard_normal((given.rows, COLUMNS)).astype(np.float32)
    results: list[Result] = []
    for kind in KINDS:
        theirs = gguf.GGMLQuantizationType[kind]
        wanted = gguf.quantize(values, theirs).tobytes()
        for threads in (1, 2):
            if np.ascontiguousarray(encode(values, kind, threads=threads)).tobytes() != wanted:
                print(f"{kind} with {threads} threads differs from gguf.quantize", file=sys.stderr)
                return 1
        sides = [
            _speed(values.nbytes, partial(encode, values, kind, threads=1)),
            _speed(values.nbytes, partial(encode, values, kind, threads=2)),
            _speed(values.nbytes, partial(gguf.quantize, values, theirs)),
        ]
        one, two, peer = interleave(given.rounds, *sides)
        results.extend(
            (
                result(f"{kind}, one thread", "MB/s", one, peer="gguf.quantize", theirs=peer),
                result(f"{kind}, two threads", "MB/s", two, peer="gguf.quantize", theirs=peer, goal=GOALS.get(kind)),
            )
        )
    return finish("gguf_quantize", results, SystemClock())


def _speed(size: int, call: Callable[[], Any]) -> Callable[[], float]:
    def measure() -> float:
        before = time.perf_counter()
        call()
        return size / 1e6 / (time.perf_counter() - before)

    return measure


if __name__ == "__main__":
    sys.exit(main())
