"""Chat through the whole fleet against llama.cpp's own listener: tokens per second and time to first token.

`python -m bench.chat [--rounds N]`. Ours goes client, gateway, mutual TLS, agent, worker; the peer is client, llama.cpp. Same model file,
same context, same threads (all cores but one), same client. Each round asks both sides the same new prompt, at temperature 0 so that both
give the same answer, and every second round asks the peer first. Only one side works at a time.

TTFT is compared as the median of the differences of the pairs, because what is added is a time and not a factor. It gets rounds of its
own, more and with short prompts and answers: prefill takes a hundred times longer than what is added to it, and varies by more than that.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import httpx2
import msgspec

from bench._fleet import DEPLOYMENT, serving_fleet
from bench._listener import listener
from bench.report import Goal, Result, finish, result
from rkfleet.cli.chat import ask
from rkfleet.clock import Clock, SystemClock
from rkfleet.sample import ensure_sample

ROUNDS: Final = 20
FIRST_TOKEN_ROUNDS: Final = 150
WARM_UP_ROUNDS: Final = 2  # First requests find cold caches, connections that are not there yet, and code that was never run.
CONTEXT_TOKENS: Final = 1024
OUTPUT_TOKENS: Final = 64
SHORT_OUTPUT_TOKENS: Final = 4
SYSTEM: Final = "Be brief."  # Without one the model's template adds a longer one, and prefill hides what is added to it.
TOKENS_RATIO_MIN: Final = 0.95
FIRST_TOKEN_ADDED_MS_MAX: Final = 5.0
# llama.cpp's listener closes a connection after 100 requests or 5 idle seconds, without a word; a new one on loopback costs it 0.2 ms.
ONE_USE: Final = httpx2.Limits(max_keepalive_connections=0)
THINGS: Final = ("a river", "the moon", "bread", "a violin", "winter", "a bridge", "honey", "a lighthouse", "glass", "a compass")
WAYS: Final = ("to a child", "in simple words", "as a story", "with an example", "step by step", "for a poster", "as a letter")


class Speed(msgspec.Struct, frozen=True):
    """What one answer's client saw."""

    first_token_seconds: float
    tokens_per_second: float


class Side:
    """One way to the model."""

    def __init__(self, http: httpx2.AsyncClient, url: str, clock: Clock) -> None:
        self._http: Final = http
        self._url: Final = url
        self._clock: Final = clock

    async def chat(self, prompt: str, output_tokens: int) -> Speed:
        """Ask and return what the client saw."""
        body = {
            "model": DEPLOYMENT,
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}],
            "max_tokens": output_tokens,
            "temperature": 0,
        }
        answer = await ask(self._http, self._url, body, self._clock)
        if answer.time_to_first_token_seconds is None or answer.decode_tokens_per_second is None:
            raise SystemExit(f"{self._url} answered {prompt!r} with {answer.output_tokens} tokens: too few to measure")
        return Speed(answer.time_to_first_token_seconds, answer.decode_tokens_per_second)


async def measure(directory: Path, clock: Clock, rounds: int) -> list[Result]:
    threads = max(1, (os.cpu_count() or 1) - 1)
    model = await ensure_sample()
    async with (
        serving_fleet(directory, clock, contextTokens=CONTEXT_TOKENS, maxOutputTokens=OUTPUT_TOKENS) as fleet,
        listener(model, context_tokens=CONTEXT_TOKENS, threads=threads) as peer_url,
        httpx2.AsyncClient(timeout=120.0, trust_env=False) as pooled,
        httpx2.AsyncClient(timeout=120.0, trust_env=False, limits=ONE_USE) as unpooled,
    ):
        sides = Side(pooled, fleet.endpoints.gateway, clock), Side(unpooled, peer_url, clock)
        chance = random.Random(rounds)
        long_prompts = [f"{chance.randrange(10_000)}: explain {chance.choice(THINGS)} {chance.choice(WAYS)}." for _ in range(rounds)]
        short_prompts = [f"{chance.randrange(10_000)}?" for _ in range(FIRST_TOKEN_ROUNDS)]
        await pairs(sides, long_prompts[:WARM_UP_ROUNDS], SHORT_OUTPUT_TOKENS)
        return compare(await pairs(sides, long_prompts, OUTPUT_TOKENS), await pairs(sides, short_prompts, SHORT_OUTPUT_TOKENS))


async def pairs(sides: tuple[Side, Side], prompts: Sequence[str], output_tokens: int) -> list[tuple[Speed, Speed]]:
    """Ask both sides each prompt, each side first in every second round; return what was seen, ours first."""
    seen: list[tuple[Speed, Speed]] = []
    ours, peer = sides
    for number, prompt in enumerate(prompts):
        if number % 2 == 0:
            our = await ours.chat(prompt, output_tokens)
            their = await peer.chat(prompt, output_tokens)
        else:
            their = await peer.chat(prompt, output_tokens)
            our = await ours.chat(prompt, output_tokens)
        seen.append((our, their))
    return seen


def compare(long_answers: Sequence[tuple[Speed, Speed]], short_answers: Sequence[tuple[Speed, Speed]]) -> list[Result]:
    """Return decode rates of the long answers and first tokens of the short ones, each against its goal."""
    beside = "llama.cpp's own listener"
    first_ms = [(our.first_token_seconds * 1000, their.first_token_seconds * 1000) for our, their in short_answers]
    added_ms = statistics.median(our - their for our, their in first_ms)
    return [
        result(
            "decode",
            "tokens/s",
            [our.tokens_per_second for our, _ in long_answers],
            peer=beside,
            theirs=[their.tokens_per_second for _, their in long_answers],
            goal=Goal("ratio", ">=", TOKENS_RATIO_MIN),
        ),
        result("ttft", "ms", [our for our, _ in first_ms], peer=beside, theirs=[their for _, their in first_ms]),
        result("ttft_added", "ms", [added_ms], goal=Goal("value", "<=", FIRST_TOKEN_ADDED_MS_MAX)),
    ]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.chat", description="Chat through the fleet against llama.cpp's own listener.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="pairs of long answers (default %(default)s)")
    options = parser.parse_args(arguments)
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="rkfleet-bench-") as directory:
        results = asyncio.run(measure(Path(directory) / "fleet", clock, options.rounds))
    return finish("chat", results, clock)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
