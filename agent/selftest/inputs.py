"""Checks of what goes into a model: text, tokens, embeddings, images, an adapter's weights.

Each takes a loaded `Subject` and returns a `Verdict`; the run translates what they raise. Called by `checks.py`.
"""

from __future__ import annotations

import base64
import random
import struct
import zlib
from typing import Any, Final

from agent.selftest.asking import Answer, Refused
from agent.selftest.subject import ADAPTER, Subject
from agent.selftest.values import Verdict, failed, passed, skipped

__all__ = ["adapter", "embedding", "multimodal", "prompt", "tokens"]

NEW_TOKENS: Final = 12  # Enough to see that a model goes on; 5 s on the slowest board of the table.
INPUT_TOKENS: Final = 24
IMAGE_TOKENS: Final = 16
TRIES: Final = 3  # Input that means nothing may be answered with the end at once; three kinds of it hardly are.
SCALE: Final = 0.02  # Of word embeddings: models initialize them with this deviation, and training keeps the order.
FIRST_ID: Final = 100  # Ids from here on are words or pieces of words in every vocabulary; those below are often control tokens.
PICTURE_PIXELS: Final = 64


async def prompt(subject: Subject) -> Verdict:
    """Ask with text, and learn how long text is in tokens."""
    text = subject.text_of(64)
    answer = await subject.asker.complete(f"{text} How does it go on?", max_tokens=NEW_TOKENS, tenant="prompt")
    if not answer.text:
        return failed("a text was answered with nothing", _figures(answer))
    if answer.prompt_tokens > 0:
        subject.traits.bytes_per_token = max(1.0, (len(text) + 20) / answer.prompt_tokens)
    subject.traits.decode_tokens_per_second = answer.tokens_per_second
    return passed(f"{answer.prompt_tokens} tokens of text were answered with {answer.output_tokens}", _figures(answer))


async def tokens(subject: Subject) -> Verdict:
    """Ask with token ids."""
    for number in range(1, TRIES + 1):
        ids = list(range(FIRST_ID * number, FIRST_ID * number + INPUT_TOKENS))
        answer = await subject.asker.complete(ids, max_tokens=NEW_TOKENS, tenant="tokens")
        if answer.output_tokens:
            return _judged("token ids", answer, len(ids))
    return failed(f"{TRIES} lists of {INPUT_TOKENS} token ids were answered with nothing")


async def embedding(subject: Subject) -> Verdict:
    """Ask with embeddings that mean nothing, of the width that the hidden layer has shown."""
    width = subject.traits.width
    if not width:
        return skipped("the width of the model's embeddings is unknown, because its hidden layer was not given")
    for number in range(1, TRIES + 1):
        body = {"prompt_embeds": _noise(width, INPUT_TOKENS, number), "max_tokens": NEW_TOKENS, "tenant": "embedding"}
        answer = await subject.asker.ask("/v1/completions", body)
        if answer.output_tokens:
            return _judged(f"embeddings of width {width}", answer, INPUT_TOKENS)
    return failed(f"{TRIES} inputs of {INPUT_TOKENS} embeddings of width {width} were answered with nothing")


async def multimodal(subject: Subject) -> Verdict:
    """Ask about images; without an encoder, with embeddings in an image's place, which a text model may refuse."""
    if not subject.chats:
        return skipped("runtimes before 1.2 have no chat template, and none was given with --template")
    if subject.setup.encoder is not None:
        return await _with_encoder(subject)
    width = subject.traits.width
    if not width:
        return skipped("no --encoder was given, and the width of the model's embeddings is unknown")
    part = {"type": "image_embeds", **_noise(width, IMAGE_TOKENS, 1)}
    try:
        answer = await _look(subject, part)
    except Refused as error:
        return skipped(f"no --encoder was given, and embeddings in an image's place were refused, as a text model may: {error.message}")
    return _judged("an image's place filled with made-up embeddings", answer, IMAGE_TOKENS)


async def adapter(subject: Subject) -> Verdict:
    """Ask with the adapter and without it."""
    if subject.setup.adapter is None:
        return skipped("no --adapter was given, or the model did not load with it")
    text = subject.text_of(32)
    greedy = {"temperature": 0} if "sampling" in subject.supports else {}
    plain = await subject.asker.complete(text, max_tokens=NEW_TOKENS, tenant="adapter", **greedy)
    adapted = await subject.asker.complete(text, max_tokens=NEW_TOKENS, tenant="adapter", adapter=ADAPTER, **greedy)
    again = await subject.asker.complete(text, max_tokens=NEW_TOKENS, tenant="adapter", **greedy)
    if not adapted.text:
        return failed("the adapter's answer is empty", _figures(adapted))
    if greedy and plain.text != again.text:
        return failed("without the adapter the model answers differently after it was used: it was not taken off again")
    if greedy and plain.text == adapted.text:
        return failed(
            "the adapter changes nothing: with it the model gives the same greedy answer", remedy="check that it is of this model"
        )
    return passed("the adapter was used for one request, and for no other", _figures(adapted))


async def _with_encoder(subject: Subject) -> Verdict:
    without = await _look(subject)
    red = await _look(subject, _picture((200, 30, 30)))
    blue = await _look(subject, _picture((30, 30, 200)))
    read = red.prompt_tokens - without.prompt_tokens
    if not red.text or not blue.text:
        return failed("an image was answered with nothing", _figures(red))
    if red.prompt_tokens and read < 1:
        return failed("an image adds no tokens to the prompt", _figures(red))
    return passed(f"an image is {read} tokens, and two were answered", {"image_tokens": read, **_figures(blue)})


async def _look(subject: Subject, *parts: dict[str, Any]) -> Answer:
    content = [{"type": "text", "text": "What do you see?"}, *parts]
    messages = [{"role": "user", "content": content}]
    return await subject.asker.chat(messages, max_tokens=NEW_TOKENS, tenant="images", **subject.plainly)


def _judged(what: str, answer: Answer, sent: int) -> Verdict:
    if answer.prompt_tokens < sent:
        return failed(f"{what}: {sent} were sent and {answer.prompt_tokens} were read", _figures(answer))
    if not answer.output_tokens:
        return failed(f"{what}: answered with nothing", _figures(answer))
    return passed(f"{what}: {sent} were read and answered with {answer.output_tokens} tokens", _figures(answer))


def _figures(answer: Answer) -> dict[str, float | int]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "output_tokens": answer.output_tokens,
        "first_token_seconds": round(answer.first_seconds, 4),
        "seconds": round(answer.seconds, 3),
    }


def _noise(width: int, count: int, seed: int) -> dict[str, Any]:
    numbers = random.Random(seed)  # noqa: S311 (made-up embeddings)
    floats = struct.pack(f"<{width * count}f", *(numbers.gauss(0.0, SCALE) for _ in range(width * count)))
    return {"data": base64.b64encode(floats).decode(), "tokens": count}


def _picture(colour: tuple[int, int, int]) -> dict[str, Any]:
    """Return an image of one colour as a part of a message."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes(colour) * PICTURE_PIXELS) * PICTURE_PIXELS
    head = struct.pack(">IIBBBBB", PICTURE_PIXELS, PICTURE_PIXELS, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png).decode()}"}}
