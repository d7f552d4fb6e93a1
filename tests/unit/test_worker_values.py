"""Keys, thread shares and exit reasons of workers."""

import signal

import msgspec
import pytest

from agent.workers.backends import exit_of
from agent.workers.base import share_threads, worker_key
from agent.workers.pipe import Beat, Failed, Load, Loaded, decode_event, decode_load, encode
from rkfleet.assignment import AssignedFile, AssignedReplica, ServingParameters
from rkfleet.errors import Internal

REPLICA = AssignedReplica(
    namespace="default",
    name="chat-0",
    uid="u",
    generation=1,
    model="smollm2",
    served_model_name="smollm2",
    variant="any",
    soc="any",
    dtype="q4",
    runtime="llamacpp",
    files=(AssignedFile(path="model.gguf", digest="sha256:aa", size_bytes=1),),
)


@pytest.mark.parametrize(
    "change",
    [
        {"files": (AssignedFile(path="model.gguf", digest="sha256:bb", size_bytes=1),)},
        {"serving": ServingParameters(context_tokens=2048)},
        {"serving": ServingParameters(max_concurrent=2)},
        {"serving": ServingParameters(threads=2)},
    ],
)
def test_the_key_changes_with_what_the_process_was_loaded_with(change: dict[str, object]) -> None:
    assert worker_key(msgspec.structs.replace(REPLICA, **change), "1") != worker_key(REPLICA, "1")


@pytest.mark.parametrize(
    "change",
    [
        {"served_model_name": "other"},
        {"generation": 2},
        {"activation": "Draining"},
        {"serving": ServingParameters(max_queued=1, max_output_tokens=9, drain_seconds=1)},
    ],
)
def test_the_key_stays_when_the_agent_itself_applies_the_change(change: dict[str, object]) -> None:
    assert worker_key(msgspec.structs.replace(REPLICA, **change), "1") == worker_key(REPLICA, "1")


def test_another_library_is_another_key() -> None:
    assert worker_key(REPLICA, "2026.10") != worker_key(REPLICA, "2026.11")


@pytest.mark.parametrize(
    ("wanted", "cores", "sharers", "threads"),
    [(0, 2, 1, 1), (0, 2, 2, 1), (0, 8, 1, 7), (0, 8, 2, 3), (0, 8, 20, 1), (0, 1, 1, 1), (4, 8, 3, 4), (0, 4, 0, 3)],
)
def test_threads_are_all_cores_but_one_shared_out(wanted: int, cores: int, sharers: int, threads: int) -> None:
    assert share_threads(wanted, cores, sharers) == threads


@pytest.mark.parametrize(
    ("status", "failed", "said", "reason", "words"),
    [
        (-signal.SIGKILL, None, (), "Killed", "SIGKILL"),
        (-signal.SIGSEGV, None, ("0.1 I fine", "0.2 E bad tensor"), "Crashed", "SIGSEGV: bad tensor"),
        (-200, None, (), "Crashed", "signal 200"),
        (3, None, ("Traceback",), "Crashed", "exit status 3: Traceback"),
        (1, Failed(reason="LoadFailed", message="no GGUF"), (), "LoadFailed", "no GGUF"),
        (1, Failed(reason="LoadFailed", message="not loaded"), ("0.1 E x: failed to allocate 9 GB",), "OutOfMemory", "9 GB"),
    ],
)
def test_an_exit_has_the_reason_that_explains_it(
    status: int, failed: Failed | None, said: tuple[str, ...], reason: str, words: str
) -> None:
    exit = exit_of(status, failed, said, kernel_killed=False)
    assert exit.reason == reason
    assert words in exit.message


def test_a_kill_by_a_kernel_that_ran_out_of_memory_is_told_from_another_kill() -> None:
    exit = exit_of(-signal.SIGKILL, None, (), kernel_killed=True)
    assert (exit.reason, "ran out of memory" in exit.message) == ("OutOfMemory", True)


def test_what_goes_into_the_pipe_comes_out_of_it() -> None:
    load = Load(backend="llamacpp", model_path="/m", context_tokens=1, max_concurrent=1, threads=1, api_key="k")
    assert decode_load(encode(load)) == load
    for event in (Loaded(endpoint="http://127.0.0.1:1"), Failed(reason="LoadFailed", message="no"), Beat()):
        assert decode_event(encode(event)) == event


@pytest.mark.parametrize("line", [b"", b"hello\n", b'{"type":"other"}\n'])
def test_a_line_that_is_no_message_is_an_error(line: bytes) -> None:
    with pytest.raises(Internal):
        decode_event(line)
    with pytest.raises(Internal):
        decode_load(line)
