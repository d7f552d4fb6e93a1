"""Model files of a board without a fleet: what they are for, what is remembered of them, what a person reads."""

from __future__ import annotations

import asyncio
import io
import os
import struct
from pathlib import Path

import msgspec
import pytest

from agent.config import Config
from agent.reports import Reports
from agent.standalone.config import Options, parse_arguments
from agent.standalone.files import LocalFile, LocalFiles
from agent.standalone.models import LocalModels, check_file, served_names
from agent.standalone.terminal import Terminal
from agent.workers import gguf
from rkfleet import simulated
from rkfleet.assignment import AssignedFile
from rkfleet.clock import SystemClock
from rkfleet.disk import SystemDisk
from rkfleet.errors import FailedPrecondition, FleetError, Invalid, NotFound
from rkfleet.session import Grant
from tests.support.sessions import until


def gguf_bytes(*pairs: bytes, version: int = 3, count: int | None = None) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(pairs) if count is None else count) + b"".join(pairs)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


AGENT = Config(data_dir=Path("/d"), controller="", name="standalone")
HEAD = (
    pair(b"general.architecture", 8, text(b"llama")),
    pair(b"general.tags", 9, struct.pack("<IQ", 8, 2) + text(b"a") + text(b"b")),
    pair(b"general.sizes", 9, struct.pack("<IQ", 4, 3) + bytes(12)),
    pair(b"general.quantized", 7, b"\1"),
)
CONTEXT = pair(b"llama.context_length", 4, struct.pack("<I", 2048))


def test_the_context_of_a_gguf_file_is_found_behind_texts_arrays_and_numbers(tmp_path: Path) -> None:
    """0 where the file does not say."""
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(*HEAD, CONTEXT))
    assert gguf.context_length(path) == 2048
    path.write_bytes(gguf_bytes(*HEAD))
    assert gguf.context_length(path) == 0


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"GGUF\3\0", "ends too early"),
        (gguf_bytes(version=1), "version 1"),
        (gguf_bytes(pair(b"x", 9, struct.pack("<IQ", 9, 1))), "array of type 9"),
        (gguf_bytes(pair(b"x", 13, b"")), "type 13"),
        (gguf_bytes(struct.pack("<Q", 1 << 40)), "a text of"),
    ],
)
def test_a_spoiled_head_is_said(tmp_path: Path, body: bytes, why: str) -> None:
    """Nothing is read without a limit."""
    path = tmp_path / "m.gguf"
    path.write_bytes(body)
    with pytest.raises(FailedPrecondition, match=why):
        gguf.context_length(path)


@pytest.mark.parametrize(
    ("name", "body", "sentence"),
    [
        ("m.gguf", simulated.MAGIC + b"x", "placeholder for simulated boards"),
        ("m.gguf", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("m.bin", b"\x7fELF", r"neither GGUF \(it begins with b'\\x7fELF'\) nor does it end in .rkllm"),
    ],
)
def test_a_file_that_is_no_model_is_refused_with_what_it_is(tmp_path: Path, name: str, body: bytes, sentence: str) -> None:
    """The head decides, not the ending."""
    (tmp_path / name).write_bytes(body)
    with pytest.raises(FailedPrecondition, match=sentence):
        check_file(tmp_path / name)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    """To open it would hold up the program, and Ctrl-C with it, until somebody writes."""
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(FailedPrecondition, match=r"m\.gguf is no file"):
        check_file(tmp_path / "m.gguf")
    with pytest.raises(FailedPrecondition, match="is no file"):
        check_file(tmp_path)


def test_the_runtime_follows_from_the_file(tmp_path: Path) -> None:
    """GGUF by its head, RKLLM by its ending."""
    (tmp_path / "odd.bin").write_bytes(gguf_bytes())
    (tmp_path / "m.rkllm").write_bytes(b"anything")
    assert check_file(tmp_path / "odd.bin") == "llamacpp"
    assert check_file(tmp_path / "m.rkllm") == "rkllm"
    with pytest.raises(FailedPrecondition, match="cannot be read: No such file"):
        check_file(tmp_path / "none.gguf")


def test_names_are_those_of_the_files_unless_given_and_never_twice_the_same() -> None:
    """Clients ask by name, so one name is one model."""
    options = Options(models=(Path("/a/my model.Q4.gguf"), Path("/b/other.gguf")), agent=AGENT)
    assert served_names(options) == ("my-model.Q4", "other")
    with pytest.raises(Invalid, match=r"/a/m.gguf and /b/m.gguf would both be served as m; give each a --name"):
        served_names(Options(models=(Path("/a/m.gguf"), Path("/b/m.gguf")), agent=AGENT))


def test_what_every_agent_may_be_told_reaches_the_configuration_of_this_one() -> None:
    """The listener stays on loopback; without --port the usual one is tried later."""
    words = ["--standalone", "--model", "/m.gguf", "--data-dir", "/d", "--memory", "2Gi", "--lifeline-fd", "3", "--log-level", "info"]
    config = Config(data_dir=Path("/d"), controller="", name="standalone", memory_bytes=2 << 30, lifeline=3, log_level="info")
    assert parse_arguments(words) == Options(models=(Path("/m.gguf"),), agent=config)
    found = parse_arguments([*words, "--port", "81", "--name", "a", "--context", "9"])
    agent = msgspec.structs.replace(config, ops_port=81)
    assert found == Options(models=(Path("/m.gguf"),), names=("a",), port=81, context_tokens=9, agent=agent)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "the following arguments are required: --model"),
        (["--model", "/m", "--model", "/m"], "--model names /m twice"),
        (["--model", "/m", "--name", "a", "--name", "b"], "--name is given 2 times and --model 1 times"),
        (["--model", "/m", "--name", "a b"], "without spaces"),
        (["--template", "/t", "--model", "/m"], "--template /t stands before every --model"),
        (["--model", "/m", "--config", "/c", "--config", "/d"], "--config is given twice for --model /m"),
        (["--model", "/m", "--context", "0"], "'0' must be a number of tokens"),
        ([word for number in range(17) for word in ("--model", f"/{number}")], "at most 16 are served by one board"),
    ],
)
def test_a_wrong_command_line_is_said(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, as every program here."""
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(["--standalone", *flags])
    assert message in capsys.readouterr().err


def test_what_goes_with_a_model_of_the_npu_is_named_behind_it_or_lies_beside_it(tmp_path: Path) -> None:
    """The model's own name comes before the common one, and what was named before both; an encoder brings its configuration."""
    beside = ("one.jinja", "chat_template.jinja", "my.jinja", "a.gguf", "b.gguf", "eyes/e.rknn", "eyes/config.json")
    for name in ("one.rkllm", "two.rkllm", *beside):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)

    def found(*words: str) -> list[list[tuple[str, str]]]:
        placed = [word if word.startswith("--") else str(tmp_path / word) for word in words]
        options = parse_arguments(["--standalone", *placed, "--data-dir", str(tmp_path)])
        world = LocalModels(options, LocalFiles(tmp_path, SystemDisk(), print), SystemClock(), print)
        return [[(file.role, str(Path(file.path).relative_to(tmp_path))) for file in draft.files[1:]] for draft in world.drafts()]

    model = "--model"
    assert found(model, "one.rkllm", model, "two.rkllm") == [[("template", "one.jinja")], [("template", "chat_template.jinja")]]
    assert found(model, "one.rkllm", "--template", "my.jinja", "--adapter", "a.gguf", "--adapter", "b.gguf", model, "two.rkllm") == [
        [("template", "my.jinja"), ("adapter", "a.gguf"), ("adapter", "b.gguf")],
        [("template", "chat_template.jinja")],
    ]
    assert found(model, "one.rkllm", "--encoder", "eyes/e.rknn") == [
        [("encoder", "eyes/e.rknn"), ("template", "one.jinja"), ("config", "eyes/config.json")]
    ]
    with pytest.raises(FailedPrecondition, match=r"needs a configuration, and there is no config.json beside it; give --config FILE"):
        found(model, "one.rkllm", "--encoder", "a.gguf")
    with pytest.raises(FailedPrecondition, match=r"adapter .*none.gguf cannot be read: No such file"):
        found(model, "one.rkllm", "--adapter", "none.gguf")
    with pytest.raises(Invalid, match=r"two adapters of .*one.rkllm are named 'a'"):
        found(model, "one.rkllm", "--adapter", "a.gguf", "--adapter", "eyes/../a.gguf")
    (tmp_path / "m.gguf").write_bytes(gguf_bytes())
    assert found(model, "m.gguf") == [[]]
    with pytest.raises(Invalid, match=r"--template .*my.jinja goes with an RKLLM model; .*m.gguf is GGUF"):
        found(model, "m.gguf", "--template", "my.jinja")


class Files:
    """One model file and what is remembered of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "m.gguf"
        self.path.write_bytes(gguf_bytes(CONTEXT))
        self.said: list[str] = []
        self.read: list[int] = []
        self.files = self.again()

    def again(self) -> LocalFiles:
        """Start again."""
        return LocalFiles(self.root, SystemDisk(), self.said.append)

    async def prove(self) -> LocalFile:
        return await self.files.prove(self.path, lambda done, _total: self.read.append(done))

    async def fetch(self, known: LocalFile) -> FleetError | None:
        file = AssignedFile(path=known.path, digest=known.digest, size_bytes=known.size_bytes)
        try:
            await self.files.fetch((file,), Grant(request_id=0), lambda _done, _total: None)
        except FleetError as error:
            return error
        return None


def test_a_file_is_read_once_until_its_size_inode_or_time_changes(tmp_path: Path) -> None:
    """Also over starts; a record that is spoiled costs one more reading."""

    async def body() -> None:
        world = Files(tmp_path)
        known = await world.prove()
        assert world.read == [known.size_bytes]
        world.files = world.again()
        assert await world.prove() == known
        assert world.files.holds(known.digest, known.size_bytes)
        assert await world.files.verify(known.digest) == world.path
        assert len(world.read) == 1
        os.utime(world.path, ns=(1, known.modified_ns + 1))
        assert not world.files.holds(known.digest, known.size_bytes)
        assert await world.fetch(known) is None
        assert world.files.holds(known.digest, known.size_bytes)
        (tmp_path / "models.json").write_text("[{")
        world.files = world.again()
        assert (await world.prove()).digest == known.digest
        assert len(world.read) == 2
        assert world.said == []

    asyncio.run(body())


def test_a_file_that_changes_or_goes_is_said_once_and_its_new_content_is_to_be_loaded(tmp_path: Path) -> None:
    """A change wakes whoever makes the assignment."""

    async def body() -> None:
        world = Files(tmp_path)
        known = await world.prove()
        world.path.write_bytes(gguf_bytes(*HEAD, CONTEXT))
        assert isinstance(await world.fetch(known), FailedPrecondition)
        assert isinstance(await world.fetch(known), FailedPrecondition)
        assert world.files.changed.is_set()
        world.path.unlink()
        assert isinstance(await world.fetch(known), NotFound)
        assert world.said == [
            f"model file {world.path} has changed; its new content is loaded",
            f"model file {world.path} is gone; put it back; what is loaded goes on answering",
        ]
        with pytest.raises(NotFound):
            await world.files.verify(known.digest)

    asyncio.run(body())


def test_of_two_files_with_one_digest_the_change_of_one_is_noticed_and_the_loss_of_one_is_none(tmp_path: Path) -> None:
    """What both held is still there; what one holds now is another model."""

    async def body() -> None:
        world = Files(tmp_path)
        known = await world.prove()
        twin = tmp_path / "twin.gguf"
        twin.write_bytes(world.path.read_bytes())
        assert (await world.files.prove(twin)).digest == known.digest
        twin.write_bytes(gguf_bytes(*HEAD, CONTEXT))
        assert not world.files.holds(known.digest, known.size_bytes)
        assert isinstance(await world.fetch(known), FailedPrecondition)
        assert world.said == [f"model file {twin} has changed; its new content is loaded"]
        assert world.files.holds(known.digest, known.size_bytes)
        twin.write_bytes(world.path.read_bytes())
        await world.files.prove(twin)
        world.path.unlink()
        assert world.files.holds(known.digest, known.size_bytes)
        assert world.files.path(known.digest) == twin

    asyncio.run(body())


def test_the_context_is_that_of_the_training_within_limits_and_an_answer_may_fill_it(tmp_path: Path) -> None:
    """--context decides where it is given."""
    world = Files(tmp_path)

    def contexts(context_tokens: int) -> tuple[int, int]:
        options = Options(models=(world.path,), agent=AGENT, context_tokens=context_tokens)
        (draft,) = LocalModels(options, world.files, SystemClock(), world.said.append).drafts()
        return draft.serving.context_tokens, draft.serving.max_output_tokens

    assert contexts(0) == (2048, 2048)
    assert contexts(8192) == (8192, 8192)
    world.path.write_bytes(gguf_bytes(pair(b"llama.context_length", 10, struct.pack("<Q", 131072))))
    assert contexts(0) == (4096, 4096)


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def test_a_moving_line_is_taken_away_before_a_sentence_and_written_on_terminals_only(tmp_path: Path) -> None:
    """A log file gets sentences alone."""
    screen, file = Screen(), io.StringIO()
    for out in (screen, file):
        terminal = Terminal(out, SystemClock())
        terminal.progress(tmp_path, 0, 200)
        terminal.progress(tmp_path, 100, 200)
        terminal.say("done")
    head = f"reading {tmp_path} (0.00 GB), which is done once for each file\n"
    assert screen.getvalue() == f"{head}  50%\r\x1b[Kdone\n"
    assert file.getvalue() == f"{head}done\n"


def test_what_keeps_a_model_from_answering_is_said_without_a_command_for_fleets(tmp_path: Path) -> None:
    """Commands of a fleet would only mislead; each change is said once."""
    from rkfleet import conditions
    from rkfleet.conditions import condition, explain
    from rkfleet.report import BoardFacts, BoardState, ReplicaState

    async def body() -> None:
        reports, out = Reports(SystemClock()), io.StringIO()
        world = Files(tmp_path)
        (draft,) = LocalModels(Options(models=(world.path,), agent=AGENT), world.files, SystemClock(), world.said.append).drafts()

        def publish(status: str, reason: str, why: str) -> None:
            ready = condition(conditions.READY, status, reason, explain(why, "rkfleet logs x"), 1)  # type: ignore[arg-type]
            state = ReplicaState(namespace="default", name="model-0", uid=draft.uid, observed_generation=1, conditions=(ready,))
            reports.publish(BoardState(assignment_number=1, facts=BoardFacts(soc="cpu"), replicas=(state,)))

        trouble = "False", conditions.LOAD_FAILED, "the file is spoiled"
        publish(*trouble)
        following = asyncio.create_task(Terminal(out, SystemClock()).follow(reports, (draft,), lambda: "http://x"))
        await until(lambda: "spoiled" in out.getvalue())
        moves = reports.version
        for state in (("False", conditions.LOADING, "the worker is loading m"), trouble):
            publish(*state)
            moves = await reports.changed(moves)
        publish("True", conditions.SERVING, "")
        await until(lambda: "Ctrl-C" in out.getvalue())
        following.cancel()
        await asyncio.wait((following,))
        lines = out.getvalue().splitlines()
        assert lines[:2] == ["m does not answer: the file is spoiled", "m answers again"]
        assert lines[2].endswith("http://x/v1 serves m")

    asyncio.run(body())
