"""Checks of what comes out of a model: the hidden layer, logits, streamed text, and what sampling parameters do.

Each takes a loaded `Subject` and returns a `Verdict`. Called by `checks.py`.
"""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Sequence
from typing import Final

from agent.selftest.asking import Refused
from agent.selftest.subject import Subject
from agent.selftest.values import Verdict, failed, passed, skipped

__all__ = ["hidden", "logits", "sampling", "streaming"]

TEXTS: Final = ("The mill stands by the river.", "Numbers are written from left to right.", "The mill stands by the river.")
# The NPU computes in 8 or 16 bits and always alike; what differs between two runs of one input is not rounding.
SAME_COSINE_MIN: Final = 0.9999
OTHER_COSINE_MAX: Final = 0.99999
STREAM_TOKENS: Final = 48
SAMPLE_TOKENS: Final = 12
REPLACED: Final = "\N{REPLACEMENT CHARACTER}"
SAMPLING: Final = {"temperature": 0, "top_p": 0.9}


async def hidden(subject: Subject) -> Verdict:
    """Ask for the last hidden layer of two texts, of one of them twice."""
    answer = await subject.asker.post("/v1/embeddings", {"input": list(TEXTS), "tenant": "hidden"})
    first, other, again = (one["embedding"] for one in answer["data"])
    wrong = _wrong_numbers("hidden layer", first, other, again)
    if wrong is not None:
        return wrong
    subject.traits.width = len(first)
    return passed(
        f"{len(first)} numbers: two texts differ, and one text gives the same again",
        {
            "width": len(first),
            "cosine_of_two_texts": round(_cosine(first, other), 6),
            "cosine_of_one_text": round(_cosine(first, again), 6),
        },
    )


async def logits(subject: Subject) -> Verdict:
    """Ask for the logits after two texts, after one of them twice."""
    if "logits" not in subject.supports:
        try:
            await subject.asker.post("/v1/logits", {"prompt": TEXTS[0]})
        except Refused as error:
            return skipped(f"{subject.generation} has none, and says so: {error.message}")
        return failed(f"{subject.generation} has no logits and answered with some")
    found: list[array[float]] = []
    for text in TEXTS:
        answer = await subject.asker.post("/v1/logits", {"prompt": text, "tenant": "logits"})
        found.append(array("f", base64.b64decode(answer["logits"])))
        if len(found[-1]) != answer["vocab_size"]:
            return failed(f"{len(found[-1])} logits came for a vocabulary of {answer['vocab_size']} words")
    wrong = _wrong_numbers("logits", *found)
    if wrong is not None:
        return wrong
    return passed(f"{len(found[0])} words: two texts differ, and one text gives the same again", {"vocabulary": len(found[0])})


async def streaming(subject: Subject) -> Verdict:
    """Ask for characters of several bytes, and look for broken ones."""
    text = "Write one short sentence each in Polish, Chinese and Russian, with an emoji at the end of each."
    answer = await subject.asker.complete(text, max_tokens=subject.affordable(STREAM_TOKENS), tenant="streaming")
    said = answer.text
    if answer.finish_reason == "length":  # the limit may cut within the last character
        said = said.removesuffix(REPLACED)
    wide = sum(ord(letter) > 127 for letter in said)
    gaps = [later.seconds - sooner.seconds for sooner, later in zip(answer.pieces, answer.pieces[1:], strict=False)]
    figures = {"pieces": len(answer.pieces), "wide_characters": wide, "longest_gap_seconds": round(max(gaps, default=0.0), 3)}
    if REPLACED in said:
        broken = said.count(REPLACED)
        return failed(f"{broken} characters of the streamed text are broken: tokens were cut within them", figures)
    if not said:
        return failed("the answer is empty", figures)
    if answer.output_tokens > 4 and len(answer.pieces) < 2:
        return failed(f"{answer.output_tokens} tokens came as one piece: the answer is not streamed", figures)
    whole = f"{wide} characters of several bytes came whole" if wide else "the model used no character of several bytes, so none was cut"
    return passed(f"{len(answer.pieces)} pieces; {whole}", figures)


async def sampling(subject: Subject) -> Verdict:
    """Ask twice with parameters that leave no choice; where a runtime takes none, it must be said that they were ignored."""
    text = subject.text_of(24)
    first = await subject.asker.complete(text, max_tokens=SAMPLE_TOKENS, tenant="sampling-1", **SAMPLING)
    if "sampling" not in subject.supports:
        if unsaid := sorted(SAMPLING.keys() - set(first.ignored)):
            return failed(f"{subject.generation} takes no sampling parameters, and {', '.join(unsaid)} was not named as ignored")
        return passed(f"{subject.generation} takes no sampling parameters, and the answer names those that were ignored")
    if first.ignored:
        return failed(f"{', '.join(first.ignored)} had no effect, though {subject.generation} takes sampling parameters")
    second = await subject.asker.complete(text, max_tokens=SAMPLE_TOKENS, tenant="sampling-2", **SAMPLING)
    if not first.text or first.text != second.text:
        return failed("two greedy answers to one prompt differ: the parameters of the request did not reach the runtime")
    return passed(f"two greedy answers of {first.output_tokens} tokens are the same", {"output_tokens": first.output_tokens})


def _wrong_numbers(what: str, first: Sequence[float], other: Sequence[float], again: Sequence[float]) -> Verdict | None:
    """Return what is wrong with the numbers of two inputs and of the first of them again, or None."""
    sizes = {len(first), len(other), len(again)}
    if len(sizes) != 1 or not first:
        return failed(f"{what}: the sizes differ between three inputs: {sorted(sizes)}")
    if not all(math.isfinite(number) for numbers in (first, other, again) for number in numbers):
        return failed(f"{what}: some numbers are not finite")
    if not any(first) or not any(other):
        return failed(f"{what}: all numbers are zero")
    if _cosine(first, other) > OTHER_COSINE_MAX:
        return failed(f"{what}: two different texts give the same numbers", {"cosine": round(_cosine(first, other), 6)})
    if _cosine(first, again) < SAME_COSINE_MIN:
        return failed(f"{what}: one text gives other numbers the second time", {"cosine": round(_cosine(first, again), 6)})
    return None


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    dot = math.fsum(a * b for a, b in zip(one, other, strict=True))
    lengths = math.sqrt(math.fsum(a * a for a in one) * math.fsum(b * b for b in other))
    return dot / lengths if lengths else 0.0
