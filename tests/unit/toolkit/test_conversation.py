"""Turns: what is run of each, what is forgotten when the window is full, and what an answer that was broken off leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from rkfleet.clock import SystemClock
from rkfleet.errors import FailedPrecondition
from tests.support.random_llama import Bytes, random_network
from toolkit.session.conversation import Conversation
from toolkit.session.inputs import Prompt
from toolkit.session.sampling import Sampling
from toolkit.session.session import Finish, Request, Session

NETWORK = random_network()
REQUEST = Request(input=Prompt(""), sampling=Sampling(temperature=0.0, repeat_penalty=1.0), max_new_tokens=4, ignore_ends=True)


class Ascii(Bytes):
    """As the random network says anything: every token is a printable character, so that what is rendered again is what was said."""

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(chr(0x100 + one) for one in tokens)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return [ord(one) - 0x100 if ord(one) >= 0x100 else ord(one) for one in text]


class Letters:
    """A template of one letter for each role."""

    def __init__(self) -> None:
        self.rendered: list[str] = []

    def render(self, messages: Sequence[Mapping[str, str]], *, thinking: bool | None = None) -> str:
        self.rendered.append("".join(f"<{one['role'][0]}{one['content']}>" for one in messages) + "<a")
        return self.rendered[-1]


def session(context: int) -> Session:
    return Session(NETWORK, Ascii(), SystemClock(), context=context)


def finished(conversation: Conversation, text: str) -> Finish:
    *_, finish = conversation.ask(text, REQUEST)
    assert isinstance(finish, Finish)
    return finish


def test_a_turn_runs_what_is_new_of_the_conversation():
    conversation = Conversation(session(64), Letters(), system="be")
    first = finished(conversation, "hi")
    second = finished(conversation, "you")
    assert (first.prompt_tokens, first.reused_tokens) == (len("<sbe><uhi><a"), 0)
    # All of the first turn but its last token, which was never run.
    assert second.reused_tokens == first.prompt_tokens + 4 - 1


def test_a_full_window_forgets_the_oldest_exchanges_and_never_the_system():
    template = Letters()
    conversation = Conversation(session(40), template, system="be")
    for word in "abcdef":
        finished(conversation, word)
    assert conversation.dropped > 0
    assert template.rendered[-1].startswith("<sbe><u")
    assert template.rendered[-1].endswith("<uf><a")
    assert len(template.rendered[-1]) <= 40 - 4


def test_an_answer_that_is_broken_off_stays_as_far_as_it_came():
    template = Letters()
    conversation = Conversation(session(64), template)
    answer = conversation.ask("hi", REQUEST)
    said = next(answer).text + next(answer).text
    answer.close()
    finished(conversation, "on")
    assert template.rendered[-1] == f"<uhi><a{said}><uon><a"


def test_plain_text_is_continued():
    one = session(64)
    conversation = Conversation(one, None, system="be ")
    assert finished(conversation, "hi").prompt_tokens == len("be hi")
    assert finished(conversation, "on").prompt_tokens == len("on") + 1


def test_a_conversation_needs_a_tokenizer():
    with pytest.raises(FailedPrecondition, match="needs a tokenizer"):
        Conversation(Session(NETWORK, None, SystemClock(), context=16), None)
