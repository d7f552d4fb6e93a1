"""Fleets made by chance: faults, an operator at work, and every promise watched. `make soak-scenarios SEEDS=10000` plays many more.

A seed that has found something stays here, with what it found.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.scenario.chance import chaos
from tests.support.scenario.stage import play

FEW = (1, 2, 5, 7, 12, 15)  # Those that catch mutants (`mutants.py`) among them.
FOUND = {
    103408: "an old replica that no board was told of held the room that its deployment's new replicas waited for",
    103008: "a gateway was held to the lag of now while its watch still stood in a longer one",
    103484: "replicas that were ready to start together did, beside a leaving worker that left room for one of them",
    102178: "replicas that no board was told of, because their Model went, held up the revision of the Model that came after it",
    100231: "a controller whose disk was full could not be started again",
    7108: "a fetch that found the disk full was remembered for ever when another replica brought the same file",
    40118: "a replica whose Model went before its board heard of it drained for ever",
    30006: "replicas of a deployment that was deleted and made again between two lists of a cache were never collected",
    20178: "a successor staged on another board held the room that a missing replica waited for, and waited for its predecessor itself",
    5038: "a Board that was deleted and made again was called Ready by the session of the one before",
}
RATIO_MIN = 10.0


@pytest.mark.parametrize("seed", [*FEW, *FOUND])
def test_every_promise_holds_whatever_happens(seed: int) -> None:
    """Also: once the faults have ended, all is as declared in bounded time and nothing more is written."""
    outcome = play(str(seed), chaos)
    assert outcome.broken is None, f"replay: make soak-scenarios SEED={seed}\n{outcome.broken}\n{outcome.transcript[-4000:]}"
    assert outcome.checks > 100


@pytest.mark.soak
def test_every_promise_holds_in_many_fleets(soak_factor: int) -> None:
    """As above, with seeds that nobody chose; `make soak-scenarios` plays as many as one likes, on both cores."""
    broken = {seed: outcome.broken for seed in range(1000, 1000 + 20 * soak_factor) if (outcome := play(str(seed), chaos)).broken}
    assert broken == {}, "replay with make soak-scenarios SEED=n"


def test_a_fleet_lives_at_least_ten_times_faster_than_the_clock() -> None:
    """Virtual seconds for each real one; on a machine that does other things too it is some hundreds."""
    outcome = play("1", chaos)
    assert outcome.virtual_seconds / outcome.real_seconds >= RATIO_MIN


@pytest.mark.parametrize("hash_seed", ["1", "4242"])
def test_a_seed_is_replayed_bit_for_bit_in_another_process(hash_seed: str) -> None:
    """Every stored object, every message and every moment is the same, whatever the hash seed and the addresses of objects."""
    here = play("181", chaos)
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-m", "tests.support.scenario.soak", "--seed", "181"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
    assert here.transcript in said
    assert f"sha256 {here.sha256}" in said
