"""What a model says, taken apart: characters, stop words, thoughts and calls of functions."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.workers.rkllm.answers import Chunks
from agent.workers.rkllm.asks import Ask
from agent.workers.rkllm.conversation import Identity, Wanted
from agent.workers.rkllm.stops import Stops
from agent.workers.rkllm.tools import FORMS, Parser
from agent.workers.rkllm.values import Prompt
from agent.workers.rkllm.work import Done, Work

NAMES = frozenset({"weather", "time"})


def parsed(text: str, sizes: list[int] | None = None, tools: frozenset[str] | None = NAMES, thinking: bool = False) -> dict[str, Any]:
    """Return what a client puts together of a text that came in pieces of these sizes."""
    parser = Parser(tools=tools, thinking=thinking, new_id=lambda index: f"call_{index}")
    deltas, rest = [], text
    for size in sizes or [len(text)]:
        deltas += parser.feed(rest[:size])
        rest = rest[size:]
    deltas += parser.feed(rest)
    deltas += parser.end()
    whole: dict[str, Any] = {"content": "", "reasoning_content": "", "calls": []}
    for delta in deltas:
        for name in ("content", "reasoning_content"):
            whole[name] += delta.get(name, "")
        for part in delta.get("tool_calls", ()):
            if "id" in part:
                assert part["index"] == len(whole["calls"])
                whole["calls"].append([part["function"]["name"], ""])
            whole["calls"][part["index"]][1] += part["function"]["arguments"]
    return whole


CALL = '{"name": "weather", "arguments": {"city": "K\\"}ln", "days": [1, {"n": 2}]}}'
ARGUMENTS = '{"city": "K\\"}ln", "days": [1, {"n": 2}]}'


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (f"<tool_call>\n{CALL}\n</tool_call>", "", [["weather", ARGUMENTS]]),
        (f"I look.\n<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", "I look.\n", [["weather", ARGUMENTS]] * 2),
        (f"<|tool_call|>[{CALL}]<|/tool_call|>", "", [["weather", ARGUMENTS]]),
        (f"<|python_tag|>{CALL.replace('arguments', 'parameters')}", "", [["weather", ARGUMENTS]]),
        (f"[TOOL_CALLS] [{CALL}, {CALL}]", "", [["weather", ARGUMENTS]] * 2),
        (CALL, "", [["weather", ARGUMENTS]]),
        (f" [{CALL}]", "", [["weather", ARGUMENTS]]),
        ('{"arguments": "{\\"a\\": 1}", "name": "time"}', "", [["time", '{"a": 1}']]),
        ('<tool_call>{"name": "time"}</tool_call>', "", [["time", "{}"]]),
        ('<tool_call>{"name": "time", "arguments": {"a": 1', "", [["time", '{"a": 1']]),
        ('{"name": "Ada", "age": 36}', '{"name": "Ada", "age": 36}', []),
        ('{"name": "time"', '{"name": "time"', []),
        ("[1, 2] and more", "[1, 2] and more", []),
        ("<tool_call>no JSON</tool_call>", "<tool_call>no JSON</tool_call>", []),
        ("a < b, and <tool", "a < b, and <tool", []),
        ("", "", []),
    ],
)
def test_calls_in_every_known_form_become_calls_and_everything_else_stays_text(text: str, content: str, calls: list[list[str]]) -> None:
    whole = parsed(text)
    assert whole == parsed(text, [1] * len(text))
    assert (whole["content"], whole["calls"]) == (content, calls)


def test_arguments_are_handed_on_before_the_call_is_whole() -> None:
    parser = Parser(tools=NAMES, thinking=False, new_id=str)
    first = parser.feed('<tool_call>{"name": "weather", "arguments": {"city": "Kö')
    assert first[0]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Kö'}
    assert parser.feed("ln")[0]["tool_calls"][0]["function"] == {"arguments": "ln"}


@pytest.mark.parametrize(
    ("text", "open", "reasoning", "content"),
    [
        ("<think>\nHm < x.\n</think>\n\nYes.", False, "Hm < x.\n", "Yes."),
        ("Hm.</think>Yes.", True, "Hm.", "Yes."),
        ("<think>Hm", False, "Hm", ""),
        ("Yes, <think> is a tag.", False, "", "Yes, <think> is a tag."),
    ],
)
def test_thoughts_are_apart_from_the_answer(text: str, open: bool, reasoning: str, content: str) -> None:
    whole = parsed(text, thinking=open)
    assert whole == parsed(text, [1] * len(text), thinking=open)
    assert (whole["reasoning_content"], whole["content"]) == (reasoning, content)


@given(st.data())
def test_no_text_is_lost_or_told_twice_however_it_is_cut(data: st.DataObject) -> None:
    """Pieces of any size make the same answer, whatever stands in it; without markers it is the text itself."""
    words = (
        [form.begin for form in FORMS]
        + [form.end for form in FORMS]
        + ["<think>", "</think>", CALL, "{", "}", "[", "]", ",", '"', " ", "a"]
    )
    text = "".join(data.draw(st.lists(st.sampled_from(words), max_size=12)))
    sizes = data.draw(st.lists(st.integers(0, 5), max_size=30))
    assert parsed(text, sizes) == parsed(text)
    plain = text.replace("<think>", "").replace("</think>", "")
    assert parsed(plain, sizes, tools=None)["content"] == plain


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.lists(st.integers(0, 4), max_size=30))
def test_an_answer_ends_before_the_first_stop_word_wherever_pieces_meet(text: str, words: list[str], sizes: list[int]) -> None:
    stops, shown, over, rest = Stops(words), "", False, text
    for size in [*sizes, len(text)]:
        piece, over = stops.feed(rest[:size])
        shown, rest = shown + piece, rest[size:]
        if over:
            break
    found = [at for word in words if (at := text.find(word)) >= 0]
    if not over:
        shown += stops.end()
    assert over == bool(found)
    # Cut at the first word that is whole; another one that begins before it may not have been whole yet.
    assert text.startswith(shown)
    assert not any(word in shown for word in words)
    if not found:
        assert shown == text


def chunks(ask: Ask, *, chat: bool = True) -> Chunks:
    work = Work(
        mode="generate",
        wanted=Wanted(identity=Identity(tenant=""), text=b"x"),
        compose=lambda _reused, _images: Prompt("x"),
        answered=lambda raw, _ids: raw,
    )
    return Chunks(ask, work, chat=chat, id="chatcmpl-1", created=7)


def content_of(events: bytes) -> str:
    decoded = [json.loads(one.removeprefix(b"data: ")) for one in events.split(b"\n\n") if one and one != b"data: [DONE]"]
    return "".join(choice.get("delta", {}).get("content", "") for one in decoded for choice in one["choices"])


@given(st.text(max_size=20), st.lists(st.integers(0, 3), max_size=60))
def test_characters_that_tokens_cut_apart_arrive_whole(text: str, sizes: list[int]) -> None:
    raw, made, answer = text.encode(errors="replace"), b"", chunks(Ask())
    for size in sizes:
        made += answer.feed(raw[:size])
        raw = raw[size:]
    made += answer.feed(raw)
    made += answer.end(Done("stop", 1, 0, 1))
    assert content_of(made) == text.encode(errors="replace").decode()


def test_a_character_that_never_became_whole_is_shown_as_such() -> None:
    answer = chunks(Ask())
    assert content_of(answer.feed("ö".encode()[:1]) + answer.end(Done("length", 1, 0, 1))) == "\N{REPLACEMENT CHARACTER}"


def test_the_reason_tells_calls_from_limits_from_ends() -> None:
    def reason(text: bytes, done: Done, ask: Ask = Ask()) -> str:
        answer = chunks(ask)
        answer.feed(text)
        events = [json.loads(one.removeprefix(b"data: ")) for one in answer.end(done).split(b"\n\n") if one.startswith(b"data: {")]
        return next(choice["finish_reason"] for one in events for choice in one["choices"] if choice["finish_reason"])

    assert reason(b"a", Done("stop", 1, 0, 1)) == "stop"
    assert reason(b"a", Done("length", 1, 0, 1)) == "length"
    assert reason(b"a STOP b", Done("cut", 1, 0, 1), Ask(stop="STOP")) == "stop"


def test_the_usage_says_what_was_cached() -> None:
    events = chunks(Ask()).end(Done("stop", 10, 4, 3)).split(b"\n\n")
    usage = msgspec.json.decode(events[-3].removeprefix(b"data: "))["usage"]
    assert usage == {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13, "prompt_tokens_details": {"cached_tokens": 4}}
