"""Every row of the vendor's table for SDK 1.1.0 through the simulated runtime library, on the board and through the gateway.

`python -m bench.seed_table [--rows N] [--boards N] [--release V] [--plot FILE]`. A whole local fleet is started with its own commands; its
boards are agent processes that see machines of RK3588 and RK3576. Each row is a model of its own: pushed, deployed on one board, loaded by
a real worker process through the real bindings, and asked over HTTP for 256 tokens after a prompt of 64 tokens, at the board's own listener
and at the gateway. Time is real. Several boards work at once, each with one model at a time, because a row is paced by sleep and not by
CPU; each board takes the longest row of its chip that is left.

Measured at the client by a monotonic clock: tokens/s of the 255 tokens after the first, and the time to the first token. The latter is the
median of as many requests as `--tries` says, of which one is the long one and the others end after two tokens; all rows get as many. Both
paths are warm: one request went before. Every answer is checked: label, 256 tokens by events and by usage, 64 prompt tokens, none of them
from a cache, the board that was meant, the same text on both paths. A wrong one ends the script.

What a row says is what the vendor measured; the library only keeps its pace. So the figures say what the way from the library to the
client costs: bindings, worker, agent, and gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from bench import _seed_table_views as views
from bench._npu import NpuBoard, NpuFleet, npu_fleet, say
from bench._stream import Client, Refused, Seen
from bench.report import Goal, Result, finish, result
from rkfleet.benchmarks import Row, load_table
from rkfleet.cli.placeholders import object_name, placeholder_of
from rkfleet.clock import Clock, SystemClock
from simulation.runtime.build import generation_of

SDK: Final = "1.1.0"
CONTEXT_TOKENS: Final = 320
RELEASE: Final = "1.1.4"  # The last release of the line that the rows are from.
BOARDS: Final = 8
TRIES: Final = 5
SHORT_TOKENS: Final = 2
ROUTE_SECONDS_MAX: Final = 20.0  # Until a gateway has heard of a replica that its board serves already.
ROUTE_LOOK_SECONDS: Final = 0.1
RATE_RATIO_MIN: Final = 0.99
FIRST_TOKEN_ADDED_MS_MAX: Final = 5.0


class Bench:
    """What all boards share."""

    def __init__(self, fleet: NpuFleet, clock: Clock, release: str, tries: int, rows: Sequence[Row]) -> None:
        self._fleet: Final = fleet
        self._clock: Final = clock
        self._label: Final = f"[simulated runtime {release} {generation_of(release)}]"
        self._tries: Final = tries
        longest_first = sorted(rows, key=_seconds_of, reverse=True)
        self._left: Final = {soc: deque(row for row in longest_first if row.soc == soc) for soc in {row.soc for row in rows}}
        self.measured: Final[list[views.Measured]] = []
        self.answer_seconds = 0.0

    async def work(self, board: NpuBoard) -> None:
        """Measure rows of the board's chip until none is left."""
        rows = self._left.get(board.soc, deque())
        while rows:
            row = rows.popleft()
            serving = {"contextTokens": CONTEXT_TOKENS, "maxOutputTokens": row.protocol.new_tokens}
            async with self._fleet.serving(model_of(row), board, **serving) as name:
                # Every second row begins with the gateway, so that neither path is always first.
                order = views.PATHS if len(self.measured) % 2 == 0 else views.PATHS[::-1]
                seen = {path: await self._measure(row, board, name, path) for path in order}
            if seen["board"].text != seen["gateway"].text:
                raise SystemExit(f"{name}: the board said {seen['board'].text!r}, through the gateway {seen['gateway'].text!r}")
            self.measured.append(views.Measured(row=row, board=seen["board"].figures, gateway=seen["gateway"].figures))
            say(views.sentence(self.measured[-1], len(self.measured)))

    async def _measure(self, row: Row, board: NpuBoard, name: str, path: views.Way) -> _Answered:
        url = board.url if path == "board" else self._fleet.gateway
        began = self._clock.monotonic()
        async with Client(url, self._clock) as client:
            prompt = prompt_of(row, await self._warm_up(client, row, name))
            whole = await client.complete(name, prompt, row.protocol.new_tokens)
            self._check(whole, row, board, name, row.protocol.new_tokens)
            firsts = [whole.first_token_seconds]
            for _ in range(self._tries - 1):
                short = await client.complete(name, prompt, SHORT_TOKENS)
                self._check(short, row, board, name, SHORT_TOKENS)
                firsts.append(short.first_token_seconds)
        self.answer_seconds += self._clock.monotonic() - began
        return _Answered(whole.text, views.Figures(statistics.median(firsts), whole.tokens_per_second))

    async def _warm_up(self, client: Client, row: Row, name: str) -> int:
        """Ask once on a connection that then stays, and return how many tokens the model's own template puts around a prompt."""
        deadline = self._clock.monotonic() + ROUTE_SECONDS_MAX
        while True:
            try:
                seen = await client.complete(name, prompt_of(row, 0), 1)
            except Refused as refused:
                if refused.status not in {404, 503} or self._clock.monotonic() > deadline:
                    raise
                await self._clock.sleep(ROUTE_LOOK_SECONDS)
            else:
                return int(seen.usage["prompt_tokens"]) - row.protocol.prompt_tokens

    def _check(self, seen: Seen, row: Row, board: NpuBoard, name: str, tokens: int) -> None:
        """Raise SystemExit unless it is the answer that was asked for."""
        cached = (seen.usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        found = {
            "label": seen.text[: len(self._label)],
            "events": len(seen.pieces),
            "completion_tokens": seen.usage.get("completion_tokens"),
            "prompt_tokens": seen.usage.get("prompt_tokens"),
            "cached_tokens": cached,
            "board": seen.headers.get(b"x-rkfleet-board", b"").decode(),
        }
        wanted = {
            "label": self._label, "events": tokens, "completion_tokens": tokens, "prompt_tokens": row.protocol.prompt_tokens,
            "cached_tokens": 0, "board": board.name,
        }  # fmt: skip
        if found != wanted:
            raise SystemExit(f"{name} on {board.name} answered with {found} instead of {wanted}")


class _Answered(msgspec.Struct, frozen=True):
    text: str
    figures: views.Figures


def model_of(row: Row) -> str:
    """Return the name of a row's Model."""
    return f"{object_name(row.model)}-{row.dtype.replace('_', '-')}"


def prompt_of(row: Row, template_tokens: int) -> str:
    """Return a prompt that is, with the template's tokens, as long as the table's: the library takes a word for a token."""
    return " ".join(["word", *(f"{number:03d}" for number in range(1, row.protocol.prompt_tokens - template_tokens))])


def _seconds_of(row: Row) -> float:
    return row.time_to_first_token_seconds + (row.protocol.new_tokens - 1) / row.tokens_per_second


async def measure(directory: Path, clock: Clock, options: argparse.Namespace) -> tuple[list[views.Measured], list[Result]]:
    rows = load_table().select("", "", SDK)
    if options.rows:
        rows = tuple(sorted(rows, key=_seconds_of)[: options.rows])
    chips = sorted({row.soc for row in rows}, reverse=True)
    boards: Mapping[str, int] = {soc: options.boards // len(chips) or 1 for soc in chips}
    async with npu_fleet(directory / "fleet", clock, boards, options.release) as fleet:
        for row in rows:
            placeholder = placeholder_of(row)
            file = directory / placeholder.file_name
            await asyncio.to_thread(file.write_bytes, placeholder.body)
            await fleet.push(model_of(row), file, placeholder.words)
        say(f"{len(rows)} models are pushed; load average {os.getloadavg()[0]:.2f}")
        bench = Bench(fleet, clock, options.release, options.tries, rows)
        began = clock.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for board in fleet.boards:
                tasks.create_task(bench.work(board))
        seconds = clock.monotonic() - began
    order = {id(row): number for number, row in enumerate(rows)}
    measured = sorted(bench.measured, key=lambda one: order[id(one.row)])
    assert len(measured) == len(rows), f"{len(measured)} of {len(rows)} rows were measured"
    return measured, [
        *_results(measured),
        result("rows", "rows", [len(measured)]),
        result("answers_at_a_time", "answers", [bench.answer_seconds / seconds]),
        result("load_average", "tasks", [os.getloadavg()[0]]),
    ]


def _results(measured: Sequence[views.Measured]) -> list[Result]:
    """Return for each path the worst row, which has the goal, and the median."""
    results = []
    for path in views.PATHS:
        ratios = [one.rate_ratio(path) for one in measured]
        added = [one.first_token_added_ms(path) for one in measured]
        results += [
            result(f"rate_ratio_min_{path}", "of the row", [min(ratios)], goal=Goal("value", ">=", RATE_RATIO_MIN)),
            result(f"rate_ratio_median_{path}", "of the row", ratios),
            result(f"first_token_added_max_{path}", "ms", [max(added)], goal=Goal("value", "<=", FIRST_TOKEN_ADDED_MS_MAX)),
            result(f"first_token_added_median_{path}", "ms", added),
        ]
    return results


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.seed_table", description="Rows of the vendor's table through the runtime.")
    add = parser.add_argument
    add("--rows", type=int, default=0, metavar="N", help="measure the N quickest rows only (default: all)")
    add("--boards", type=int, default=BOARDS, metavar="N", help="boards at the same time, half of each chip (default %(default)s)")
    add("--release", default=RELEASE, metavar="V", help="release of the simulated runtime (default %(default)s)")
    add("--tries", type=int, default=TRIES, metavar="N", help="times to the first token of which the median counts (default %(default)s)")
    add("--plot", type=Path, metavar="FILE", help="write a picture of it (SVG)")
    options = parser.parse_args(arguments)
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="rkfleet-bench-") as directory:
        measured, results = asyncio.run(measure(Path(directory), clock, options))
    views.print_table(measured)
    if options.plot is not None:
        options.plot.write_text(views.draw(measured, options.release))
    return finish("seed_table", results, clock)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
