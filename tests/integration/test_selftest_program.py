"""`rkfleet doctor --self-test`, as a person or a script runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.doctor import parse_arguments
from tests.support.runtimes import RELEASES, model_file, runtime
from tests.support.selftests import Place, model
from tests.support.terminals import on_a_terminal

ROOT = Path(__file__).resolve().parents[2]
WAIT_SECONDS = 60.0


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def command(place: Place, *words: str, generation: str = "G4") -> list[str]:
    return [
        sys.executable, "-m", "rkfleet.cli.main", "doctor", "--self-test", "--filesystem-root", str(place.tree.root),
        "--data-dir", str(place.tree.data_dir), "--runtime-library", str(runtime(RELEASES[generation])), *words,  # type: ignore[index]
    ]  # fmt: skip


def self_test(place: Place, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**place.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command(place, *words), capture_output=True, text=True, check=False, cwd=place.directory, env=environ, timeout=WAIT_SECONDS
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_piped_it_prints_lines_and_writes_one_report(place: Place) -> None:
    """The report lies where it was run, has the day in its name, and is complete; its facts are those of -o FILE.json."""
    done = self_test(place, "--model", str(model(place.directory)))
    assert done.returncode == 0, done.stdout
    assert "\x1b" not in done.stdout
    assert "✓ Streamed text, whole characters: " in done.stdout
    assert "simulated: yes; no NPU and no model were used" in done.stdout
    (report,) = place.directory.glob("rkfleet-self-test-*.md")
    assert done.stdout.rstrip().endswith(f"report: {report.name}")
    text = report.read_text()
    assert "| simulated | yes |" in text
    facts = json.loads(text.rpartition("```json\n")[2].removesuffix("\n```\n"))
    assert facts["failed"] == 0
    assert str(place.directory) not in text


def test_a_failed_check_is_status_1_with_failure_remedy_and_lines(place: Place) -> None:
    place.says(npu_memory=14)
    done = self_test(place, "--model", str(model(place.directory)), "-o", str(place.directory / "x.json"))
    assert done.returncode == 1
    assert "✗ Loading: the model was not loaded: " in done.stdout
    assert "known failure 2, NpuMemoryExhausted: " in done.stdout
    assert "    try: " in done.stdout
    assert "    | E RKNN: " in done.stdout
    facts = json.loads((place.directory / "x.json").read_text())
    assert [one["check"] for one in facts["outcomes"] if one["status"] == "failed"] == ["load"]


def test_on_a_terminal_it_shows_what_it_does(place: Place) -> None:
    """The same checks, in colours; the report is named at the end."""
    environ = {**place.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "200"}
    words = command(place, "--model", str(model(place.directory)), "-o", "r.md")
    status, shown = on_a_terminal(words, place.directory, environ, WAIT_SECONDS)
    assert status == 0, shown.decode(errors="replace")
    assert b"\x1b[32m\xe2\x9c\x93" in shown
    assert b"report: r.md" in shown
    assert b"simulated: yes" in shown
    assert b'"event"' not in shown


def test_stopped_it_leaves_neither_a_worker_nor_a_report(place: Place) -> None:
    place.says(tokens_per_s=1)
    environ = {**place.environ, "PYTHONPATH": str(ROOT)}
    words = [*command(place, "--model", str(model(place.directory))), "--events"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=place.directory, env=environ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if json.loads(line).get("check") == "prompt":
                break
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        running.send_signal(signal.SIGINT)
        assert running.wait(WAIT_SECONDS) == 128 + signal.SIGINT
    assert children
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert list(place.directory.glob("*.md")) == []


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--model", "/no/such.rkllm"), 3, "file /no/such.rkllm of --model is not there"),
        (("--adapter", "FILE"), 1, "--adapter needs a --model"),
        (("--model", "FILE", "--model", "FILE", "--model", "FILE"), 1, "at most 2 models"),
        (("--model", "FILE", "--encoder", "FILE"), 1, "--encoder needs the model's config.json"),
        (("-o", "json"), 2, "of a self-test -o names the report"),
        (("--runtime-library", "x=G9"), 2, "generation 'G9' is not known"),
    ],
)
def test_options_that_cannot_be_followed_are_refused_at_once(place: Place, words: tuple[str, ...], status: int, said: str) -> None:
    file = model_file(place.directory / "m.rkllm")
    done = self_test(place, *(str(file) if word == "FILE" else word for word in words))
    assert (done.returncode, said in done.stderr) == (status, True), done.stderr
    assert list(place.directory.glob("*.md")) == []


@pytest.mark.parametrize("option", ["--model", "--adapter", "--encoder", "--config", "--template", "--reference", "--dtype"])
def test_a_doctor_without_a_self_test_takes_none_of_its_options(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments([option, "m.rkllm"])
    assert (ended.value.code, f"{option} needs --self-test" in capsys.readouterr().err) == (2, True)


def test_a_report_that_cannot_be_written_is_said(place: Place) -> None:
    done = self_test(place, "-o", "/no/such/directory/r.md")
    assert (done.returncode, "/no/such/directory/r.md cannot be written" in done.stderr) == (1, True)


def hardware(place: Place, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the tests for boards in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-rs", "tests/hardware", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=dict(place.environ), timeout=WAIT_SECONDS)


def test_without_a_model_the_tests_for_boards_say_how_they_are_run(place: Place) -> None:
    done = hardware(place)
    assert done.returncode == 0, done.stdout
    assert "needs a board with an NPU and a model: pytest tests/hardware --hardware-model FILE.rkllm" in done.stdout
    assert "failed" not in done.stdout


def test_the_tests_for_boards_make_the_checks_that_were_selected(place: Place) -> None:
    """With a simulated library in place of a board; a fault of it is a test that fails and says what helps."""
    words = ["--hardware-model", str(model(place.directory)), "--hardware-library", str(runtime(RELEASES["G3"]))]
    done = hardware(place, *words, "-k", "hidden-layer or streaming or npu-driver", "-v")
    assert done.returncode == 0, done.stdout
    assert "2 passed, 1 skipped" in done.stdout
    place.says(numbers="zero")
    done = hardware(place, *words, "-k", "hidden-layer or streaming", "-v")
    assert done.returncode == 1
    assert "all numbers are zero" in done.stdout
    assert "1 failed, 1 passed" in done.stdout


def test_a_program_whose_worker_cannot_be_ended_ends_itself(place: Place) -> None:
    """With its status, because the report is written by then."""
    code = """
import asyncio
from agent.selftest import program

async def body():
    stuck = asyncio.ensure_future(asyncio.Event().wait())
    await program.leave(7)
    print("it went on", stuck)

program.LEAVE_SECONDS = 0.05
asyncio.run(body())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, timeout=WAIT_SECONDS)
    assert (done.returncode, done.stdout) == (7, "")
