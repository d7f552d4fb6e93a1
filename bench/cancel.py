"""How soon the NPU is free after a client has left: from the end of the token that was being computed until the next prefill begins.

`python -m bench.cancel [--cancels N] [--release V]`. A whole local fleet is started with its own commands; two boards are agent processes
with the simulated runtime's library behind real worker processes, one with a model of 5 tokens/s and one of 25. As a device does, the
library sees an abort at the end of a token, or of prefill, and not within it (`abort_at_token`). Time is real.

A round: a client asks for a long answer. A second client asks for one token and waits in the board's queue. The first closes its
connection, within a token or within prefill. Of the library's schedule the client knows when the first token came and how far tokens are
apart, so it knows when the token that it closed in was at its end; and the second's prefill began by the model's time to the first token
before its first token came. Both instants are seen at the client, later than they were by the same way. A close is never in the last
quarter of a token: what arrives at its end may meet the next one, which is then the token that is computed to its end.

A close that the machine holds up until the token is over meets the next one, and shows as a whole token more. How late a timer of this
process was at most is told beside the figures (`stall_max`); no cancel is left out because of it.

Every second answer is checked: it begins with the library's label and has the tokens that it should. Through the gateway the same again.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from bench._npu import NpuBoard, NpuFleet, npu_fleet, say
from bench._stream import Client, Refused, Seen
from bench.report import Goal, Result, finish, result
from rkfleet.cli.variants import VariantWords
from rkfleet.clock import Clock, SystemClock
from simulation.runtime.build import generation_of

CANCELS: Final = 100  # Of each kind on each path; with fewer the 99th percentile would be the largest.
RELEASE: Final = "1.3.0"
FREED_MS_MAX: Final = 50.0
CLOSE_WITHIN: Final = (0.05, 0.75)  # Part of a token, or of prefill, after which a client leaves.
SETTLE_SECONDS: Final = 0.03  # The first request is in the worker before the second is sent.
OUTPUT_TOKENS: Final = 2000
PULSE_SECONDS: Final = 0.005  # A stall of the machine that would move a close to another token is found.
PROMPT: Final = "Tell a long story."


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """A model for the simulated runtime."""

    name: str
    first_token_seconds: float
    tokens_per_second: float

    def file(self) -> bytes:
        """Return the model's file."""
        keys = {
            "ttft_ms": self.first_token_seconds * 1000,
            "tokens_per_s": self.tokens_per_second,
            "reply_tokens": OUTPUT_TOKENS,
            "abort_at_token": 1,
        }
        return ("RKLLMFAKE\n" + "".join(f"{key} {value:g}\n" for key, value in keys.items())).encode()


SPEEDS: Final = (
    Speed(name="slow", first_token_seconds=0.2, tokens_per_second=5.0),
    Speed(name="fast", first_token_seconds=0.1, tokens_per_second=25.0),
)


class Side:
    """One way to one model, with two clients on it."""

    def __init__(self, url: str, model: str, speed: Speed, label: str, clock: Clock) -> None:
        self._model: Final = model
        self._speed: Final = speed
        self._label: Final = label
        self._clock: Final = clock
        self._leaving: Final = Client(url, clock)
        self._next: Final = Client(url, clock)
        self._chance: Final = random.Random(speed.name)

    async def warm_up(self) -> None:
        """Ask until the way is there; on a gateway a new model needs a moment."""
        for attempt in range(100):
            try:
                self._check(await self._next.complete(self._model, PROMPT, 1))
                return
            except Refused as refused:
                if refused.status not in {404, 503} or attempt == 99:
                    raise
                await self._clock.sleep(0.1)

    async def leave_in_decode(self) -> float:
        """Return the seconds from the end of the token in which the client left until the next prefill began."""
        token = 1 / self._speed.tokens_per_second
        pieces = self._leaving.pieces(self._model, PROMPT, OUTPUT_TOKENS)
        first = await anext(pieces)
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(self._next.complete(self._model, PROMPT, 1))
            for _ in range(self._chance.randrange(3)):
                await anext(pieces)
            within = self._chance.uniform(*CLOSE_WITHIN)
            now = self._clock.monotonic()
            await self._clock.sleep(max(0.0, first.at + (math.floor((now - first.at) / token + 0.5) + within) * token - now))
            left_at = self._clock.monotonic()
            self._leaving.leave()
        await pieces.aclose()
        return self._prefill_began(waiting.result()) - (first.at + math.ceil((left_at - first.at) / token) * token)

    async def leave_in_prefill(self) -> float:
        """Return the seconds from the end of the prefill in which the client left until the next prefill began."""
        seconds = self._speed.first_token_seconds
        async with asyncio.TaskGroup() as tasks:
            leaving = tasks.create_task(_read(self._leaving, self._model))
            await self._clock.sleep(SETTLE_SECONDS)
            waiting = tasks.create_task(self._next.complete(self._model, PROMPT, 1))
            within = max(SETTLE_SECONDS * 1.5, self._chance.uniform(*CLOSE_WITHIN) * seconds)
            await self._clock.sleep(within - SETTLE_SECONDS)
            leaving.cancel()
            self._leaving.leave()
        return self._prefill_began(waiting.result()) - (self._leaving.asked_at + seconds)

    def _prefill_began(self, seen: Seen) -> float:
        self._check(seen)
        return seen.pieces[0].at - self._speed.first_token_seconds

    def _check(self, seen: Seen) -> None:
        if not seen.text.startswith(self._label) or len(seen.pieces) != 1 or seen.usage.get("completion_tokens") != 1:
            raise SystemExit(f"{self._model} answered {seen.text!r} with {seen.usage}, not with one token that is {self._label}")


async def _read(client: Client, model: str) -> None:
    async for piece in client.pieces(model, PROMPT, OUTPUT_TOKENS):
        raise SystemExit(f"{model} gave {piece.text!r} to a client that should have left in prefill")


async def measure(directory: Path, clock: Clock, options: argparse.Namespace) -> list[Result]:
    label = f"[simulated runtime {options.release} {generation_of(options.release)}]"
    pulse = Pulse(clock)
    async with npu_fleet(directory / "fleet", clock, {"rk3588": len(SPEEDS)}, options.release) as fleet, asyncio.TaskGroup() as tasks:
        beating = tasks.create_task(pulse.run())
        async with asyncio.TaskGroup() as boards:
            running = [
                boards.create_task(
                    of_board(fleet, board, speed, directory / f"{speed.name}.rkllm", label=label, clock=clock, cancels=options.cancels)
                )
                for board, speed in zip(fleet.boards, SPEEDS, strict=True)
            ]
        beating.cancel()
    return [
        *(one for task in running for one in task.result()),
        result("stall_max", "ms", [1000 * pulse.late_seconds_max]),
        result("load_average", "tasks", [os.getloadavg()[0]]),
    ]


class Pulse:
    """How late a timer of this process was at most."""

    def __init__(self, clock: Clock) -> None:
        self._clock: Final = clock
        self.late_seconds_max = 0.0

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            due = self._clock.monotonic() + PULSE_SECONDS
            await self._clock.sleep(PULSE_SECONDS)
            late = self._clock.monotonic() - due
            if late > self.late_seconds_max:
                self.late_seconds_max = late
                say(f"a timer was {1000 * late:.1f} ms late")


async def of_board(fleet: NpuFleet, board: NpuBoard, speed: Speed, file: Path, *, label: str, clock: Clock, cancels: int) -> list[Result]:
    """Return what was measured with one model."""
    await asyncio.to_thread(file.write_bytes, speed.file())
    variant = {
        "name": "rk3588-w8a8", "soc": "rk3588", "dtype": "w8a8", "runtime": "rkllm", "contextTokens": 4096, "requires": {"memory": "256Mi"},
    }  # fmt: skip
    await fleet.push(speed.name, file, VariantWords(variant))
    results = []
    async with fleet.serving(speed.name, board, contextTokens=4096, maxOutputTokens=OUTPUT_TOKENS) as name:
        for path, url in (("board", board.url), ("gateway", fleet.gateway)):
            side = Side(url, name, speed, label, clock)
            await side.warm_up()
            for kind, leave in (("decode", side.leave_in_decode), ("prefill", side.leave_in_prefill)):
                freed = [1000 * await leave() for _ in range(cancels)]
                what = f"freed_{speed.name}_{kind}_{path}"
                results += [
                    result(f"{what}_p50", "ms", [statistics.median(freed)]),
                    result(f"{what}_p99", "ms", [percentile(freed, 0.99)], goal=Goal("value", "<=", FREED_MS_MAX)),
                    result(f"{what}_max", "ms", [max(freed)]),
                ]
                say(f"{what}: {len(freed)} cancels, p50 {statistics.median(freed):.1f} ms, largest {max(freed):.1f} ms")
    return results


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cancel", description="How soon the NPU is free after a client has left.")
    parser.add_argument("--cancels", type=int, default=CANCELS, help="of each kind on each path (default %(default)s)")
    parser.add_argument("--release", default=RELEASE, metavar="V", help="release of the simulated runtime (default %(default)s)")
    options = parser.parse_args(arguments)
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="rkfleet-bench-") as directory:
        results = asyncio.run(measure(Path(directory), clock, options))
    return finish("cancel", results, clock)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
