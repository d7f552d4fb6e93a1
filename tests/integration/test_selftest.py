"""The self-test against simulated libraries: a board on which all is well passes, and every check fails when its fault is there."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.board.telemetry import observe_board
from agent.selftest import aborts, history, neighbours, outputs
from agent.selftest.checks import AFTER, BEFORE, CHECKS
from agent.selftest.speed import Reference, speed
from agent.selftest.subject import Header, Log, NotLoaded, Setup, Subject, Traits, parse_header
from agent.selftest.values import Limits, Verdict, failed
from agent.workers import loopback
from agent.workers.base import Exit, Listener
from agent.workers.libraries import Library, NamedLibrary
from agent.workers.rkllm.releases import GENERATIONS, Generation
from rkfleet.clock import SystemClock
from rkfleet.errors import FleetError
from rkfleet.kinds.board import Runtime
from tests.integration.test_image_encoder import STAND_IN
from tests.support.npu_worker import TEMPLATE
from tests.support.runtimes import RELEASES, SYMBOLS, runtime, shared_object
from tests.support.selftests import NAME, SECRET, Place, model, outcome_of, row, statuses

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None, reason="gcc is not installed, which builds the simulated runtime; try: apt-get install gcc libc6-dev"
)

ROOT = Path(__file__).parents[2]
NAMES = [name for name, _ in BEFORE] + [check.name for check in CHECKS] + [name for name, _ in AFTER]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# ---- all is well

# What a generation cannot do, or nothing was given for.
SKIPPED: dict[Generation, set[str]] = {
    "G1": {"logits", "reuse", "second-model"},
    "G2": {"second-model"},
    "G3": {"adapter", "second-model"},
    "G4": set(),
}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_healthy_board_passes_every_check_that_its_runtime_can_pass(place: Place, generation: Generation) -> None:
    """With a template where the runtime brings none, an adapter and a second model."""
    (place.directory / "chat.jinja").write_text(TEMPLATE)
    first = model(place.directory)
    models = (first, model(place.directory, "second.rkllm")) if generation == "G4" else (first,)
    options = place.options(
        generation,
        *models,
        adapter=None if generation == "G3" else place.adapter(),
        template=place.directory / "chat.jinja" if generation == "G1" else None,
    )
    result = asyncio.run(place.run(options))
    assert [one for one in result.outcomes if one.status == "failed"] == []
    found = statuses(result)
    assert {name for name in NAMES if found[name] == "skipped"} == SKIPPED[generation]
    assert [one.check for one in result.outcomes if one.check in NAMES] == NAMES
    assert all(one.sentence for one in result.outcomes)
    assert result.simulated is True
    assert result.header is not None
    assert result.header.runtime == RELEASES[generation]
    assert outcome_of(result, "speed").figures["row_model"] == NAME
    assert outcome_of(result, "npu-driver").sentence == "rknpu 0.9.8"
    library = result.libraries[0]
    assert (library.generation, library.defaults, library.literals) == (generation, generation, (RELEASES[generation],))


def test_without_a_model_board_and_library_are_told_and_the_rest_says_why_not(place: Place) -> None:
    result = asyncio.run(place.run(place.options(models=())))
    assert statuses(result)["library"] == "passed"
    assert {one.sentence for one in result.outcomes if one.check in NAMES and one.check != "library"} == {"no --model was given"}
    assert result.simulated is None


def test_a_fault_of_the_board_is_a_check_that_failed(place: Place) -> None:
    """As the doctor finds it, with its command; what cannot be seen is skipped and says how it would be."""
    place.tree.old_driver().no_debugfs()
    result = asyncio.run(place.run(place.options(models=())))
    driver = outcome_of(result, "npu-driver")
    assert (driver.status, driver.remedy) == ("failed", "cat /sys/module/rknpu/version")
    assert outcome_of(result, "npu-load").status == "skipped"


# ---- each check fails when its fault is there

FAULTS: tuple[tuple[str, dict[str, object], str], ...] = (
    # First, because the echo begins with the oldest that is in the cache.
    ("isolation", {"clear_ignored": 1, "reply": "echo"}, "one tenant was told what only another had said"),
    ("prompt", {"run_code": -1}, "the runtime failed"),
    ("hidden-layer", {"numbers": "zero"}, "all numbers are zero"),
    ("hidden-layer", {"numbers": "same"}, "two different texts give the same numbers"),
    ("hidden-layer", {"numbers": "varying"}, "one text gives other numbers the second time"),
    ("logits", {"numbers": "zero"}, "all numbers are zero"),
    ("logits", {"numbers": "same"}, "two different texts give the same numbers"),
    ("tokens", {"run_code": -1}, "the runtime failed"),
    ("tokens", {"error_at": 2}, "the run fails after 2 tokens"),
    ("embedding", {"run_code": -1}, "the runtime failed"),
    ("streaming", {"reply": "text", "reply_text": "ab\\xffcd\\x20ef"}, "1 characters of the streamed text are broken"),
    ("sampling", {"reply_varies": 1}, "two greedy answers to one prompt differ"),
    ("overflow", {"run_code": -1}, "refused for another reason"),
    ("reuse", {"history_ignored": 1}, "turn 3 was read from the beginning"),
    ("isolation", {"clear_code": -1}, "cannot be cleared"),
    ("prompt-cache", {"load_cache_code": -1}, "was read again as a whole"),
    ("abort-decode", {"abort_ms": 400, "tokens_per_s": 150}, "s went by until the NPU was free"),
    ("abort-decode", {"abort_code": -1, "tokens_per_s": 100}, "s went by until the NPU was free"),
    ("abort-prefill", {"abort_ms": 400}, "s went by until the NPU was free"),
    ("adapter", {"reply_varies": 1}, "it was not taken off again"),
    ("multimodal", {"error_at": 2}, "the run fails after 2 tokens"),
)  # fmt: skip


def test_each_check_fails_when_its_fault_is_scripted_and_passes_when_it_is_gone(place: Place) -> None:
    """One worker for all of them: none of these faults outlives its request."""
    checks = {check.name: check.run for check in CHECKS}
    assert checks.keys() == {name for name, _, _ in FAULTS}

    async def body() -> None:
        async with place.loaded(adapter=place.adapter()) as subject:
            subject.traits.width = 64
            for name, script, words in FAULTS:
                place.says(**script)
                verdict = await judged(checks[name], subject)
                assert (verdict.status, words in verdict.sentence) == ("failed", True), (name, script, verdict)
            place.says()
            for name, check in checks.items():
                verdict = await judged(check, subject)
                assert verdict.status == "passed", (name, verdict)

    asyncio.run(body())


async def judged(check: Any, subject: Subject) -> Verdict:
    """Return a check's verdict; what it raises is its failure, as the run has it."""
    try:
        return await check(subject)  # type: ignore[no-any-return]
    except FleetError as error:
        return failed(error.message)


@pytest.mark.parametrize(
    ("rows", "knob", "words"),
    [
        ({"tokens_per_second": 2000.0}, "untuned", "of the row's 2000; the fast cores of cpu4 are under governor"),
        ({"tokens_per_second": 2000.0}, "", "of the row's 2000; "),
        ({"time_to_first_token_seconds": 0.001}, "", "the row has 1 ms to the first token"),
    ],
)
def test_a_model_that_is_slower_than_its_row_fails_with_the_causes(place: Place, rows: dict[str, Any], knob: str, words: str) -> None:
    if knob:
        getattr(place.tree, knob)()

    async def body() -> Verdict:
        async with place.loaded() as subject:
            reference = Reference(row=row(**rows), why="by a test")
            return await speed(subject, reference, lambda: observe_board(place.tree.root, place.tree.data_dir))

    verdict = asyncio.run(body())
    assert verdict.status == "failed"
    assert words in verdict.sentence
    assert verdict.remedy


def test_a_model_that_needs_more_memory_than_its_row_fails(place: Place) -> None:
    result = asyncio.run(place.run(place.options(), place.world(row(memory_bytes=8 << 20)), only={"library", "load", "model-memory"}))
    memory = outcome_of(result, "model-memory")
    assert memory.status == "failed"
    assert "of the row's 8.0 MiB" in memory.sentence


def test_a_second_model_that_does_not_load_fails_and_harms_neither_the_first_nor_the_rest(place: Place) -> None:
    foreign = place.directory / "second.rkllm"
    foreign.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    result = asyncio.run(place.run(place.options("G4", model(place.directory), foreign), only={"load", "second-model", "unload"}))
    second = outcome_of(result, "second-model")
    assert (second.status, second.failure and second.failure.number) == ("failed", 8)
    assert outcome_of(result, "unload").status == "passed"


def test_a_window_that_cannot_shift_fails(place: Place) -> None:
    """The worker crosses the window, and the library ends the run in an error there."""
    place.says(error_at=34)
    result = asyncio.run(place.run(place.options(), only={"shift"}))
    shift = outcome_of(result, "shift")
    assert (shift.status, "the run fails after 34 tokens" in shift.sentence) == ("failed", True)
    assert any("the run fails after 34 tokens" in line for line in shift.lines)


# ---- loading


@pytest.mark.parametrize(
    ("script", "number", "words"),
    [
        ({"npu_memory": 14}, 2, "does not fit"),
        ({"context_limit": 256}, 11, "256"),
        ({"npu_memory": 14, "npu_memory_crash": 1}, 17, "SIGSEGV"),
        ({"init_code": -1}, None, "rkllm init failed"),
    ],
)
def test_a_model_that_does_not_load_has_its_failures_name_remedy_and_last_lines(
    place: Place, script: dict[str, object], number: int | None, words: str
) -> None:
    place.says(**script)
    result = asyncio.run(place.run(place.options()))
    load = outcome_of(result, "load")
    assert (load.status, load.failure.number if load.failure else None, words in load.sentence) == ("failed", number, True), load
    assert bool(load.remedy) is (number is not None)
    assert any(line.startswith("E ") for line in load.lines)
    assert {one.sentence for one in result.outcomes if one.check in NAMES[3:]} == {"the model is not loaded"}


def test_an_adapter_that_is_refused_fails_loading_and_the_rest_is_tried_without_it(place: Place) -> None:
    raw = place.directory / "adapter_model.safetensors"
    raw.write_bytes(b"{}")
    result = asyncio.run(place.run(place.options(adapter=raw), only={"load", "prompt", "adapter"}))
    assert [(one.check, one.status) for one in result.outcomes if one.check in NAMES] == [
        ("library", "passed"),
        ("load", "failed"),
        ("load", "passed"),
        ("prompt", "passed"),
        ("adapter", "skipped"),
    ]
    load = outcome_of(result, "load")
    assert (load.failure and load.failure.reason) == "AdapterNotConverted"
    assert "(with adapter)" in load.sentence


def test_a_load_that_hangs_is_ended_at_its_limit(place: Place) -> None:
    place.says(init_hang=1)
    result = asyncio.run(place.run(place.options(), place.world(load=0.4)))
    assert "did not load within" in outcome_of(result, "load").sentence


def test_a_check_that_takes_the_worker_with_it_fails_and_the_others_are_made_with_a_new_one(place: Place) -> None:
    """Hidden layers crash here: text is checked before, the streamed text after."""

    notes: list[str] = []

    class Told:
        def begin(self, check: str, title: str) -> None:
            notes.append(check)
            place.says(**({"crash_at": 0} if check == "hidden-layer" else {}))

        def end(self, outcome: Any) -> None:
            pass

    result = asyncio.run(place.told(place.options(), Told(), only={"load", "prompt", "hidden-layer", "streaming"}))
    found = {one.check: one for one in result.outcomes}
    assert [found[name].status for name in ("prompt", "hidden-layer", "streaming")] == ["passed", "failed", "passed"]
    assert "SIGSEGV" in found["hidden-layer"].sentence
    assert notes.count("load") == 2


def test_a_worker_that_always_dies_is_not_loaded_for_ever(place: Place) -> None:
    place.says(crash_at=1)
    result = asyncio.run(place.run(place.options(), place.world(restarts=1), only={"load", "prompt", "tokens", "streaming", "speed"}))
    found = statuses(result)
    assert [found[name] for name in ("prompt", "tokens", "streaming", "speed")] == ["failed", "failed", "skipped", "skipped"]
    assert outcome_of(result, "speed").sentence == "the worker ended 2 times, and is not loaded again"


def test_a_check_ends_at_its_limit_and_all_of_them_at_theirs(place: Place) -> None:
    place.says(tokens_per_s=3)
    result = asyncio.run(
        place.run(place.options(), place.world(check=0.3, total=3.0), only={"load", "prompt", "tokens", "embedding", "streaming"})
    )
    prompt, streaming = outcome_of(result, "prompt"), outcome_of(result, "streaming")
    assert (prompt.status, "its limit" in prompt.sentence) == ("failed", True)
    assert result.seconds < 8
    assert streaming.status in {"failed", "skipped"}


# ---- libraries


def test_a_library_without_a_function_is_named_and_nothing_is_loaded(place: Place) -> None:
    path = place.directory / "librkllmrt.so"
    path.write_bytes(shared_object([name for name in SYMBOLS["G2"] if name != "rkllm_clear_kv_cache"], ["1.2.0"]))
    result = asyncio.run(place.run(place.options(libraries=(NamedLibrary(path),))))
    library = outcome_of(result, "library")
    assert library.status == "failed"
    assert "exports only rkllm_set_chat_template" in library.sentence
    assert outcome_of(result, "load").sentence == "there is no runtime library that can be used"
    assert result.libraries[0].problem


def test_a_library_whose_default_parameters_contradict_its_version_fails(place: Place) -> None:
    """What it was identified by is one thing and what it does another: the first request would crash."""
    library = NamedLibrary(runtime("1.3.0", generation="G3"))
    result = asyncio.run(place.run(place.options(libraries=(library,)), only={"library"}))
    found = outcome_of(result, "library")
    assert found.status == "failed"
    assert "is G4 by its version, and its default parameters are those of G3" in found.sentence


def test_a_model_without_any_library_is_a_failure(place: Place) -> None:
    result = asyncio.run(place.run(place.options(libraries=())))
    assert outcome_of(result, "library").status == "failed"


# ---- images


def test_images_are_read_by_an_encoder_where_one_is_given_and_its_fault_fails(place: Place) -> None:
    encoder, config = place.directory / "eyes.rknn", place.directory / "config.json"
    encoder.write_bytes(msgspec.json.encode({"tokens": 4, "size": 64}))
    config.write_bytes(msgspec.json.encode({"vision": {"imageSize": [56, 28]}}))
    place.environ = {**place.environ, "PYTHONPATH": f"{STAND_IN}:{ROOT}", "FAKE_RKNN_LOG": str(place.directory / "log")}
    check = next(one for one in CHECKS if one.name == "multimodal").run

    async def body() -> tuple[Verdict, Verdict]:
        async with place.loaded(encoder=encoder, config=config) as subject:
            well = await judged(check, subject)
            place.says(run_code=-1)
            return well, await judged(check, subject)

    well, ill = asyncio.run(body())
    assert (well.status, well.figures["image_tokens"]) == ("passed", 4)
    assert ill.status == "failed"


# ---- workers that lie


class Lying:
    """A worker that is not one: what it answers, and that it never ends."""

    pid = 0

    def stop(self) -> None:
        pass

    async def exited(self) -> Exit:
        await asyncio.Event().wait()
        raise AssertionError


@contextlib.asynccontextmanager
async def lying(place: Place, generation: Generation, *events: dict[str, Any]) -> AsyncIterator[Subject]:
    """Yield a subject whose listener answers every request with these events."""

    async def answer(_request: loopback.Request, answer: loopback.Answer) -> None:
        await answer.begin(200, b"text/event-stream")
        for event in events:
            await answer.piece(b"data: " + msgspec.json.encode(event) + b"\n\n")
        await answer.end()

    library = Library(path=place.directory / "none.so", version="", generation=generation, how="")
    setup = Setup(model=model(place.directory), library=library, lock_path=place.directory / "lock", cache_dir=str(place.directory))
    clock = SystemClock()
    async with loopback.listen(answer) as endpoint:
        yield Subject(
            setup, Lying(), Listener(endpoint=endpoint, api_key=""), Log(clock),
            clock=clock, limits=Limits(unload=0.05, abort=0.05), load_seconds=0, secret=SECRET, traits=Traits(),
        )  # fmt: skip


def said(text: str, *, cached: int = 0, prompt: int = 20) -> tuple[dict[str, Any], ...]:
    usage = {"prompt_tokens": prompt, "completion_tokens": 8, "prompt_tokens_details": {"cached_tokens": cached}}
    ending = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage}
    return ({"choices": [{"index": 0, "delta": {"content": text}}]}, ending)


LIES: tuple[tuple[str, Generation, tuple[dict[str, Any], ...], Any, str], ...] = (
    ("parameters that have no effect and are not named", "G3", said("yes"), outputs.sampling, "was not named as ignored"),
    ("parameters that should have an effect", "G4", ({"ignored": ["top_p"]}, *said("yes")), outputs.sampling, "top_p had no effect"),
    ("a whole answer at once", "G4", said("yes, and much more"), outputs.streaming, "the answer is not streamed"),
    ("an empty answer", "G4", said(""), outputs.streaming, "the answer is empty"),
    ("a conversation that is read again", "G4", said("yes"), history.reuse, "turn 2 was read from the beginning"),
    ("tokens of somebody else", "G4", said("no", cached=7), history.isolation, "which are another's"),
    ("a secret", "G4", said(f"it is {SECRET}"), history.isolation, "one tenant was told"),
    ("a prompt that was cut", "G4", said("yes"), history.overflow, "it was cut without a word"),
    ("a process that stays", "G4", (), neighbours.unload, "still holds the model"),
)


@pytest.mark.parametrize("lie", LIES, ids=[lie[0] for lie in LIES])
def test_a_worker_that_does_not_tell_the_truth_fails(place: Place, lie: tuple[str, Generation, Any, Any, str]) -> None:
    _, generation, events, check, words = lie

    async def body() -> Verdict:
        async with lying(place, generation, *events) as subject:
            return await judged(check, subject)

    verdict = asyncio.run(body())
    assert (verdict.status, words in verdict.sentence) == ("failed", True), verdict


def test_an_abort_of_which_the_log_never_tells_fails(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aborts, "PATIENCE_SECONDS", 0.05)

    async def body() -> Verdict:
        async with lying(place, "G4", *said("one")[:1], *said("two")[:1], *said("three")) as subject:
            return await aborts.in_decode(subject)

    assert "the run had not returned" in asyncio.run(body()).sentence


def test_a_model_that_is_not_loaded_says_how_it_ended(place: Place) -> None:
    """What the self-test is built on: the exit of the worker, and its log."""

    async def body() -> NotLoaded:
        place.says(init_exit=3)
        with pytest.raises(ExceptionGroup) as caught:
            async with place.loaded():
                pass
        (error,) = caught.value.exceptions
        assert isinstance(error, NotLoaded)
        return error

    error = asyncio.run(body())
    assert error.exit.reason == "Crashed"
    assert error.log.last()


def test_a_header_of_any_release_is_read() -> None:
    """1.2.1b1 tells no dtype, the 1.1 line only the first line."""
    banner = "I rkllm: rkllm-runtime version: 1.1.4, rknpu driver version: 0.9.7, platform: RK3588"
    assert parse_header([banner]) == Header(runtime="1.1.4", driver="0.9.7", platform="RK3588")
    line = "I rkllm: rkllm-toolkit version: unknown, max_context_limit: 2048, npu_core_num: 2, target_platform: RK3576"
    assert parse_header([line]) == Header(toolkit="unknown", context_limit=2048, npu_cores=2, target="RK3576")
    assert parse_header([f"{line}, model_dtype: w4a16"]).dtype == "w4a16"


def test_a_failure_is_explained_by_the_lines_of_its_own_check(place: Place) -> None:
    """A prompt that was too long for an earlier check is no reason of a later one."""
    notes: list[Any] = []

    class Told:
        def begin(self, check: str, title: str) -> None:
            place.says(**({"run_code": -1} if check == "isolation" else {}))

        def end(self, outcome: Any) -> None:
            notes.append(outcome)

    asyncio.run(place.told(place.options(), Told(), only={"overflow", "isolation"}))
    found = {outcome.check: outcome for outcome in notes}
    assert (found["overflow"].status, found["isolation"].status) == ("passed", "failed")
    assert found["isolation"].failure is None
    assert any("rkllm run failed" in line for line in found["isolation"].lines)
    assert not any("max context" in line for line in found["isolation"].lines)


class Stuck(Lying):
    """A worker inside a driver that never answers: it neither loads nor can be ended."""

    async def loaded(self) -> Listener | None:
        await asyncio.Event().wait()
        raise AssertionError

    def kill(self, reason: Any, message: str) -> None:
        pass


class StuckBackend:
    runtime = Runtime(name="rkllm", version="", backend="rkllm")

    async def start(self, *_: Any) -> Stuck:
        return Stuck()


def test_a_worker_that_cannot_be_ended_ends_no_self_test(place: Place) -> None:
    """The report is written all the same; nobody waits for what outlives SIGKILL."""
    world = msgspec.structs.replace(place.world(load=0.05, unload=0.05), backend=lambda _library: StuckBackend())
    result = asyncio.run(place.run(place.options(), world))
    assert "waits inside a driver and cannot be ended" in outcome_of(result, "load").sentence
    assert outcome_of(result, "shift").status == "skipped"


def test_a_slow_model_is_asked_for_fewer_tokens(place: Place) -> None:
    """So that a check with several answers keeps its limit; before anything is known it is asked for all."""

    async def body() -> list[int]:
        async with lying(place, "G4") as subject:
            found = [subject.affordable(64)]
            for rate in (100.0, 2.5, 0.1):
                subject.traits.decode_tokens_per_second = rate
                found.append(subject.affordable(64))
            return found

    assert asyncio.run(body()) == [64, 64, 25, 8]


def test_lines_that_arrive_after_the_answer_they_belong_to_are_waited_for() -> None:
    """The wait ends once nothing comes, and also while lines come without end."""

    async def body() -> None:
        log = Log(SystemClock())
        pipe = asyncio.get_running_loop()
        pipe.call_later(0.02, log.add, "E rkllm: late")
        await log.settle()
        assert log.last() == ("E rkllm: late",)

        def chatter() -> None:
            log.add("I rkllm: on and on")
            chatting[0] = pipe.call_later(0.01, chatter)

        chatting = [pipe.call_soon(chatter)]
        async with asyncio.timeout(30):
            await log.settle()
        chatting[0].cancel()

    asyncio.run(body())
