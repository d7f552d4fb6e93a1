"""What a worker on the NPU is given and answers, over HTTP, with the simulated library: each fault of existing servers is a test here."""

import asyncio
import base64
import math
import shutil
import struct
from array import array
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.workers.rkllm.releases import GENERATIONS, VERSIONS, Generation
from tests.integration import test_image_encoder as image_encoder
from tests.support import npu_child, npu_worker
from tests.support.npu_setup import CHATML, WEATHER, Setup, floats, refused
from tests.support.npu_worker import Adapter, Refused, Reply, Running
from tests.support.runtimes import WIDTH, runtime
from tests.support.serving import until
from tests.unit.test_images import picture

FREE_SECONDS = 0.05  # from the token at which a client left until the NPU is free


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


# ---- loading


@pytest.mark.parametrize(
    ("script", "reason", "words"),
    [
        ({"npu_memory": 14}, "OutOfMemory", "failed to malloc npu memory"),
        ({"npu_memory": 12}, "OutOfMemory", "Cannot allocate memory"),
        ({"init_code": -1}, "LoadFailed", "rkllm init failed"),
        ({"init_quiet_failure": 1}, "LoadFailed", "failed to load model"),
        ({"npu_cores": 5}, "LoadFailed", "enabled CPUs must be greater than or equal to the number of NPU cores"),
        ({"context_limit": 512}, "LoadFailed", "must be less than the model's max_context_limit[512]"),
        ({"init_crash": 1}, "Crashed", "SIGSEGV"),
        ({"npu_memory": 14, "npu_memory_crash": 1}, "OutOfMemory", "crashed with SIGSEGV"),
    ],
)
def test_a_model_that_does_not_load_says_why_in_the_words_of_the_library(
    setup: Setup, script: dict[str, Any], reason: str, words: str
) -> None:
    """Also when the library returns 0, and also when it takes the process with it."""
    exit = setup.exit(setup.spec(model=script, cpus=(4, 5, 6, 7)))
    assert (exit.reason, words in exit.message) == (reason, True), exit.message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generation": "G9"}, "generation 'G9'; G1, G2, G3, G4 are known"),
        ({"library": "/no/such/librkllmrt.so"}, "/no/such/librkllmrt.so: it cannot be opened: No such file or directory"),
        ({"library": __file__}, "it is no shared library"),
        ({"template": "a\n{% if %}"}, "template.jinja, line 2: "),
        ({"lock_path": "/no/such/lock"}, "lock of the NPU /no/such/lock cannot be opened"),
    ],
)
def test_what_a_worker_is_told_and_cannot_use_is_a_load_failure_that_names_it(setup: Setup, changes: dict[str, Any], words: str) -> None:
    spec = setup.spec("G3", **({"template": changes.pop("template")} if "template" in changes else {}))
    assert spec.npu is not None
    exit = setup.exit(msgspec.structs.replace(spec, npu=msgspec.structs.replace(spec.npu, **changes)))
    assert (exit.reason, words in exit.message) == ("LoadFailed", True), exit.message


@pytest.mark.parametrize(("was", "is_now"), [("1.2.3", "1.3.0"), ("1.3.0", "1.2.3"), ("1.2.0", "1.2.1b1")])
def test_a_library_that_was_replaced_since_the_agent_looked_is_refused_before_it_is_mapped(setup: Setup, was: str, is_now: str) -> None:
    """Init would succeed with bindings of another release, and the first request, or its first image, would end the process."""
    file = setup.directory / "librkllmrt.so"
    shutil.copyfile(runtime(was), file)
    spec = setup.spec(VERSIONS[was], library=str(file), library_version=was)
    assert setup.run(spec, lambda running: running.chat("Hi", max_tokens=1)).text
    shutil.copyfile(runtime(is_now), setup.directory / "new")
    (setup.directory / "new").replace(file)
    exit = setup.exit(spec)
    assert exit.reason == "LoadFailed"
    assert f"runtime library {file} is not {was} any more" in exit.message
    assert "systemctl restart rkfleet-agent" in exit.message


def test_a_lora_as_hugging_face_has_it_is_refused_with_what_to_do(setup: Setup) -> None:
    path = setup.directory / "adapter_model.safetensors"
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    exit = setup.exit(setup.spec(adapters=(Adapter(name="law", path=str(path)),)))
    assert exit.reason == "LoadFailed"
    assert f"adapter law was not loaded from {path}" in exit.message
    assert "convert it together with its model" in exit.message
    assert exit.message.count("was not loaded from") == 1


def test_a_placeholder_that_the_library_refuses_is_called_one(setup: Setup) -> None:
    spec = setup.spec(model={"init_code": -1})
    Path(spec.model_path).write_bytes(b"RKFLEET-SIMULATED\nmodel: x\n")
    setup.says(init_code=-1)
    assert "is a placeholder for simulated boards" in setup.exit(spec).message


def test_a_worker_is_small(setup: Setup) -> None:
    """Besides the model it has the interpreter, a listener and the bindings. Measured: 27 MiB; 30 with a template."""

    async def resident(running: Running) -> int:
        await running.chat("Hello")
        status = Path(f"/proc/{running.worker.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    assert setup.run(setup.spec(), resident) < 36 << 10
    assert setup.run(setup.spec(template=CHATML), resident) < 40 << 10


# ---- kinds of input


@pytest.mark.parametrize("generation", GENERATIONS)
def test_tokens_and_embeddings_reach_the_model_as_they_are(setup: Setup, generation: Generation) -> None:
    async def ask(running: Running) -> tuple[Reply, Reply]:
        embeds = {"data": floats(*range(2 * WIDTH)), "tokens": 2}
        tokens = await running.complete([5, 6, 7])
        return tokens, await running.post("/v1/completions", {"prompt_embeds": embeds})

    tokens, embeds = setup.run(setup.spec(generation, model={"reply": "echo"}), ask)
    assert tokens.text.endswith(" <5> <6> <7>")
    assert tokens.usage["prompt_tokens"] == 3
    assert len(embeds.text.partition("temperature")[2].split("{")) == 3
    assert embeds.usage["prompt_tokens"] == 2


def test_images_stand_where_they_were_put(setup: Setup) -> None:
    """As embeddings of the client, or as files that the encoder turns into them; the same image makes the same tokens."""

    def parts(*parts: Any) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "text", "text": one} if isinstance(one, str) else one for one in parts]}

    async def ask(running: Running) -> list[Reply]:
        def file(data: bytes) -> dict[str, Any]:
            return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}}

        red, blue = picture(colour="red"), picture(colour="blue")
        embeds = {"type": "image_embeds", "data": base64.b64encode(npu_child.floats_of(red)).decode(), "tokens": 2}
        replies = [await running.chat(parts("look", one, "now")) for one in (file(red), embeds, file(blue))]
        setup.says(reply="sentence")
        seen = parts("an <image> tag, and", file(blue))
        answer = {"role": "assistant", "content": (await running.chat(seen)).text}
        return [*replies, await running.chat(seen, answer, "more")]

    by_file, by_embeds, other, further = setup.run(setup.spec(model={"reply": "echo"}, encoder_path="vision.rknn"), ask, {})
    assert by_file.text == by_embeds.text != other.text
    assert by_file.text.count(" {") == 2
    assert further.cached_tokens > 0  # the image is in the cache with the rest
    assert by_file.finish_reason == "stop"


def test_an_artifact_with_an_encoder_reads_images(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder is a process of its own beside the worker, which ends with it."""

    async def ask(running: Running) -> tuple[list[str], list[int]]:
        replies = []
        for colour in ("red", "blue", "red"):
            url = f"data:image/png;base64,{base64.b64encode(picture(colour=colour)).decode()}"
            replies.append((await running.chat({"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]})).text)
        return replies, [int(one) for one in Path(f"/proc/{running.worker.pid}/task/{running.worker.pid}/children").read_text().split()]

    monkeypatch.setenv("PYTHONPATH", f"{image_encoder.STAND_IN}:{image_encoder.ROOT}")
    vision = image_encoder.npu(setup.directory, {"tokens": 4, "size": WIDTH})
    spec = setup.spec(model={"reply": "echo"}, encoder_path=vision.encoder_path, config_path=vision.config_path)
    (red, blue, again), children = setup.run(spec, ask)
    assert red == again != blue
    assert red.count(" {") == 4
    assert len(children) == 2
    asyncio.run(until(lambda: not any(Path(f"/proc/{one}").exists() for one in children), seconds=5))


def test_inputs_that_are_not_served_are_refused_with_a_sentence(setup: Setup) -> None:
    def part(**part: Any) -> dict[str, Any]:
        return {"role": "user", "content": [part]}

    async def ask(running: Running) -> list[Refused]:
        return [
            await refused(running.chat(part(type="video_url", video_url={"url": "x"}))),
            await refused(running.chat(part(type="image_url", image_url={"url": "https://example.com/a.png"}))),
            await refused(running.chat(part(type="image_url", image_url={"url": "data:image/png;base64,bm8gaW1hZ2U="}))),
            await refused(running.chat(part(type="image_embeds", data="AAAA", tokens=1))),
            await refused(running.complete([])),
            await refused(running.chat("a\0b")),
            await refused(running.chat()),
        ]

    errors = setup.run(setup.spec(encoder_path="vision.rknn"), ask, {})
    assert {error.status for error in errors} == {400}
    words = (
        "video is not served",
        "fetches nothing",
        "neither a PNG",
        "no whole number of",
        "prompt must be",
        "NUL",
        "no messages",
    )
    for word, error in zip(words, errors, strict=True):
        assert word in error.error["message"]


def test_the_release_with_room_for_one_image_is_given_one(setup: Setup) -> None:
    embeds = {"type": "image_embeds", "data": base64.b64encode(npu_child.floats_of(b"a")).decode(), "tokens": 2}
    spec = setup.spec("G2", library=str(runtime("1.2.0")), library_version="1.2.0", model={"reply": "echo"})

    async def ask(running: Running) -> tuple[Reply, Refused]:
        one, two = ({"role": "user", "content": [embeds] * count} for count in (1, 2))
        return await running.chat(one), await refused(running.chat(two))

    reply, error = setup.run(spec, ask)
    assert reply.text.count(" {") == 2
    assert (error.status, "one image in a request" in error.error["message"]) == (400, True)


def test_without_an_encoder_images_are_refused_with_what_to_add(setup: Setup) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    error = setup.run(setup.spec(), lambda running: refused(running.chat({"role": "user", "content": [image]})))
    assert (error.status, "role encoder" in error.error["message"]) == (400, True)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_embeddings_are_of_length_one_and_one_for_each_text(setup: Setup, generation: Generation) -> None:
    async def ask(running: Running) -> tuple[Any, Any]:
        plain = await running.post("/v1/embeddings", {"input": ["one", "two words", "one"]})
        return plain, await running.post("/v1/embeddings", {"input": "one", "encoding_format": "base64"})

    plain, encoded = setup.run(setup.spec(generation), ask)
    vectors = [one["embedding"] for one in plain["data"]]
    assert [len(one) for one in vectors] == [WIDTH] * 3
    assert all(math.isclose(math.hypot(*one), 1, abs_tol=1e-5) for one in vectors)
    assert vectors[0] == vectors[2] != vectors[1]
    assert array("f", base64.b64decode(encoded["data"][0]["embedding"])).tolist() == pytest.approx(vectors[0])
    assert plain["usage"]["prompt_tokens"] >= 3


def test_an_embedding_that_failed_is_an_error_and_never_an_older_one(setup: Setup) -> None:
    async def ask(running: Running) -> Refused:
        await running.post("/v1/embeddings", {"input": "first"})
        setup.says(run_code=-1)
        return await refused(running.post("/v1/embeddings", {"input": "second"}))

    error = setup.run(setup.spec(), ask)
    assert (error.status, error.error["message"]) == (503, "the runtime failed: rkllm run failed")


def test_logits_are_those_of_the_last_position(setup: Setup) -> None:
    answer = setup.run(setup.spec("G2", model={"vocabulary": 100}), lambda running: running.post("/v1/logits", {"prompt": "one two"}))
    assert (answer["vocab_size"], len(base64.b64decode(answer["logits"]))) == (100, 400)
    error = setup.run(setup.spec("G1"), lambda running: refused(running.post("/v1/logits", {"prompt": "one"})))
    assert (error.status, "releases from 1.2 can" in error.error["message"]) == (400, True)


# ---- answers


@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_answer_has_at_most_the_tokens_that_were_asked_for(setup: Setup, generation: Generation) -> None:
    """Before 1.3.0 this side counts; the library is not left running for the rest."""
    reply = setup.run(setup.spec(generation, model={"reply_tokens": 400}), lambda running: running.complete("hello there", max_tokens=7))
    assert (reply.usage["completion_tokens"], reply.finish_reason) == (7, "length")


@pytest.mark.parametrize("generation", ["G1", "G4"])
def test_stop_words_end_an_answer_where_tokens_meet(setup: Setup, generation: Generation) -> None:
    spec = setup.spec(generation, model={"reply": "text", "reply_text": "a\\x20b\\x20c\\x20STOP\\x20d"}, template=CHATML)
    reply = setup.chat(spec, "hello", stop=["c STOP", "never"])
    assert (reply.text.partition("]")[2].strip(), reply.finish_reason) == ("a b", "stop")


def test_characters_are_whole_although_tokens_cut_them(setup: Setup) -> None:
    reply = setup.chat(setup.spec("G3", model={"split_utf8": 1, "null_text": 1, "reply_tokens": 60}), "hello")
    assert "Żółć i 世界 🙂" in reply.text
    assert "\N{REPLACEMENT CHARACTER}" not in reply.text


def test_results_that_an_earlier_request_left_behind_are_dropped(setup: Setup) -> None:
    async def ask(running: Running) -> list[Reply]:
        setup.says(late_results=3)
        return [await running.chat("hello", max_tokens=3) for _ in range(2)]

    for reply in setup.run(setup.spec(), ask):
        assert " late" not in reply.text
        assert reply.usage["completion_tokens"] == 3


def test_sampling_is_overridden_where_the_interface_has_it_and_named_where_it_does_not(setup: Setup) -> None:
    asked = {"temperature": 0.25, "top_p": 0.5, "top_k": 3, "seed": 1}
    new = setup.chat(setup.spec("G4", model={"reply": "echo"}), "hello", **asked)
    assert "[top_k=3 top_p=0.500 temperature=0.250]" in new.text
    assert new.ignored == ["seed"]
    old = setup.chat(setup.spec("G3", model={"reply": "echo"}), "hello", **asked)
    assert "[top_k=40 top_p=0.900 temperature=0.800]" in old.text
    assert old.ignored == ["seed", "temperature", "top_k", "top_p"]
    assert "prompt_progress" in old.events[0]


def test_an_adapter_is_chosen_by_each_request(setup: Setup) -> None:
    lora = npu_worker.model(setup.directory).rename(setup.directory / "law_lora.rkllm")

    async def ask(running: Running) -> tuple[Reply, Reply, Refused]:
        return (
            await running.chat("hello", adapter="law"),
            await running.chat("hello"),
            await refused(running.chat("hello", adapter="tax")),
        )

    with_it, without, unknown = setup.run(setup.spec(adapters=(Adapter(name="law", path=str(lora), scale=0.5),)), ask)
    assert "[adapter law]" in with_it.text
    assert "[adapter" not in without.text
    assert (unknown.status, unknown.error["message"]) == (404, "adapter 'tax' is not loaded; there are law")


# ---- templates, tools, thinking

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'


def escaped(text: str) -> str:
    return text.replace(" ", "\\x20")


@pytest.mark.parametrize("template", [None, CHATML + "{{ tools | tojson }}"])
def test_functions_are_told_called_and_answered(setup: Setup, template: str | None) -> None:
    """The model sees the functions, its call becomes a tool call, and the result goes on in the same conversation."""

    async def talk(running: Running) -> tuple[Reply, Reply]:
        setup.says(reply="text", reply_text=escaped(CALL))
        first = await running.chat("Weather?", tools=[WEATHER])
        setup.says(reply="echo")
        call = {"id": "1", "type": "function", "function": first.calls[0]}
        answer = {"role": "assistant", "content": first.text, "tool_calls": [call]}
        result = {"role": "tool", "tool_call_id": "1", "content": "12 degrees"}
        return first, await running.chat({"role": "user", "content": "Weather?"}, answer, result, tools=[WEATHER])

    first, second = setup.run(setup.spec("G3", template=template), talk)
    assert first.calls == {0: {"name": "weather", "arguments": '{"city": "Köln"}'}}
    assert first.finish_reason == "tool_calls"
    assert "degrees" in second.text
    assert (second.cached_tokens > 0) == (template is None)
    if template is None:
        assert "<|tools|>" in second.text


@pytest.mark.parametrize("stay", [False, True])
def test_functions_and_system_prompt_of_one_are_gone_for_the_next(setup: Setup, stay: bool) -> None:
    """Whether the library takes an empty text for nothing or for no change, which nobody has written down."""

    async def talk(running: Running) -> list[Reply]:
        setup.says(reply="echo", tools_stay=int(stay))
        kept = {"role": "system", "content": "secretword"}
        told = await running.chat(kept, {"role": "user", "content": "Weather?"}, tools=[WEATHER], tenant="ada")
        without = await running.chat("Hi", tenant="bob")
        await running.chat(kept, {"role": "user", "content": "Weather?"}, tools=[WEATHER], tenant="ada")
        other = {"type": "function", "function": {"name": "clock"}}
        return [told, without, await running.chat("Hi", tools=[other], tenant="bob")]

    told, without, other = setup.run(setup.spec("G3"), talk)
    assert "secretword" in told.text
    for reply in (without, other):
        assert "secretword" not in reply.text
        assert "weather" not in reply.text
    assert "clock" in other.text
    assert ("<|tools|>" in without.text) == stay  # at worst, words that are nobody's


def test_tools_without_a_way_to_tell_the_model_are_refused(setup: Setup) -> None:
    error = setup.run(setup.spec("G2"), lambda running: refused(running.chat("hello", tools=[WEATHER])))
    assert (error.status, "chat template" in error.error["message"]) == (400, True)


def test_the_first_generation_needs_a_template_to_chat(setup: Setup) -> None:
    async def ask(running: Running) -> tuple[Refused, Reply]:
        return await refused(running.chat("hello")), await running.complete("hello")

    error, completion = setup.run(setup.spec("G1", model={"reply": "echo"}), ask)
    assert (error.status, "add the model's chat_template.jinja" in error.error["message"]) == (400, True)
    assert completion.text.endswith("]hello")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_template_of_the_artifact_is_all_that_wraps_messages(setup: Setup, generation: Generation) -> None:
    """The runtime's own is off, so that nothing is wrapped twice."""
    reply = setup.chat(
        setup.spec(generation, model={"reply": "echo"}, template=CHATML), {"role": "system", "content": " Be kind. "}, "hello"
    )
    made = "<|im_start|>system\n Be kind. <|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert reply.text.partition("]")[2].partition("]")[2] == made


def test_a_template_that_does_not_take_the_messages_says_so_with_its_line(setup: Setup) -> None:
    spec = setup.spec(template="{{ messages[0].content }}\n{{ raise_exception('no system role') }}")
    error = setup.run(spec, lambda running: refused(running.chat("hello")))
    assert error.status == 400
    assert error.error["message"].endswith("template.jinja, line 2: no system role")


def test_thinking_is_switched_off_in_either_kind_of_template(setup: Setup) -> None:
    ways: list[dict[str, Any]] = [{"think": False}, {"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}]

    async def ask(running: Running) -> tuple[str, set[str]]:
        return (await running.chat("hello")).text, {(await running.chat("hello", **way)).text for way in ways}

    template = CHATML + "{% if not enable_thinking %} calm{% endif %}"
    for spec in (setup.spec(model={"reply": "echo"}, template=template), setup.spec("G3", model={"reply": "echo"})):
        thinking, calm = setup.run(spec, ask)
        assert len(calm) == 1
        assert thinking not in calm


def test_thoughts_come_apart_from_the_answer(setup: Setup) -> None:
    """The template has opened the thought, as those of models do that always think."""
    setup.says(reply="text", reply_text=escaped("Hm. Well.</think>\\nYes."))
    reply = setup.chat(setup.spec(template=CHATML + "<think>"), "hello")
    assert (reply.text, reply.reasoning) == ("Yes.", "[simulated runtime 1.3.0 G4]Hm. Well.")
