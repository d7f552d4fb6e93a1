"""How fast the model is, by the vendor's own protocol, beside the vendor's row.

In: a loaded `Subject`, the row to compare with (or none), how to look at the board. Out: a `Verdict`. Called by `running.py`. The prompt is
text of as many tokens as the row's; each run begins with an empty cache; the median of the runs counts. What is too slow gets its causes
from `agent/board/slowness.py`, by a look at the board right after it worked.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from typing import Final

import msgspec

from agent.board.slowness import slowness
from agent.board.snapshot import BoardSnapshot
from agent.selftest.asking import Answer
from agent.selftest.subject import Header, Subject
from agent.selftest.values import Figure, Options, Verdict, failed, passed, skipped
from rkfleet.benchmarks import PROTOCOLS, Protocol, Row, Table

__all__ = ["Reference", "guess_reference", "speed"]

DEFAULT_PROTOCOL: Final = PROTOCOLS["1.3.0"]  # For models that the table does not have: the shorter one.
OUTPUT_TOKENS_MIN: Final = 16  # The rate of fewer tokens is mostly that of the clock.
LENGTH_TRIES: Final = 3  # To hit a prompt's length; a vocabulary has one length for a passage, so the second try is right but for a word.
LENGTH_TOLERANCE: Final = 4  # Tokens; the template of a chat model cannot be cut.
STORY: Final = " Tell a very long story about it, of many pages, and never end it."
_DTYPE: Final = re.compile(r"w\d{1,2}a\d{1,2}(?:_g\d{1,4})?")


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """The row to compare with.

    Attributes:
        row: None if the table has none.
        why: How it was chosen, or why there is none; a sentence.
    """

    row: Row | None
    why: str


def guess_reference(table: Table, options: Options, header: Header, soc: str) -> Reference:
    """Return the row of a model: as the options name it, else by the name of the file.

    Args:
        table: The vendor's.
        options: `reference` and `dtype` go before what is guessed.
        header: What the runtime said: chip and quantization of the model.
        soc: Chip of the board, for runtimes that do not say for which one a model is.
    """
    name = options.models[0].stem.lower()
    chip = (header.target or header.platform or soc).lower()
    in_name = _DTYPE.search(name.replace("-", "_"))
    dtype = options.dtype or header.dtype.lower() or (in_name[0] if in_name else "")
    if options.reference:
        row = table.find(options.reference, dtype, chip)
        return Reference(row=row, why="named by --reference" if row else table.why_missing(options.reference, dtype or "?", chip))
    models = sorted({row.model for row in table.rows if _names(row.model, name)}, key=len, reverse=True)
    if not models:
        return Reference(row=None, why="the file's name is that of no model of the benchmark table; name one with --reference and --dtype")
    # The runtime may leave the group size out of what it says, and the file's name may have it.
    wanted = [dtype, in_name[0] if in_name else ""]
    row = next((found for one in wanted if one and (found := table.find(models[0], one, chip))), None)
    return Reference(row=row, why=f"guessed by the file's name, {models[0]}" if row else table.why_missing(models[0], dtype or "?", chip))


def _names(model: str, name: str) -> bool:
    """Return whether a file's name has a model's name in it, between ends of words."""
    words = [re.escape(word) for word in re.split(r"[-_ ()]+", model.lower()) if word]
    return re.search(r"(?<![a-z0-9.])" + "[-_ ]?".join(words) + r"(?![a-z0-9.])", name) is not None


async def speed(subject: Subject, reference: Reference, observe: Callable[[], BoardSnapshot]) -> Verdict:
    """Measure, and compare.

    Args:
        subject: The model.
        reference: What to compare with.
        observe: Looks at the board; blocks for some milliseconds.
    """
    row = reference.row
    protocol = row.protocol if row is not None else DEFAULT_PROTOCOL
    text = await _prompt_of(subject, protocol.prompt_tokens)
    answers = await _runs(subject, text, protocol)
    longest = max(answer.output_tokens for answer in answers)
    if longest < OUTPUT_TOKENS_MIN:
        return skipped(f"the model ended its answers after {longest} tokens, too few to measure")
    rate = statistics.median(answer.tokens_per_second for answer in answers)
    first = statistics.median(answer.first_seconds for answer in answers)
    prompt_tokens = answers[0].prompt_tokens
    figures: dict[str, Figure] = {
        "tokens_per_second": round(rate, 3),
        "time_to_first_token_seconds": round(first, 4),
        "runs": len(answers),
        "prompt_tokens": prompt_tokens,
        "output_tokens": longest,
    }
    said = f"{rate:.4g} tokens/s and {first * 1000:.0f} ms to the first token of {prompt_tokens} (median of {len(answers)})"
    if row is None:
        return passed(f"{said}; nothing to compare with: {reference.why}", figures)
    # A prompt a little longer than the table's costs a little more, and one that could not be made shorter costs much more.
    expected_first = row.time_to_first_token_seconds * max(1.0, prompt_tokens / protocol.prompt_tokens)
    figures |= {
        "row_model": row.model,
        "row_dtype": row.dtype,
        "row_soc": row.soc,
        "row_sdk_version": row.sdk_version,
        "row_tokens_per_second": row.tokens_per_second,
        "row_time_to_first_token_seconds": row.time_to_first_token_seconds,
        "share_of_row": round(rate / row.tokens_per_second, 3),
    }
    slow = slowness(rate, row.tokens_per_second, observe())
    if slow is not None:
        causes = "; ".join(dict.fromkeys(cause.sentence for cause in slow.causes))
        return failed(f"{said}: {slow.share:.0%} of the row's {row.tokens_per_second:.4g}; {causes}", figures, remedy=slow.command)
    if first * subject.limits.ttft_share > expected_first:
        return failed(f"{said}: the row has {expected_first * 1000:.0f} ms to the first token", figures, remedy="rkfleet doctor")
    return passed(f"{said}: {rate / row.tokens_per_second:.0%} of the row's {row.tokens_per_second:.4g} ({reference.why})", figures)


async def _prompt_of(subject: Subject, tokens: int) -> str:
    """Return text that the model reads as about this many tokens, its template included."""
    text, wanted = subject.text_of(tokens - 16) + STORY, tokens
    for number in range(LENGTH_TRIES):
        answer = await subject.asker.complete(text, max_tokens=1, tenant=f"length-{number}")
        missing = tokens - answer.prompt_tokens
        if abs(missing) <= LENGTH_TOLERANCE or not answer.prompt_tokens:
            break
        wanted += missing
        text = subject.text_of(max(1, wanted - 16)) + STORY
    return text


async def _runs(subject: Subject, text: str, protocol: Protocol) -> list[Answer]:
    """Return the runs that the time allows, at least one; one that takes too long is cut short."""
    began, answers = subject.clock.monotonic(), list[Answer]()
    tokens = protocol.new_tokens
    for number in range(subject.limits.runs):
        left = subject.limits.speed - (subject.clock.monotonic() - began)
        if answers and answers[-1].seconds > left:
            break
        if not answers and (rate := subject.traits.decode_tokens_per_second) > 0:
            tokens = max(OUTPUT_TOKENS_MIN, min(tokens, int(left * rate / 2)))  # a slow model decodes fewer, at the same rate
        answers.append(await subject.asker.complete(text, max_tokens=tokens, tenant=f"speed-{number}"))
    return answers
