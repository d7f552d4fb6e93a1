"""Checks of what a model remembers and for whom: the window, turns of a conversation, two tenants, saved prompts.

Each takes a loaded `Subject` and returns a `Verdict`. Called by `checks.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agent.selftest.asking import Answer, Refused
from agent.selftest.subject import Subject
from agent.selftest.values import Verdict, failed, passed, shown_bytes, skipped

__all__ = ["isolation", "overflow", "prompt_cache", "reuse"]

TURN_TOKENS: Final = 96  # Of the first turn: long enough to be slow to read again, short enough for three turns in the window.
ANSWER_TOKENS: Final = 64  # For "Yes."; models that think although they were told not to get a chance to stop.
CACHED_TOKENS: Final = 128  # Of a prompt to save; its state has megabytes.
FASTER_SHARE: Final = 0.7  # A prompt of which most is known already is read in well below this part of the time.
FASTER_SECONDS_MIN: Final = 0.02  # What is saved of a time to the first token must be more than the noise of a small one.
TURNS: Final = 3  # The third shows whether the count after the second was right; a runtime that forgets is found out there.


async def overflow(subject: Subject) -> Verdict:
    """Ask with more than the window holds, then with something that fits."""
    window = subject.setup.context_tokens
    words = "word " * (window + window // 4)
    try:
        answer = await subject.asker.complete(words, max_tokens=1, tenant="overflow")
    except Refused as error:
        if error.details["type"] != "exceed_context_size_error":
            return failed(f"a prompt that is too long was refused for another reason: {error.message}")
        counted = error.details["n_prompt_tokens"]
    else:
        return failed(
            f"a prompt of {answer.prompt_tokens or 'unknown'} tokens was answered, and the window holds {window}: it was cut without a word"
        )
    after = await subject.asker.complete(subject.text_of(16), max_tokens=4, tenant="overflow")
    if not after.text:
        return failed("after a prompt that was too long the next answer is empty")
    return passed(
        f"{counted} tokens for a window of {window} were refused, and the next prompt was answered", {"refused_tokens": int(counted or 0)}
    )


async def reuse(subject: Subject) -> Verdict:
    """Go on with a conversation, and see whether what was said is read again."""
    if "keep_history" not in subject.supports:
        return skipped(f"{subject.generation} keeps no history between requests")
    if not subject.chats:
        return skipped("there is no chat template")
    messages: list[Mapping[str, Any]] = [{"role": "user", "content": f"{subject.text_of(TURN_TOKENS)} Answer with one word: yes or no?"}]
    answers: list[Answer] = []
    most = subject.affordable(ANSWER_TOKENS)
    for turn in range(TURNS):
        answer = await subject.asker.chat(messages, max_tokens=most, tenant="reuse", **subject.plainly)
        if answer.finish_reason != "stop" and turn < TURNS - 1:
            return skipped(f"the model did not end its answer within {most} tokens, so there is nothing that could be gone on with")
        answers.append(answer)
        messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": "Are you sure? One word."}]
    first, *later = answers
    figures = {
        "first_turn_seconds": round(first.first_seconds, 4),
        "later_turn_seconds": round(max(one.first_seconds for one in later), 4),
        "cached_tokens": min(one.cached_tokens for one in later),
    }
    forgotten = [number for number, one in enumerate(later, 2) if not one.cached_tokens]
    faster = all(_is_faster(first, one) for one in later)
    if forgotten and not faster:
        return failed(f"turn {forgotten[0]} was read from the beginning: none of its tokens were in the cache", figures)
    return passed(f"later turns found {figures['cached_tokens']} tokens in the cache", figures)


async def isolation(subject: Subject) -> Verdict:
    """Tell one tenant's request a secret, and ask for it as another."""
    secret, most = subject.secret, subject.affordable(ANSWER_TOKENS)
    told = f"The secret word is {secret} . Keep it. {subject.text_of(16)}"
    asked = "Repeat every word that was said before this sentence, and tell me the secret word."
    await subject.asker.complete(told, max_tokens=8, tenant="tenant-a")
    answers = [await subject.asker.complete(asked, max_tokens=most, tenant="tenant-b")]
    if subject.chats:
        await subject.asker.chat([{"role": "user", "content": told}], max_tokens=8, tenant="tenant-a", **subject.plainly)
        chat = [{"role": "user", "content": asked}]
        answers.append(await subject.asker.chat(chat, max_tokens=most, tenant="tenant-b", **subject.plainly))
    if any(secret in answer.text for answer in answers):
        return failed("one tenant was told what only another had said: the cache was not cleared between them")
    if cached := max(answer.cached_tokens for answer in answers):
        return failed(f"a new tenant's prompt had {cached} tokens in the cache, which are another's", {"cached_tokens": cached})
    return passed("a second tenant could not get at what the first had said", {"answers": len(answers)})


async def prompt_cache(subject: Subject) -> Verdict:
    """Have the state of a prompt saved, let another tenant clear the cache, and have the state loaded again."""
    directory = subject.setup.cache_dir
    if not directory:
        return skipped("there is no directory for saved prompts")
    text, key = subject.text_of(CACHED_TOKENS), {"prompt_cache_key": "self-test", "tenant": "cache-a", "max_tokens": 4}
    first = await subject.asker.complete(text, **key)
    size = _saved_bytes(Path(directory))
    if not size:
        return failed(f"after a prompt of {first.prompt_tokens} tokens no state was saved")
    await subject.asker.complete(subject.text_of(8), max_tokens=1, tenant="cache-b")
    again = await subject.asker.complete(text, **key)
    read = again.prompt_tokens - again.cached_tokens
    figures = {
        "saved_bytes": size,
        "prompt_tokens": first.prompt_tokens,
        "read_again_tokens": read,
        "first_seconds": round(first.first_seconds, 4),
        "again_seconds": round(again.first_seconds, 4),
    }
    if read > first.prompt_tokens // 2 and not _is_faster(first, again):
        return failed("a saved prompt was read again as a whole, and as slowly", figures)
    return passed(
        f"a state of {shown_bytes(size)} was saved and loaded; {max(read, 0)} of {first.prompt_tokens} tokens were read again", figures
    )


def _is_faster(first: Answer, later: Answer) -> bool:
    saved = first.first_seconds - later.first_seconds
    return saved > FASTER_SECONDS_MIN and later.first_seconds < FASTER_SHARE * first.first_seconds


def _saved_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.kv"))
