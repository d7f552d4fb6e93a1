"""The `llamacpp` backend on a board against llama.cpp's own listener: tokens per second at one and at four requests at a time.

`python -m bench.llamacpp [--rounds N]`. Ours goes client, agent (its listener for local clients), worker; the peer is client, llama.cpp.
Same model file, same context per request, same places, same threads (all cores but one), same client, temperature 0. A round asks both
sides the same new prompts, and every second round asks the peer first; only one side works at a time. A rate is all output tokens of a
round by the time from the first request to the last byte, prefill included. With one request at a time both sides must say the same words.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import httpx2

from bench._fleet import DEPLOYMENT, serving_fleet
from bench._listener import listener
from bench.report import Goal, Result, finish, result
from rkfleet.cli.chat import ask
from rkfleet.clock import Clock, SystemClock
from rkfleet.sample import ensure_sample

ROUNDS: Final = 12
WARM_UP_ROUNDS: Final = 2  # First requests find cold caches and code that was never run.
CONCURRENT: Final = (1, 4)
PLACES: Final = max(CONCURRENT)
CONTEXT_TOKENS: Final = 512
OUTPUT_TOKENS: Final = 96
RATIO_MIN: Final = 0.97
BOARD: Final = "cpu-1"
# llama.cpp's listener closes a connection after 100 requests or 5 idle seconds, without a word; a new one on loopback costs 0.2 ms.
ONE_USE: Final = httpx2.Limits(max_keepalive_connections=0)
THINGS: Final = ("a river", "the moon", "bread", "a violin", "winter", "a bridge", "honey", "a lighthouse", "glass", "a compass")


class Side:
    """One way to the model."""

    def __init__(self, http: httpx2.AsyncClient, url: str, clock: Clock) -> None:
        self._http: Final = http
        self._url: Final = url
        self._clock: Final = clock

    async def round(self, prompts: Sequence[str]) -> tuple[float, tuple[str, ...]]:
        """Ask all prompts at once; return output tokens per second of them together, and the answers."""
        began = self._clock.monotonic()
        answers = await asyncio.gather(*(self._answer(prompt) for prompt in prompts))
        seconds = self._clock.monotonic() - began
        return sum(tokens for _, tokens in answers) / seconds, tuple(text for text, _ in answers)

    async def _answer(self, prompt: str) -> tuple[str, int]:
        body = {
            "model": DEPLOYMENT,
            "messages": [{"role": "system", "content": "Write much."}, {"role": "user", "content": prompt}],
            "max_tokens": OUTPUT_TOKENS,
            "temperature": 0,
        }
        answer = await ask(self._http, self._url, body, self._clock)
        if not answer.output_tokens:
            raise SystemExit(f"{self._url} answered {prompt!r} with nothing")
        return answer.text, answer.output_tokens


async def measure(directory: Path, clock: Clock, rounds: int) -> list[Result]:
    threads = max(1, (os.cpu_count() or 1) - 1)
    model = await ensure_sample()
    serving = {"contextTokens": CONTEXT_TOKENS, "maxOutputTokens": OUTPUT_TOKENS, "maxConcurrent": PLACES, "threads": threads}
    async with (
        serving_fleet(directory, clock, **serving) as fleet,
        listener(model, context_tokens=CONTEXT_TOKENS, threads=threads, places=PLACES) as peer_url,
        httpx2.AsyncClient(timeout=120.0, trust_env=False, limits=ONE_USE) as http,
    ):
        ours, peer = Side(http, fleet.endpoints.boards[BOARD], clock), Side(http, peer_url, clock)
        return [await compare(ours, peer, concurrent, rounds) for concurrent in CONCURRENT]


async def compare(ours: Side, peer: Side, concurrent: int, rounds: int) -> Result:
    """Return both sides' rates with so many requests at a time, against the goal."""
    chance = random.Random(concurrent)
    rates: tuple[list[float], list[float]] = ([], [])
    for number in range(WARM_UP_ROUNDS + rounds):
        prompts = [f"{chance.randrange(10_000)}: tell a long story about {chance.choice(THINGS)}." for _ in range(concurrent)]
        order = ((0, ours), (1, peer)) if number % 2 == 0 else ((1, peer), (0, ours))
        said = {}
        for side, one in order:
            rate, said[side] = await one.round(prompts)
            if number >= WARM_UP_ROUNDS:
                rates[side].append(rate)
        # With several at a time the batches differ, and with them the last bits of floating point sums.
        if concurrent == 1 and said[0] != said[1]:
            raise SystemExit(f"to {prompts[0]!r} ours said {said[0][0]!r} and llama.cpp {said[1][0]!r}")
    goal = Goal("ratio", ">=", RATIO_MIN)
    return result(f"rate_{concurrent}_at_a_time", "tokens/s", rates[0], peer="llama.cpp's own listener", theirs=rates[1], goal=goal)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.llamacpp", description="The llamacpp backend against llama.cpp's own listener.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="pairs for each number of requests (default %(default)s)")
    options = parser.parse_args(arguments)
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="rkfleet-bench-") as directory:
        results = asyncio.run(measure(Path(directory) / "fleet", clock, options.rounds))
    return finish("llamacpp", results, clock)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
