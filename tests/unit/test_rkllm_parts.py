"""Parts of a worker on the NPU, each by itself: request bodies, templates, saved prompts, what the library prints, when it hangs."""

import base64
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.workers.rkllm.asks import Ask, EmbeddingsAsk, floats_of, parse
from agent.workers.rkllm.caches import TEMPORARY, Caches, model_identity
from agent.workers.rkllm.conversation import Identity, Wanted
from agent.workers.rkllm.output import Counts, TooLong, counts_in, error_in, too_long_in
from agent.workers.rkllm.templates import Template
from agent.workers.rkllm.tokens import Counts as TokenCounts
from agent.workers.rkllm.tokens import Guess, count
from agent.workers.rkllm.values import Perf, Prompt
from agent.workers.rkllm.vision import ImageEmbedding
from agent.workers.rkllm.watch import Hung, Limits, Watch
from agent.workers.rkllm.work import Work
from rkfleet.errors import BadRequest, FailedPrecondition


class StoppedClock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> datetime:
        return datetime(2026, 7, 31, 12, 0, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing here waits")


# ---- request bodies


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"response_format": {"type": "json_object"}}, "runtime llamacpp"),
        ({"logprobs": True}, "runtime llamacpp"),
        ({"temperature": 2.5}, "temperature is 2.5; 0 to 2"),
        ({"top_p": -1}, "top_p is -1"),
        ({"max_tokens": 0}, "max_tokens is 0; at least 1"),
        ({"n": 2}, "n is 2"),
        ({"stop": ["x"] * 17}, "stop has 17 words"),
        ({"messages": "x"}, "messages"),
    ],
)
def test_a_field_that_no_run_can_honour_is_refused_by_its_name(body: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        parse(msgspec.json.encode(body), Ask)


def test_fields_without_effect_are_named() -> None:
    ask = Ask(temperature=0.5, seed=1, logit_bias={"1": 2.0}, tools=({},), tool_choice="required")
    assert ask.ignored(frozenset()) == ("logit_bias", "seed", "temperature", "tool_choice")
    assert ask.ignored(frozenset({"sampling"})) == ("logit_bias", "seed", "tool_choice")
    assert Ask().ignored(frozenset()) == ()


def test_temperature_zero_is_the_most_likely_token() -> None:
    sampling = Ask(temperature=0, top_p=0.5).sampling()
    assert sampling is not None
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (None, 1, 0.5)
    assert Ask().sampling() is None


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [
        ({}, True),
        ({"think": False}, False),
        ({"think": "low"}, True),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "low"}, True),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
    ],
)
def test_every_way_to_switch_thinking_off_counts(fields: dict[str, Any], thinking: bool) -> None:
    assert Ask(**fields).thinking is thinking


@pytest.mark.parametrize("given", [None, "", [], [""], [1, "a"], [[]], ["a"] * 513, {"a": 1}, [1.5]])
def test_embeddings_take_texts_and_tokens_only(given: Any) -> None:
    with pytest.raises(BadRequest):
        EmbeddingsAsk(input=given).inputs()


def test_embeddings_take_one_or_many() -> None:
    assert EmbeddingsAsk(input="a").inputs() == ["a"]
    assert EmbeddingsAsk(input=[1, 2]).inputs() == [[1, 2]]
    assert EmbeddingsAsk(input=["a", [3]]).inputs() == ["a", [3]]


@pytest.mark.parametrize(
    ("data", "tokens"), [("!", 1), ("", 1), (base64.b64encode(bytes(6)).decode(), 1), (base64.b64encode(bytes(8)).decode(), 0)]
)
def test_embeddings_of_a_prompt_have_whole_floats_for_each_token(data: str, tokens: int) -> None:
    with pytest.raises(BadRequest, match="prompt_embeds"):
        floats_of(data, tokens, "prompt_embeds")


# ---- templates


def template(tmp_path: Path, text: str) -> Template:
    path = tmp_path / "template.jinja"
    path.write_text(text)
    return Template(str(path), StoppedClock())


def test_a_template_gets_what_templates_of_models_expect(tmp_path: Path) -> None:
    text = (
        "{%- for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{{ tools | tojson }} {{ strftime_now('%Y-%m-%d') }}{% if enable_thinking %} think{% endif %}"
        "{% if add_generation_prompt %} >{% endif %}{{ mood }}"
    )
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "Köln <b>"}]
    made = template(tmp_path, text).render(messages, [{"a": "ö"}], thinking=True, variables={"mood": "!"})
    assert made == '[user] Köln <b>\n[{"a": "ö"}] 2026-07-31 think >!'


def test_a_template_that_is_none_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"template\.jinja, line 2: .*endfor"):
        template(tmp_path, "a\n{% for x in y %}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\n\n{{ raise_exception('only user and assistant') }}", "line 3: only user and assistant"),
        ("a\n{{ messages[5].content.x }}", "line 2: "),
        ("{{ ''.__class__.__mro__ }}", "line 1: .*unsafe"),
        ("{% for x in range(10000000) %}{% endfor %}", "line 1: Range too big"),
        ("{% for x in range(90000) %}{{ 'a' * 1000 }}{% endfor %}", "more than 16777216 characters"),
        ("{{ 'a' * 10 ** 10 }}", "line 1: 1 times 10000000000 is more than 16777216"),
        ("\n{{ 9 ** (9 ** 9) }}", "line 2: an exponent is 387420489, at most 64 is taken"),
        ("{{ lipsum(n=100000) }}", "line 1: 'lipsum' is undefined"),
        (
            "{% set all = namespace(text='a' * 1000) %}\n{% for _ in range(40) %}{% set all.text = all.text ~ all.text %}{% endfor %}",
            "line 2: it takes more than 256 MiB",
        ),
    ],
)
def test_a_template_that_fails_names_line_and_reason_and_reaches_nothing(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        template(tmp_path, text).render([], [], thinking=True, variables={})


def test_a_template_that_does_not_end_is_ended(tmp_path: Path) -> None:
    """Nothing comes of these loops, so no limit of size would notice."""

    class SlowClock(StoppedClock):
        def monotonic(self) -> float:
            self.seconds += 0.01
            return self.seconds

    clock = SlowClock()
    path = tmp_path / "template.jinja"
    path.write_text("\n{% for x in range(99999) %}{% for y in range(99999) %}{% endfor %}{% endfor %}")
    with pytest.raises(BadRequest, match="line 2: it is not done after 5 s"):
        Template(str(path), clock).render([], [], thinking=True, variables={})
    assert sys.gettrace() is None
    path.write_text("{{ messages[0].content }}")
    assert Template(str(path), clock).render([{"content": "Hi"}], [], thinking=True, variables={}) == "Hi"


# ---- saved prompts

ADA, BOB = Identity(tenant="ada"), Identity(tenant="bob")


def saved(directory: Path, bytes_max: int = 1000, model: str = "m") -> Caches:
    return Caches(str(directory), bytes_max, model)


def save(caches: Caches, identity: Identity, key: str, text: bytes, size: int = 100) -> None:
    caches.temporary.write_bytes(bytes(size))
    caches.keep(identity, key, text)


def test_a_saved_prompt_is_found_by_its_owner_for_prompts_that_begin_with_it(tmp_path: Path) -> None:
    caches = saved(tmp_path)
    save(caches, ADA, "k", b"once upon")
    assert caches.find(ADA, "k", b"once upon a time") is not None
    assert caches.find(ADA, "k", b"once upon") is not None
    assert caches.find(ADA, "k", b"once up") is None
    assert caches.find(ADA, "k", b"once uPon a time") is None
    assert caches.find(ADA, "other", b"once upon a time") is None
    assert caches.find(BOB, "k", b"once upon a time") is None
    assert caches.find(Identity(tenant="ada", adapter="x"), "k", b"once upon a time") is None
    assert saved(tmp_path, model="another model or library").find(ADA, "k", b"once upon a time") is None


def test_the_same_key_keeps_one_prompt(tmp_path: Path) -> None:
    caches = saved(tmp_path)
    save(caches, ADA, "k", b"one")
    save(caches, ADA, "k", b"two")
    assert caches.find(ADA, "k", b"one") is None
    assert len(list(tmp_path.iterdir())) == 1


def test_the_least_recently_used_prompts_go_when_the_bytes_are_used_up(tmp_path: Path) -> None:
    caches = saved(tmp_path, bytes_max=250)
    for number, key in enumerate(("a", "b")):
        save(caches, ADA, key, b"x")
        for path in tmp_path.glob("*.kv"):
            if path.stat().st_mtime > 1000:
                os.utime(path, (number, number))
    used = caches.find(ADA, "a", b"x")
    save(caches, ADA, "c", b"x")
    assert used is not None
    assert used.exists()
    assert caches.find(ADA, "b", b"x") is None
    assert sum(one.stat().st_size for one in tmp_path.iterdir()) <= 250


def test_what_a_killed_worker_was_writing_is_gone_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / TEMPORARY).write_bytes(b"half")
    saved(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_bytes_or_no_directory_save_nothing(tmp_path: Path) -> None:
    assert not saved(tmp_path, bytes_max=0).enabled
    assert not Caches("", 1000, "m").enabled


def test_a_model_is_told_from_another_of_the_same_name(tmp_path: Path) -> None:
    model, library = tmp_path / "model", tmp_path / "library"
    model.write_bytes(b"1")
    library.write_bytes(b"1")
    first = model_identity(str(model), str(library), "1.2.3", "G3")
    assert first == model_identity(str(model), str(library), "1.2.3", "G3")
    assert first != model_identity(str(model), str(library), "1.3.0", "G4")
    model.write_bytes(b"22")
    assert first != model_identity(str(model), str(library), "1.2.3", "G3")


# ---- what the library prints


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("E rkllm: failed to load model", "rkllm: failed to load model"),
        ("E RKNN: [10:20:30.400] failed to malloc npu memory, size: 12", "RKNN: [10:20:30.400] failed to malloc npu memory, size: 12"),
        ("I rkllm: loading rkllm model from /x", ""),
        ("W rkllm: The rknpu driver version is too low", ""),
        ("what E rkllmx: is this", ""),
        ("E rkllm: prompt gather than max context (prompt: 9 tokens, max context: 8)", ""),
    ],
)
def test_errors_of_the_library_are_told_from_its_other_lines(line: str, words: str) -> None:
    assert error_in(line) == words


def test_a_prompt_that_does_not_fit_is_recognised_with_its_length() -> None:
    assert too_long_in("E rkllm: prompt gather than max context (prompt: 5003 tokens, max context: 2048)") == TooLong(5003, 2048)
    assert too_long_in("E rkllm: failed") is None


def test_tokens_are_read_from_the_table_of_every_release() -> None:
    rows = [
        "I rkllm:  Prefill       120.5            12        10.04                    99.58",
        " Generate      1000.00      40     25.0    40.0",
    ]
    assert counts_in(rows) == Counts(12, 40)
    assert counts_in(["I rkllm: hello"]) is None


# ---- counting


def text_of(size: int, tokens: int | None = None) -> Work:
    return Work(
        mode="generate",
        wanted=Wanted(identity=ADA, text=bytes(size)),
        compose=lambda _reused, _images: Prompt("x"),
        answered=lambda raw, _ids: raw,
        tokens=tokens,
    )


def test_the_length_of_a_prompt_is_guessed_from_those_that_were_counted() -> None:
    guess, image = Guess(), ImageEmbedding(floats=b"", tokens=100)
    assert guess.tokens(text_of(400), [], 0) == 100
    assert guess.tokens(text_of(400), [image], 0) == 200
    assert guess.tokens(text_of(400), [image], 200) == 50  # the image is in the part that is held
    assert guess.tokens(text_of(40, tokens=10), [], 8) == 8
    guess.learn(text_of(400), [image], 300)
    assert guess.tokens(text_of(400), [], 0) == 200
    guess.learn(text_of(400), [], 50)  # another kind of text counts for a part
    assert guess.tokens(text_of(400), [], 0) == 400 / (2 + (8 - 2) / 4) // 1
    guess.learn(text_of(400), [], 3)  # too short to say anything
    guess.learn(text_of(400, tokens=20), [], 20)
    assert guess.tokens(text_of(400), [], 0) == 114


def test_a_prompt_is_counted_by_the_best_that_a_library_tells() -> None:
    guessed, table = TokenCounts(50, 10, exact=False), [" Prefill  1.0   30   1.0  1.0"]
    perf = Perf(1.0, 25, 1.0, 5, 1.0)
    assert count(guessed, None, [], held_tokens=None, output_tokens=5, loaded=False) == guessed
    assert count(guessed, None, table, held_tokens=None, output_tokens=5, loaded=False) == TokenCounts(40, 10, exact=True)
    assert count(guessed, perf, table, held_tokens=40, output_tokens=5, loaded=False) == TokenCounts(35, 10, exact=True)
    assert count(guessed, perf, [], held_tokens=105, output_tokens=5, loaded=True) == TokenCounts(100, 75, exact=True)
    assert count(guessed, None, table, held_tokens=None, output_tokens=5, loaded=True) == TokenCounts(50, 20, exact=False)


# ---- hanging


def hangs(watch: Watch) -> bool:
    try:
        watch.check()
    except Hung as hung:
        return bool(hung.details["reason"] == "Hung")
    return False


def test_silence_is_explained_by_the_prompt_and_by_what_this_board_measured() -> None:
    """An 8,000-token prefill on a slow board is left alone for its minutes, and a hang on a fast one is found in seconds."""
    clock = StoppedClock()
    watch = Watch(clock, Limits())
    clock.seconds += 10_000
    assert not hangs(watch)  # nothing runs
    watch.prefilling(8000)
    clock.seconds += 8000 / 29  # the slowest row of the table
    assert not hangs(watch)
    watch.sign()
    watch.idle()
    watch.prefilling(64)
    clock.seconds += 10 + 3 * 64 / 29 + 0.1
    assert hangs(watch)
    watch.idle()
    for _ in range(8):  # a fast board
        watch.prefilling(1000)
        clock.seconds += 1
        watch.sign()
        watch.idle()
    watch.prefilling(8000)
    clock.seconds += 30
    assert not hangs(watch)
    clock.seconds += 5
    assert hangs(watch)


def test_a_prompt_that_is_saved_may_take_the_time_that_storage_takes() -> None:
    clock = StoppedClock()
    watch = Watch(clock, Limits())
    watch.preparing()
    clock.seconds += 45  # a saved one is read
    assert not hangs(watch)
    watch.prefilling(10, saves=True)
    clock.seconds += 45
    assert not hangs(watch)
    watch.sign()
    clock.seconds += 45
    assert not hangs(watch)
    clock.seconds += 16
    assert hangs(watch)
    watch.idle()
    watch.prefilling(10)
    watch.sign()
    clock.seconds += 16
    assert hangs(watch)


def test_silence_between_tokens_and_after_an_abort_has_limits_of_its_own() -> None:
    clock = StoppedClock()
    watch = Watch(clock, Limits())
    watch.prefilling(10)
    watch.sign()
    clock.seconds += 14
    watch.sign()
    clock.seconds += 14
    assert not hangs(watch)
    clock.seconds += 2
    assert hangs(watch)
    watch.idle()
    watch.prefilling(8000)
    watch.aborting()
    clock.seconds += 9
    watch.sign()  # a token that still came is no reason to wait longer
    watch.aborting()
    clock.seconds += 2
    assert hangs(watch)
    watch.idle()
    watch.aborting()  # late: nothing runs any more
    clock.seconds += 100
    assert not hangs(watch)
