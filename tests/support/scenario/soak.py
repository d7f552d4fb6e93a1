"""Plays many seeds and says which of them break a promise: `python -m tests.support.scenario.soak --seeds 200`."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor

import msgspec

from tests.support.scenario.chance import chaos
from tests.support.scenario.stage import play

PROGRESS_SECONDS = 10.0


class Played(msgspec.Struct):
    """What one seed came to, small enough to hand from one process to another."""

    seed: int
    virtual_seconds: float
    real_seconds: float
    commits: int
    checks: int
    broken: str


def play_seed(seed: int) -> Played:
    outcome = play(str(seed), chaos)
    broken = f"{type(outcome.broken).__name__}: {outcome.broken}" if outcome.broken else ""
    return Played(seed, outcome.virtual_seconds, outcome.real_seconds, outcome.commits, outcome.checks, broken)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--seed", type=int, help="play only this one and print its transcript")
    options = parser.parse_args()
    if options.seed is not None:
        return replay(options.seed)
    began = told = time.perf_counter()
    played: list[Played] = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for one in pool.map(play_seed, range(options.first, options.first + options.seeds), chunksize=4):
            played.append(one)
            if one.broken:
                print(f"seed {one.seed}: {one.broken}\n  replay: make soak-scenarios SEED={one.seed}", flush=True)
            if time.perf_counter() - told > PROGRESS_SECONDS:
                told = time.perf_counter()
                print(f"{len(played)} of {options.seeds} seeds, {sum(bool(one.broken) for one in played)} broken", flush=True)
    failed = [one.seed for one in played if one.broken]
    virtual, real = sum(one.virtual_seconds for one in played), sum(one.real_seconds for one in played)
    print(
        f"{len(played)} seeds, {len(failed)} broken{': ' + ' '.join(map(str, failed)) if failed else ''}; "
        f"{virtual / 3600:.1f} h of fleets in {time.perf_counter() - began:.0f} s on {options.jobs} processes, "
        f"{virtual / real:.0f}:1 in each; "
        f"{sum(one.commits for one in played)} writes, {sum(one.checks for one in played)} checks"
    )
    return 1 if failed else 0


def replay(seed: int) -> int:
    outcome = play(str(seed), chaos)
    print(outcome.transcript)
    print(f"seed {seed}: {outcome.virtual_seconds:.0f} s of a fleet in {outcome.real_seconds:.2f} s; sha256 {outcome.sha256}")
    if outcome.broken:
        traceback.print_exception(outcome.broken)
    return 1 if outcome.broken else 0


if __name__ == "__main__":
    sys.exit(main())
