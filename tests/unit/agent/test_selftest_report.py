"""What a report of the self-test says, and what it never says; and which row of the table a model is compared with."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.selftest.board import BoardFacts
from agent.selftest.library import LibraryFacts
from agent.selftest.report import Redactor, counts, document, markdown
from agent.selftest.running import Result
from agent.selftest.speed import guess_reference
from agent.selftest.subject import Header
from agent.selftest.values import Encounter, Options, Outcome
from agent.workers.libraries import NamedLibrary
from rkfleet.benchmarks import load_table

DATE = "2026-06-01T12:00:00Z"
HOST = "kitchen-board"
SERIAL = "a1b2c3d4e5f60718"
BOARD = BoardFacts(
    model="Radxa ROCK 5B", soc="rk3588", npu_cores=3, kernel="6.1.84", architecture="aarch64", system="Debian 12", driver="rknpu 0.9.8",
    clocks_hertz={"npu": 1_000_000_000}, governors={"npu": "rknpu_ondemand"}, temperatures_celsius={"soc-thermal": 47.0},
    memory_total_bytes=16 << 30, memory_available_bytes=12 << 30, storage="nvme /dev/nvme0n1",
)  # fmt: skip
LIBRARY = LibraryFacts(
    path="/usr/lib/librkllmrt.so", size_bytes=7 << 20, machine="aarch64", content="0084abc" + "0" * 33, release_by_content="1.2.3",
    symbols=("G3", "G4"), literals=("1.2.3",), defaults="G3", generation="G3", version="1.2.3", how="content",
)  # fmt: skip
FAILED = Outcome(
    check="load", title="Loading", status="failed", sentence="the model | was not loaded", seconds=1.25, remedy="reboot",
    failure=Encounter(number=2, reason="NpuMemoryExhausted", message="it does not fit", remedy="reboot"),
    lines=("I rkllm: loading rkllm model from /home/ada/models/x.rkllm", "E rkllm: ```"),
)  # fmt: skip
PASSED = Outcome(
    check="prompt", title="Text in", status="passed", sentence="answered", seconds=0.5, figures={"prompt_tokens": 64, "seconds": 0.25}
)


def result(*outcomes: Outcome, simulated: bool | None = False) -> Result:
    return Result(
        board=BOARD, libraries=(LIBRARY,), header=Header(runtime="1.2.3", target="RK3588", dtype="w8a8"), simulated=simulated,
        model_bytes=1 << 30, reference="named by --reference", outcomes=outcomes or (FAILED, PASSED), seconds=12.5,
    )  # fmt: skip


@pytest.fixture
def redactor(tmp_path: Path) -> Redactor:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/serial-number").write_bytes(SERIAL.encode() + b"\0")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    options = Options(
        models=(Path("/srv/secret-project/x.rkllm"),), libraries=(NamedLibrary(Path("/opt/mine/librkllmrt.so")),), root=tmp_path
    )
    return Redactor(options, HOST)


def test_the_report_has_what_a_bug_needs(redactor: Redactor) -> None:
    """Counts, board, library with its evidence, each check, the known failure, what helps, the last lines, and that it is real."""
    text = markdown(result(), redactor, DATE)
    for words in (
        "1 passed, 1 failed, 0 skipped in 12 s.",
        "| simulated | no |",
        "| board | Radxa ROCK 5B |",
        "| NPU driver | rknpu 0.9.8 |",
        "npu 1000 MHz (rknpu_ondemand)",
        "| librkllmrt.so | 1.2.3 | G3 | content | 0084abc00000 (1.2.3) | G3 or G4 | 1.2.3 | G3 | aarch64 |",
        "| ✗ | Loading | the model \\| was not loaded | 1.2 |",
        "Known failure 2, NpuMemoryExhausted: it does not fit.",
        "Try: `reboot`",
        "E rkllm: ```\n````",
        "| prompt | prompt_tokens 64, seconds 0.25 |",
    ):
        assert words in text, words
    facts = json.loads(text.rpartition("```json\n")[2].removesuffix("\n```\n"))
    assert (facts["format"], facts["failed"], facts["outcomes"][0]["failure"]["number"]) == (1, 1, 2)
    assert facts == json.loads(json.dumps(document(result(), redactor, DATE)))


@pytest.mark.parametrize(("simulated", "said"), [(True, "| simulated | yes |"), (None, "| simulated | unknown, no model was loaded |")])
def test_the_report_says_whether_a_board_was_there_at_all(redactor: Redactor, simulated: bool | None, said: str) -> None:
    text = markdown(result(simulated=simulated), redactor, DATE)
    assert said in text
    assert json.loads(text.rpartition("```json\n")[2].removesuffix("\n```\n"))["simulated"] is simulated


OWN = (
    HOST, SERIAL, "0123456789abcdef0123456789abcdef", "/home/ada", "secret-project", "/opt/mine", "c8:5a:cf:01:02:03", "192.168.7.23",
    "C8-5A-CF-01-02-03", ("/" "root/models"),
)  # fmt: skip


@given(words=st.lists(st.sampled_from([*OWN, "the model", "127.0.0.1", "/usr/lib/x.so", "=", ": ", "a.b", "\n", "|"]), max_size=12))
def test_no_report_tells_whose_board_it_is(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> None:
    """Wherever such a word stands in a sentence, a line of the log, a remedy or a figure; what everybody has stays."""
    root = tmp_path_factory.mktemp("root")
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "proc/device-tree/serial-number").write_text(SERIAL)
    (root / "etc").mkdir()
    (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    options = Options(models=(Path("/srv/secret-project/x.rkllm"),), libraries=(NamedLibrary(Path("/opt/mine/librkllmrt.so")),), root=root)
    text = " ".join(f"{word}/x" if word in {"secret-project", OWN[5], OWN[9]} else word for word in words)
    text = text.replace("secret-project/", "/srv/secret-project/")
    spoiled = msgspec.structs.replace(FAILED, sentence=text, remedy=text, lines=(text,), figures={"figure": text})
    made = Redactor(options, HOST)
    shown = markdown(result(spoiled), made, DATE) + json.dumps(document(result(spoiled), made, DATE))
    assert [word for word in OWN if word in shown] == []
    if "127.0.0.1" in words:
        assert "127.0.0.1" in shown


def test_outcomes_are_counted() -> None:
    assert counts((FAILED, PASSED, PASSED)) == {"passed": 2, "failed": 1, "skipped": 0}


@pytest.mark.parametrize(
    ("file", "header", "options", "row"),
    [
        ("Qwen2.5-1.5B-Instruct-rk3588-w8a8-opt-1.rkllm", Header(target="RK3588", dtype="w8a8"), {}, ("Qwen2.5-1.5B", "w8a8", "rk3588")),
        ("qwen2-1.5b_w8a8_g128_rk3588.rkllm", Header(platform="RK3588"), {}, ("Qwen2-1.5B", "w8a8_g128", "rk3588")),
        ("TinyLlama-1.1B-Chat.rkllm", Header(target="RK3576", dtype="W4A16"), {}, ("TinyLLAMA-1.1B", "w4a16", "rk3576")),
        ("model.rkllm", Header(target="RK3588"), {"reference": "qwen2-0.5b", "dtype": "w8a8"}, ("Qwen2-0.5B", "w8a8", "rk3588")),
        ("model.rkllm", Header(target="RK3588", dtype="w8a8"), {}, None),
        ("qwen2-15b.rkllm", Header(target="RK3588", dtype="w8a8"), {}, None),
        ("Qwen2-1.5B.rkllm", Header(target="RK3588", dtype="w2a2"), {}, None),
        ("Qwen2-1.5B.rkllm", Header(target="RK3588", dtype="w8a8"), {"reference": "none"}, None),
    ],
)
def test_a_models_row_is_found_by_its_file_and_what_the_runtime_says(
    file: str, header: Header, options: dict[str, str], row: tuple[str, str, str] | None
) -> None:
    found = guess_reference(load_table(), Options(models=(Path(file),), **options), header, "rk3588")  # type: ignore[arg-type]
    assert (found.row and (found.row.model, found.row.dtype, found.row.soc)) == row
    assert found.why


def test_directories_that_every_machine_has_stay_and_a_short_one_takes_no_part_of_a_word(tmp_path: Path) -> None:
    libraries = (NamedLibrary(Path("/usr/lib/librkllmrt.so")),)
    made = Redactor(Options(models=(Path("a/x.rkllm"),), libraries=libraries, root=tmp_path), HOST)
    assert made.text("/usr/lib/librkllmrt.so and a/x.rkllm, data/a") == "/usr/lib/librkllmrt.so and …/x.rkllm, data/a"
