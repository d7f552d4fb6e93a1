"""The bindings keep one contract over all generations of the runtime, simulated ones here: what differs is said by `supports`."""

from __future__ import annotations

import ctypes
import shutil
import struct
import threading
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.workers.rkllm import errors, layouts
from agent.workers.rkllm.library import (
    REFUSED,
    SUPPORTS,
    Embedding,
    Library,
    LoadParameters,
    Model,
    Multimodal,
    Prompt,
    Result,
    RunOptions,
    Sampling,
    Tokens,
)
from agent.workers.rkllm.releases import VERSIONS, Generation
from tests.support.runtimes import ALL_RELEASES, RELEASES, WIDTH, Loaded, model_file, runtime, script_file

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None, reason="gcc is not installed, which builds the simulated runtime; try: apt-get install gcc libc6-dev"
)

WAIT_SECONDS = 20.0  # A deadline of levels that come within milliseconds.
ROW = array("f", [0.5] * WIDTH)
HASH_OF_ROW = "{a591b9c3}"  # As the simulated runtime shows a row of embeddings.


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write the script that the library reads at each call."""
    return script_file(tmp_path, monkeypatch)


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    return model_file(tmp_path / "model.rkllm", reply="echo")


def after_label(text: str, release: str) -> str:
    """Return an answer without what every one begins with."""
    label = f"[simulated runtime {release} {VERSIONS[release]}]"
    assert text.startswith(label)
    return text.removeprefix(label).partition("]")[2]


def wrapped(release: str, text: str, role: str = "user") -> str:
    """Return a prompt as the model sees it."""
    return text if VERSIONS[release] == "G1" else f" <|{role}|>{text} <|assistant|>"


def tokens_of(release: str, text: str) -> int:
    """Return how many tokens a prompt of short words has with what the template puts around it."""
    return len(text.split()) + (0 if VERSIONS[release] == "G1" else 2)


@pytest.mark.parametrize("release", ALL_RELEASES)
def test_all_four_inputs_arrive(release: str, model_path: Path) -> None:
    """What the model saw is what was given, in every generation."""
    loaded = Loaded(release, model_path, image_start=" <i>", image_end=" </i>", image_content="<img>")
    inputs = (
        (Prompt("Grüße an 世界"), wrapped(release, "Grüße an 世界")),
        (Tokens([1, -2, 2147483647]), " <1> <-2> <2147483647>"),
        (Tokens(array("i", [7, 8])), " <7> <8>"),
        (Embedding(ROW.tobytes(), 1), f" {HASH_OF_ROW}"),
        (Embedding(ROW * 2, 2), f" {HASH_OF_ROW} {HASH_OF_ROW}"),
        (
            Multimodal(prompt="see <img> now", image_embeds=memoryview(ROW * 2), tokens_per_image=2),
            wrapped(release, f"see  <i> {HASH_OF_ROW} {HASH_OF_ROW} </i> now"),
        ),
    )
    for request, (given, seen) in enumerate(inputs, 1):
        loaded.model.run(given, RunOptions(), request)
        assert {result.request for result in loaded.results} == {request}
        assert [result.state for result in loaded.results[:-1]] == ["normal"] * (len(loaded.results) - 1)
        assert loaded.results[-1].state == "finish"
        assert after_label(loaded.text(), release).split() == seen.split()
    loaded.model.destroy()
    loaded.model.destroy()


@pytest.mark.parametrize("release", ["1.2.1b1", "1.2.3", "1.3.0"])
def test_several_images_stand_where_their_marks_are(release: str, model_path: Path) -> None:
    """From 1.2.1b1; G4 gets the marks with the input, the others with the load."""
    marks = {} if release == "1.3.0" else {"image_content": "<img>"}
    loaded = Loaded(release, model_path, **marks)
    other = array("f", [0.25] * WIDTH)
    both = Multimodal(
        prompt="a <img> b <img> c", image_embeds=ROW + other, tokens_per_image=1, images=2, width=448, height=448, content="<img>"
    )
    loaded.model.run(both, RunOptions(), 1)
    first, second, *rest = (word for word in after_label(loaded.text(), release).split() if word.startswith("{"))
    assert (first, rest) == (HASH_OF_ROW, [])
    assert second != first


@pytest.mark.parametrize("release", RELEASES.values())
def test_hidden_states_are_those_of_the_input(release: str, model_path: Path) -> None:
    """As many rows as tokens, the same for the same input, never zero; the text of a request is not among them."""
    loaded = Loaded(release, model_path)
    seen = []
    for request, text in enumerate(("one two", "one two", "one three"), 1):
        loaded.model.run(Prompt(text), RunOptions(mode="hidden"), request)
        (result,) = (result for result in loaded.results if result.hidden is not None)
        assert (result.text, result.logits) == (b"", None)
        loaded.results.clear()
        data, width, tokens = result.hidden or (b"", 0, 0)
        numbers = struct.unpack(f"<{width * tokens}f", data)
        assert (width, tokens) == (WIDTH, tokens_of(release, text))
        assert all(0.1 <= abs(number) <= 1 for number in numbers)
        seen.append(numbers)
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]


@pytest.mark.parametrize("release", ["1.2.0", "1.2.3", "1.3.0"])
def test_logits_have_the_size_of_the_vocabulary(release: str, model_path: Path) -> None:
    """From G2."""
    loaded = Loaded(release, model_path)
    loaded.model.run(Tokens([1, 2, 3]), RunOptions(mode="logits"), 1)
    logits = loaded.results[0].logits
    assert logits is not None
    assert (logits.width, logits.tokens, len(logits.data)) == (512, 3, 512 * 3 * 4)
    loaded.model.run(Tokens([1, 2, 4]), RunOptions(mode="logits"), 2)
    other = loaded.results[-2].logits
    assert other is not None
    assert (logits.data[: 2 * 2048], logits.data[2 * 2048 :] == other.data[2 * 2048 :]) == (other.data[: 2 * 2048], False)


@pytest.mark.parametrize("release", RELEASES.values())
def test_an_adapter_is_of_the_request_that_names_it(release: str, model_path: Path, tmp_path: Path) -> None:
    """The next request has none, and a name that was not loaded never reaches the library."""
    loaded = Loaded(release, model_path)
    loaded.model.load_adapter("legal", str(model_file(tmp_path / "legal.rkllm")), 0.5)
    for request, (adapter, shown) in enumerate((("legal", True), ("", False)), 1):
        loaded.model.run(Prompt("x"), RunOptions(adapter=adapter), request)
        assert ("[adapter legal]" in loaded.text()) is shown
    with pytest.raises(errors.Unsupported, match="adapter 'other' is not loaded; there are legal"):
        loaded.model.run(Prompt("x"), RunOptions(adapter="other"), 3)
    (tmp_path / "raw").write_bytes(b"safetensors")
    with pytest.raises(errors.AdapterFailed, match="rkllm_load_lora returned -1: adapter raw from"):
        loaded.model.load_adapter("raw", str(tmp_path / "raw"), 1.0)


@pytest.mark.parametrize("release", RELEASES.values())
def test_a_prompt_cache_is_saved_by_the_request_that_says_so_and_saves_prefill(release: str, model_path: Path, tmp_path: Path) -> None:
    """It does not go to the path of an earlier request, and another model's is refused."""
    loaded = Loaded(release, model_path)
    path = tmp_path / "cache.bin"
    loaded.model.run(Prompt("a long preamble"), RunOptions(save_prompt_cache=str(path)), 1)
    saved = path.read_bytes()
    loaded.model.run(Prompt("another preamble"), RunOptions(), 2)
    assert path.read_bytes() == saved
    loaded.model.load_prompt_cache(str(path))
    loaded.results.clear()
    loaded.model.run(Prompt("a long preamble"), RunOptions(), 3)
    perf = loaded.results[-1].perf
    assert perf is None or perf.prefill_tokens == 0
    loaded.model.release_prompt_cache()
    loaded.model.run(Prompt("a long preamble"), RunOptions(), 4)
    perf = loaded.results[-1].perf
    assert perf is None or perf.prefill_tokens == tokens_of(release, "a long preamble")
    other = Loaded(release, model_file(tmp_path / "other.rkllm", width=32))
    for wrong in (path, tmp_path / "none", model_path):
        with pytest.raises(errors.PromptCacheFailed, match="rkllm_load_prompt_cache returned -1"):
            other.model.load_prompt_cache(str(wrong))


@pytest.mark.parametrize("release", ["1.2.0", "1.2.3", "1.3.0"])
def test_history_is_kept_only_when_asked_for(release: str, model_path: Path) -> None:
    """A conversation goes on with keep_history; without it, and after clearing, nothing of it is seen."""
    loaded = Loaded(release, model_path)
    run = loaded.model.run
    run(Prompt("my name is Ada"), RunOptions(), 1)
    run(Prompt("who am I"), RunOptions(keep_history=True), 2)
    assert loaded.text().count("Ada") > 1
    run(Prompt("who am I"), RunOptions(), 3)
    assert "Ada" not in loaded.text()
    run(Prompt("my name is Ada"), RunOptions(), 4)
    loaded.model.clear_kv_cache()
    assert loaded.model.kv_cache_tokens() in {0, None}
    loaded.text()
    run(Prompt("who am I"), RunOptions(keep_history=True), 5)
    assert "Ada" not in loaded.text()


@pytest.mark.parametrize("release", ["1.2.3", "1.3.0"])
def test_a_second_turn_prefills_only_what_is_new(release: str, tmp_path: Path) -> None:
    """The cache grows by prompt and answer, and its size is told."""
    loaded = Loaded(release, model_file(tmp_path / "model", reply="sentence", reply_tokens=5))
    loaded.model.run(Prompt("one two three"), RunOptions(), 1)
    assert loaded.model.kv_cache_tokens() == 5 + 5
    loaded.model.run(Prompt("four"), RunOptions(keep_history=True), 2)
    perf = loaded.results[-1].perf
    assert perf is not None
    assert (perf.prefill_tokens, perf.generate_tokens) == (3, 5)
    assert loaded.model.kv_cache_tokens() == 10 + 3 + 5


@pytest.mark.parametrize("release", ["1.2.0", "1.2.3", "1.3.0"])
def test_the_window_shifts_and_keeps_its_beginning(release: str, model_path: Path, script: Callable[..., None]) -> None:
    """n_keep tokens stay when a conversation outgrows the context."""
    loaded = Loaded(release, model_path, max_context_tokens=24, keep_tokens=2)
    script(reply="sentence", reply_tokens=8)
    loaded.model.run(Prompt("keep " + " ".join(f"old{number}" for number in range(10))), RunOptions(), 1)
    loaded.text()
    script(reply="echo")
    loaded.model.run(Prompt("and now"), RunOptions(keep_history=True), 2)
    said = loaded.text()
    assert "<|user|>keep old2 old3" in said
    assert "and now" in said
    assert (loaded.model.kv_cache_tokens() or 0) <= 24


@pytest.mark.parametrize("release", ["1.2.0", "1.2.3", "1.3.0"])
def test_templates_and_the_system_prompt_are_seen(release: str, model_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The library warns that its own template is off; clearing may keep the system prompt."""
    loaded = Loaded(release, model_path)
    loaded.model.set_chat_template(" SYSTEM", " ASK:", " SAY:")
    loaded.model.run(Prompt("hi"), RunOptions(), 1)
    assert after_label(loaded.text(), release).split() == ["SYSTEM", "ASK:hi", "SAY:"]
    assert "W rkllm: Calling rkllm_set_chat_template will disable" in capfd.readouterr().out
    loaded.model.clear_kv_cache(keep_system_prompt=True)
    loaded.model.run(Prompt("again"), RunOptions(keep_history=True), 2)
    assert after_label(loaded.text(), release).split() == ["SYSTEM", "ASK:again", "SAY:"]


@pytest.mark.parametrize("release", ["1.2.3", "1.3.0"])
def test_tools_role_and_thinking_are_seen(release: str, model_path: Path) -> None:
    """From G3."""
    loaded = Loaded(release, model_path)
    loaded.model.set_function_tools(" be brief", '[{"name":"f"}]', "tool_response")
    loaded.model.run(Prompt("sunny", role="tool", enable_thinking=False), RunOptions(), 1)
    said = loaded.text()
    assert '<|tools|> [{"name":"f"}] tool_response be brief <|tool|>sunny <|no_think|> <|assistant|>' in said
    loaded.model.run(Prompt("sunny"), RunOptions(), 2)
    assert "<|user|>sunny <|assistant|>" in loaded.text()


def test_sampling_is_of_its_request(model_path: Path) -> None:
    """What it leaves out is what was loaded, or what the library has; the next request has nothing of it. top_k is a whole number."""
    loaded = Loaded("1.3.0", model_path, top_k=7, temperature=0.25)
    shown = []
    for request, sampling in enumerate((None, Sampling(top_k=1, top_p=0.5), None), 1):
        loaded.model.run(Prompt("x"), RunOptions(sampling=sampling), request)
        shown.append(loaded.text().partition("[top_k=")[2].partition("]")[0])
    assert shown == ["7 top_p=0.900 temperature=0.250", "1 top_p=0.500 temperature=0.250", "7 top_p=0.900 temperature=0.250"]


def test_the_limit_of_new_tokens_is_of_its_request(tmp_path: Path) -> None:
    """In G4; a request without one has that of the load."""
    loaded = Loaded("1.3.0", model_file(tmp_path / "model", reply_tokens=100), max_new_tokens=9)
    for request, (asked, given) in enumerate(((4, 4), (None, 9), (20, 20)), 1):
        loaded.results.clear()
        loaded.model.run(Prompt("x"), RunOptions(max_new_tokens=asked), request)
        assert len(loaded.results) == given + 1


def test_the_end_of_an_answer_can_be_ignored(tmp_path: Path) -> None:
    """ignore_eos is its own byte in G4, not the is_async of G3."""
    model = model_file(tmp_path / "model", reply_tokens=3)
    for ignore, given in ((False, 3), (True, 12)):
        loaded = Loaded("1.3.0", model, max_new_tokens=12, ignore_eos=ignore)
        loaded.model.run(Prompt("x"), RunOptions(), 1)
        assert len(loaded.results) == given + 1


@pytest.mark.parametrize("release", RELEASES.values())
def test_an_abort_from_another_thread_ends_the_run(release: str, tmp_path: Path) -> None:
    """Only the request that is meant, and never the next one."""
    loaded = Loaded(release, model_file(tmp_path / "model", reply_tokens=400, tokens_per_s=50))
    begun = threading.Event()
    results: list[Result] = []

    def take(result: Result) -> None:
        results.append(result)
        begun.set()

    model = loaded.library.init(LoadParameters(model_path=str(tmp_path / "model"), max_context_tokens=512), take)
    assert model.abort() is False
    thread = threading.Thread(target=model.run, args=(Prompt("x"), RunOptions(), 5))
    thread.start()
    assert begun.wait(WAIT_SECONDS)
    assert model.abort(4) is False
    with pytest.raises(errors.Misuse, match="request 5 is running"):
        model.run(Prompt("y"), RunOptions(), 6)
    with pytest.raises(errors.Misuse, match="rkllm_destroy: request 5 is running"):
        model.destroy()
    assert model.abort(5) is True
    thread.join(WAIT_SECONDS)
    assert not thread.is_alive()
    assert results[-1].state == "finish"
    assert len(results) < 100
    model.destroy()
    with pytest.raises(errors.Misuse, match="the model is destroyed"):
        model.run(Prompt("y"), RunOptions(), 7)


@pytest.mark.parametrize("release", RELEASES.values())
def test_an_exception_in_the_callback_ends_the_run_and_is_raised_by_it(release: str, tmp_path: Path) -> None:
    """It does not cross into C, no result is handed on after it, and the next request is not hurt."""
    model_file(tmp_path / "model", reply_tokens=400, tokens_per_s=100)
    calls: list[Result] = []

    def take(result: Result) -> None:
        calls.append(result)
        if result.request == 1:
            raise KeyError("mine")

    library = Library.open(runtime(release), VERSIONS[release])
    model = library.init(LoadParameters(model_path=str(tmp_path / "model"), max_context_tokens=512), take)
    with pytest.raises(KeyError, match="mine"):
        model.run(Prompt("x"), RunOptions(), 1)
    assert len(calls) == 1
    model_file(tmp_path / "model", reply_tokens=5)
    model.run(Prompt("x"), RunOptions(mode="hidden"), 2)
    assert calls[-1].state == "finish"


CODES: tuple[tuple[str, type[errors.CallFailed], str, Callable[[Model], Any]], ...] = (
    ("run_code", errors.RunFailed, "rkllm_run", lambda model: model.run(Prompt("x"), RunOptions(), 1)),
    ("destroy_code", errors.DestroyFailed, "rkllm_destroy", lambda model: model.destroy()),
    ("lora_code", errors.AdapterFailed, "rkllm_load_lora", lambda model: model.load_adapter("a", "/a", 1.0)),
    ("load_cache_code", errors.PromptCacheFailed, "rkllm_load_prompt_cache", lambda model: model.load_prompt_cache("/a")),
    ("release_cache_code", errors.PromptCacheFailed, "rkllm_release_prompt_cache", lambda model: model.release_prompt_cache()),
    ("clear_code", errors.KvCacheFailed, "rkllm_clear_kv_cache", lambda model: model.clear_kv_cache()),
    ("size_code", errors.KvCacheFailed, "rkllm_get_kv_cache_size", lambda model: model.kv_cache_tokens()),
    ("template_code", errors.TemplateFailed, "rkllm_set_chat_template", lambda model: model.set_chat_template("", "", "")),
    ("tools_code", errors.TemplateFailed, "rkllm_set_function_tools", lambda model: model.set_function_tools("", "", "")),
)


@pytest.mark.parametrize("case", CODES, ids=[code[0] for code in CODES])
def test_no_return_code_is_ignored(
    case: tuple[str, type[errors.CallFailed], str, Callable[[Model], Any]], model_path: Path, script: Callable[..., None]
) -> None:
    """Each becomes an error that names the function and the code."""
    key, error, call, act = case
    for release in ("1.2.3", "1.3.0"):
        script()
        loaded = Loaded(release, model_path)
        script(**{key: -7})
        with pytest.raises(error, match=f"{call} returned -7") as caught:
            act(loaded.model)
        assert (caught.value.call, caught.value.code) == (call, -7)


@pytest.mark.parametrize("release", RELEASES.values())
def test_a_refused_abort_is_an_error(release: str, tmp_path: Path, script: Callable[..., None]) -> None:
    """The run goes on to its end."""
    loaded = Loaded(release, model_file(tmp_path / "model", reply_tokens=3))
    script(abort_code=-3)
    failures: list[errors.AbortFailed] = []

    def take(result: Result) -> None:
        thread = threading.Thread(target=abort)
        thread.start()
        thread.join(WAIT_SECONDS)

    def abort() -> None:
        try:
            model.abort()
        except errors.AbortFailed as error:
            failures.append(error)

    model = loaded.library.init(LoadParameters(model_path=str(tmp_path / "model"), max_context_tokens=512), take)
    model.run(Prompt("x"), RunOptions(), 1)
    assert {(error.call, error.code) for error in failures} == {("rkllm_abort", -3)}


@pytest.mark.parametrize("release", RELEASES.values())
def test_a_refused_load_is_an_error(release: str, model_path: Path, tmp_path: Path, script: Callable[..., None]) -> None:
    """By code, by a foreign file, and by a context above the model's limit."""
    with pytest.raises(errors.InitFailed, match="rkllm_init returned -1: model"):
        Loaded(release, model_path, max_context_tokens=8192)
    (tmp_path / "gguf").write_bytes(b"GGUF")
    with pytest.raises(errors.InitFailed):
        Loaded(release, tmp_path / "gguf")
    script(init_code=-9)
    with pytest.raises(errors.InitFailed) as caught:
        Loaded(release, model_path)
    assert caught.value.code == -9


@pytest.mark.parametrize("code", [-1, 0])
@pytest.mark.parametrize("release", RELEASES.values())
def test_an_error_state_fails_the_run_whatever_it_returns(release: str, code: int, tmp_path: Path, script: Callable[..., None]) -> None:
    """Results before it were handed on, the state itself too, and the next request starts afresh."""
    loaded = Loaded(release, model_file(tmp_path / "model", reply_tokens=9))
    script(error_at=2, error_code=code)
    with pytest.raises(errors.RunFailed, match="request 1") as caught:
        loaded.model.run(Prompt("x"), RunOptions(), 1)
    assert caught.value.code == code
    assert [result.state for result in loaded.results] == ["normal", "normal", "error"]
    script(late_results=1)
    loaded.results.clear()
    loaded.model.run(Prompt("x"), RunOptions(), 2)
    assert [result.request for result in loaded.results][:2] == [1, 2]


@pytest.mark.parametrize("release", RELEASES.values())
def test_characters_that_come_in_two_results_are_whole_together(release: str, tmp_path: Path, script: Callable[..., None]) -> None:
    """The first part has state waiting; text that the library leaves out is empty."""
    loaded = Loaded(release, model_file(tmp_path / "model", reply_tokens=20))
    script(split_utf8=True, null_text=True)
    loaded.model.run(Prompt("x"), RunOptions(), 1)
    waiting = [result for result in loaded.results if result.state == "waiting"]
    assert waiting
    with pytest.raises(UnicodeDecodeError):
        waiting[0].text.decode()
    assert any(result.state == "normal" and result.text == b"" for result in loaded.results)
    assert "世界" in loaded.text()


ASKS: tuple[tuple[str, Any, RunOptions], ...] = (
    ("role", Prompt("x", role="tool"), RunOptions()),
    ("enable_thinking", Prompt("x", enable_thinking=False), RunOptions()),
    ("images", Multimodal(prompt="x", image_embeds=ROW * 2, tokens_per_image=1, images=2), RunOptions()),
    ("image_marks_per_request", Multimodal(prompt="x", image_embeds=ROW, tokens_per_image=1, content="<i>"), RunOptions()),
    ("logits", Prompt("x"), RunOptions(mode="logits")),
    ("keep_history", Prompt("x"), RunOptions(keep_history=True)),
    ("sampling", Prompt("x"), RunOptions(sampling=Sampling(top_k=1))),
    ("max_new_tokens", Prompt("x"), RunOptions(max_new_tokens=1)),
)


@pytest.mark.parametrize("generation", RELEASES)
def test_what_a_generation_cannot_do_is_refused_and_the_rest_is_done(generation: Generation, model_path: Path) -> None:
    """`supports` and what is refused are the same, and the message says who can."""
    loaded = Loaded(RELEASES[generation], model_path)
    model = loaded.model
    assert model.supports == SUPPORTS[generation]
    for request, (word, given, options) in enumerate(ASKS, 1):
        if word in model.supports:
            model.run(given, options, request)
        else:
            with pytest.raises(errors.Unsupported, match=f"{word}: this library is {generation}; .*G4 can"):
                model.run(given, options, request)
    calls: dict[str, Callable[[], object]] = {
        "clear_kv_cache": model.clear_kv_cache,
        "chat_template": lambda: model.set_chat_template("", "", ""),
        "function_tools": lambda: model.set_function_tools("", "", ""),
    }
    for word, call in calls.items():
        if word in model.supports:
            call()
        else:
            with pytest.raises(errors.Unsupported, match=word):
                call()
    assert (model.kv_cache_tokens() is not None) == ("kv_cache_tokens" in model.supports)
    for word in REFUSED:
        with pytest.raises(errors.Unsupported, match=f"{word}: laid out"):
            model.require(word)


LOADS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("keep_tokens", {"keep_tokens": 4}),
    ("embed_flash", {"embed_flash": True}),
    ("cpus", {"cpu_mask": 0xF0}),
    ("ignore_eos", {"ignore_eos": True}),
)


@pytest.mark.parametrize(("word", "parameter"), LOADS, ids=[word for word, _ in LOADS])
@pytest.mark.parametrize("generation", RELEASES)
def test_a_parameter_that_a_generation_lacks_is_refused(
    generation: Generation, word: str, parameter: dict[str, Any], model_path: Path
) -> None:
    """And no other."""
    if word in SUPPORTS[generation]:
        Loaded(RELEASES[generation], model_path, **parameter)
    else:
        with pytest.raises(errors.Unsupported, match=f"a library of {generation} has no"):
            Loaded(RELEASES[generation], model_path, **parameter)


@pytest.mark.parametrize("release", ["1.2.0", "1.2.3", "1.3.0"])
def test_the_mask_says_which_cores_and_how_many(release: str, model_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Fewer than the model has NPU cores are refused by the library."""
    Loaded(release, model_path, cpu_mask=0b111000)
    assert "Enabled cpus: [3, 4, 5]\nI rkllm: Enabled cpus num: 3\n" in capfd.readouterr().out
    with pytest.raises(errors.InitFailed):
        Loaded(release, model_path, cpu_mask=0b11)
    assert "The number of enabled CPUs must be greater than or equal to the number of NPU cores." in capfd.readouterr().out


@pytest.mark.parametrize("used_as", RELEASES)
@pytest.mark.parametrize("is_really", RELEASES)
def test_a_library_of_another_generation_is_refused_before_init(used_as: Generation, is_really: Generation) -> None:
    """Its init would return 0 and its first run would crash."""
    path = runtime(RELEASES[is_really])
    if used_as == is_really:
        assert Library.open(path, used_as).generation == used_as
        return
    with pytest.raises(errors.LibraryUnusable, match=f"is used as {used_as}"):
        Library.open(path, used_as)


def test_what_is_no_library_cannot_be_opened(tmp_path: Path) -> None:
    """The message is the loader's."""
    (tmp_path / "lib.so").write_bytes(b"text")
    with pytest.raises(errors.LibraryUnusable, match=r"cannot be mapped: .*(invalid ELF header|file too short)"):
        Library.open(tmp_path / "lib.so", "G3")


@pytest.mark.parametrize("release", RELEASES.values())
def test_texts_and_buffers_that_lie_are_refused(release: str, model_path: Path) -> None:
    """The library would read past their end, or stop at a NUL within."""
    loaded = Loaded(release, model_path)
    wrong = (
        (Prompt("a\0b"), "prompt holds a NUL character at 1"),
        (Tokens([]), "at least one token"),
        (Embedding(ROW.tobytes()[:-1], 1), "embedding has 255 bytes"),
        (Embedding(b"", 1), "embedding has 0 bytes"),
        (Embedding(ROW, 0), "each of 0 tokens"),
        (Multimodal(prompt="x", image_embeds=ROW, tokens_per_image=3), "image embedding has 256 bytes"),
    )
    for given, why in wrong:
        with pytest.raises(errors.Unsupported, match=why):
            loaded.model.run(given, RunOptions(), 1)  # type: ignore[arg-type]
    assert loaded.results == []


def test_a_result_that_is_no_result_fails_the_run(model_path: Path) -> None:
    """A state that no generation has, and sizes that cannot be: signs of a library that is not what it was taken for."""
    loaded = Loaded("1.2.3", model_path)
    with pytest.raises(errors.LibraryUnusable, match="state 9"):
        loaded.model._copy(None, 1, 9)
    loaded.model._mode = "hidden"
    number = ctypes.c_float(1)
    result: Any = layouts.LAYOUTS["G3"].result()
    result.last_hidden_layer = layouts.HiddenStates(ctypes.pointer(number), 1 << 20, 1 << 10)
    with pytest.raises(errors.LibraryUnusable, match="claims 1024 tokens of 1048576 numbers"):
        loaded.model._copy(ctypes.addressof(result), 1, layouts.STATE_NORMAL)


@pytest.mark.parametrize("generation", RELEASES)
def test_defaults_are_told_by_name(generation: Generation) -> None:
    """For the doctor and for what a request leaves out."""
    defaults = Library.open(runtime(RELEASES[generation]), generation).defaults()
    assert (defaults["top_k"], defaults["max_context_len"], defaults["max_new_tokens"]) == (40, 512, -1)
    assert "reserved" not in defaults
    assert defaults.get("enabled_cpus_mask", 0xF0) == 0xF0
