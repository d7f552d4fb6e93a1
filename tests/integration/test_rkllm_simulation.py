"""The simulated runtime fails, speaks and paces as it is told to; faults that end a process do so in one of their own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from agent.workers.rkllm.errors import InitFailed, RunFailed
from agent.workers.rkllm.library import Library, LoadParameters, Prompt, Result, RunOptions
from agent.workers.rkllm.releases import VERSIONS
from rkfleet.benchmarks import load_table
from rkfleet.cli.placeholders import plan_placeholders
from rkfleet.errors import FailedPrecondition, Internal, Invalid
from simulation.runtime import build as building
from simulation.runtime.__main__ import main
from simulation.runtime.build import LIBRARY, build, generation_of
from tests.support.runtimes import RELEASES, SYMBOLS, Loaded, model_file, runtime, script_file

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None, reason="gcc is not installed, which builds the simulated runtime; try: apt-get install gcc libc6-dev"
)

WAIT_SECONDS = 20.0
ATTEMPTS = 4  # A measurement of time on a busy machine may fail; a pace that is wrong fails always.


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write the script that the library reads at each call."""
    return script_file(tmp_path, monkeypatch)


def child(release: str, model: Path, requests: int = 1) -> subprocess.CompletedProcess[str]:
    """Run requests in a process of their own."""
    command = [sys.executable, "-m", "tests.support.runtime_child", str(runtime(release)), VERSIONS[release], str(model), str(requests)]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)


FAULTS: tuple[tuple[str, dict[str, object], int, bool, str], ...] = (
    ("crash in a run", {"crash_at": 3}, -signal.SIGSEGV, True, ""),
    ("crash in prefill", {"crash_at": 0}, -signal.SIGSEGV, True, ""),
    ("crash in init", {"init_crash": True}, -signal.SIGSEGV, False, ""),
    ("exit in a run", {"exit_at": 2, "exit_code": 42}, 42, True, ""),
    ("exit in init", {"init_exit": 7}, 7, False, ""),
    ("NPU memory, and the process dies", {"npu_memory": 12, "npu_memory_crash": True}, -signal.SIGSEGV, False, "errno: 12, errstr: Cannot"),
    ("a load that failed with 0", {"init_quiet_failure": True}, -signal.SIGABRT, True, "E rkllm: failed to load model"),
)


@pytest.mark.parametrize("fault", FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_fault_ends_the_process(
    fault: tuple[str, dict[str, object], int, bool, str], tmp_path: Path, script: Callable[..., None]
) -> None:
    """As it would end a worker, with the lines that the real library prints before."""
    _, values, status, loads, line = fault
    script(**values)
    ended = child("1.1.4" if "init_quiet_failure" in values else "1.3.0", model_file(tmp_path / "model"))
    assert ended.returncode == status, ended.stderr
    assert ("loaded\n" in ended.stdout) is loads
    assert line in ended.stdout + ended.stderr


def test_exhausted_npu_memory_is_told_as_the_driver_tells_it(
    tmp_path: Path, script: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    """On releases that return -1."""
    script(npu_memory=14)
    with pytest.raises(InitFailed):
        Loaded("1.2.3", model_file(tmp_path / "model"))
    assert "failed to allocate handle, ret: -1, errno: 14, errstr: Bad address\n" in (told := capfd.readouterr().err)
    assert "failed to malloc npu memory, size: 268435456" in told


def test_a_load_may_hang(tmp_path: Path, script: Callable[..., None]) -> None:
    """Nothing but a signal ends it."""
    script(init_hang=True)
    command = [sys.executable, "-m", "tests.support.runtime_child", str(runtime("1.2.3")), "G3", str(model_file(tmp_path / "model")), "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("loading rkllm model" in line for line in process.stdout)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
        process.kill()


@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize("ignores", [False, True])
def test_a_hang_may_or_may_not_hear_an_abort(place: int, ignores: bool, tmp_path: Path, script: Callable[..., None]) -> None:
    """In prefill, which calls nothing back, and at a token."""
    script(hang_at=place, hang_ignores_abort=ignores)
    model_file(tmp_path / "model", reply_tokens=5)
    results: list[Result] = []
    before = threading.Event()

    def take(result: Result) -> None:
        results.append(result)
        if len(results) >= place - 1:
            before.set()

    library = Library.open(runtime("1.2.3"), "G3")
    model = library.init(LoadParameters(model_path=str(tmp_path / "model"), max_context_tokens=512), take)
    thread = threading.Thread(target=model.run, args=(Prompt("x"), RunOptions(), 1), daemon=True)
    thread.start()
    assert place == 0 or before.wait(WAIT_SECONDS)
    for _ in range(20):  # One that comes before the library has begun is lost.
        model.abort()
        thread.join(0.02)
    assert thread.is_alive() is ignores
    assert len(results) == max(0, place - 1) + (0 if ignores else 1)


def test_the_banner_and_every_line_of_a_load_are_those_of_the_real_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And one says that this is a simulation."""
    Loaded("1.3.0", model_file(tmp_path / "model", toolkit="1.2.1", context_limit=2048, npu_cores=2, platform="RK3576", dtype="w4a16"))
    assert capfd.readouterr().out.splitlines() == [
        "I rkllm: rkllm-runtime version: 1.3.0, rknpu driver version: 0.9.8, platform: RK3576",
        "W rkllm: this runtime is a simulation: no NPU and no model, and every figure of it is simulated",
        f"I rkllm: loading rkllm model from {tmp_path / 'model'}",
        "I rkllm: rkllm-toolkit version: 1.2.1, max_context_limit: 2048, npu_core_num: 2, target_platform: RK3576, model_dtype: w4a16",
        "I rkllm: Enabled cpus: [4, 5, 6, 7]",
        "I rkllm: Enabled cpus num: 4",
    ]


def test_refusals_have_the_real_ones_lines(tmp_path: Path, script: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    """Context above the limit, a prompt above the context, a foreign file, an old driver, matmul failures that end nothing."""
    model = model_file(tmp_path / "model", context_limit=4096)
    with pytest.raises(InitFailed):
        Loaded("1.2.3", model, max_context_tokens=16384)
    assert "E rkllm: max_context[16384] must be less than the model's max_context_limit[4096]\n" in capfd.readouterr().out
    (tmp_path / "pointer").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InitFailed):
        Loaded("1.2.3", tmp_path / "pointer")
    assert "E rkllm: invalid rknn llm model magic!\n" in capfd.readouterr().out
    script(driver="0.8.2", matmul_failures=2, token_lines=1)
    loaded = Loaded("1.2.3", model, max_context_tokens=32)
    assert "driver version is too low, please upgrade to 0.9.7" in capfd.readouterr().out
    with pytest.raises(RunFailed):
        loaded.model.run(Prompt("word" + " word" * 39), RunOptions(), 1)
    assert [result.state for result in loaded.results] == ["error"]
    assert "E rkllm: prompt gather than max context (prompt: 42 tokens, max context: 32)\n" in capfd.readouterr().out
    loaded.model.run(Prompt("word"), RunOptions(), 2)
    told = capfd.readouterr().out
    assert told.count("E rkllm: matmul(w8a8) run failed\n") == 2
    assert "line 1 of token 2" in told


@pytest.mark.parametrize("release", RELEASES.values())
def test_the_table_is_printed_at_log_level_1(
    release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the unit of memory that the generation prints."""
    monkeypatch.setenv("RKLLM_LOG_LEVEL", "1")
    loaded = Loaded(release, model_file(tmp_path / "model", memory_mb=2048, reply_tokens=4))
    loaded.model.run(Prompt("one two"), RunOptions(), 1)
    told = capfd.readouterr().out
    rows = re.findall(r"(Prefill|Generate)\s+([\d.]+)\s+(\d+)\s+([\d.]+)\s+([\d.]+)", told)
    assert [(row[0], row[2]) for row in rows] == [("Prefill", "2" if release == "1.1.4" else "4"), ("Generate", "4")]
    heads = {"1.1.4": r" Memory Usage \(GB\)\n.* 2.00\n", "1.3.0": r"Peak Memory Usage \(MB\)\n.* 2048.00\n"}
    assert re.search(heads.get(release, r"Peak Memory Usage \(GB\)\n.* 2.00\n"), told)


def test_tokens_come_at_the_rate_that_the_model_file_says(tmp_path: Path) -> None:
    """Within 1%: the schedule counts from its beginning. A prompt twice the measured length takes twice the time to its first token."""
    model = model_file(tmp_path / "model", ttft_ms=40, tokens_per_s=200, seqlen=8, reply_tokens=60)
    loaded = Loaded("1.2.3", model)
    perf = None
    for attempt in range(1, ATTEMPTS + 1):
        loaded.results.clear()
        loaded.model.run(Prompt("word" + " word" * 13), RunOptions(), attempt)
        perf = loaded.results[-1].perf
        assert perf is not None
        assert (perf.prefill_tokens, perf.generate_tokens) == (16, 60)
        if abs(perf.generate_tokens * 1000 / perf.generate_ms - 200) < 2 and abs(perf.prefill_ms + 5 - 80) < 1:
            return
    pytest.fail(f"no attempt came near 200 tokens/s after 80 ms: {perf}")


def test_a_board_that_heats_up_slows_down(tmp_path: Path) -> None:
    """The rate falls to a part of it within the given time, and stays there."""
    loaded = Loaded("1.3.0", model_file(tmp_path / "model", tokens_per_s=400, reply_tokens=40, heat_factor=0.5, heat_seconds=0.05))
    times = []
    for request in (1, 2):
        loaded.model.run(Prompt("x"), RunOptions(), request)
        perf = loaded.results[-1].perf
        assert perf is not None
        times.append(perf.generate_ms)
    assert times[0] > 40 / 400 * 1000 * 1.3
    assert times[1] > 40 / 400 * 1000 * 1.8


def test_a_slow_abort_takes_its_time(tmp_path: Path, script: Callable[..., None]) -> None:
    """The run ends later than the abort by what the script says."""
    script(abort_ms=150)
    model_file(tmp_path / "model", tokens_per_s=100, reply_tokens=100)
    results: list[Result] = []
    library = Library.open(runtime("1.2.3"), "G3")

    def take(result: Result) -> None:
        results.append(result)
        if len(results) == 1:
            aborts.start()

    model = library.init(LoadParameters(model_path=str(tmp_path / "model"), max_context_tokens=512), take)
    aborts = threading.Thread(target=model.abort)
    model.run(Prompt("x"), RunOptions(), 1)
    perf = results[-1].perf
    assert perf is not None
    assert perf.generate_ms > 150


@pytest.mark.parametrize("place", [0, 1])
def test_an_abort_may_have_to_wait_for_the_end_of_a_token(tmp_path: Path, script: Callable[..., None], place: int) -> None:
    """Or for that of prefill: what a device computes is computed to its end, and then nothing more is given."""
    script(abort_at_token=True)
    model_file(tmp_path / "model", ttft_ms=300, tokens_per_s=1000 / 300, reply_tokens=100)
    results: list[Result] = []
    library = Library.open(runtime("1.2.3"), "G3")
    model = library.init(LoadParameters(model_path=str(tmp_path / "model"), max_context_tokens=512), results.append)
    run = threading.Thread(target=model.run, args=(Prompt("x"), RunOptions(), 1))
    run.start()
    while run.is_alive():
        if len(results) >= place:
            model.abort()  # One that comes before the library has begun is lost.
        run.join(0.01)
    assert [one.state for one in results] == ["normal"] * place + ["finish"]
    perf = results[-1].perf
    assert perf is not None
    assert perf.prefill_ms + perf.generate_ms >= 300 * (place + 1)


def test_a_placeholder_of_the_fleet_has_the_speed_of_its_row(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`rkfleet model push --simulated` writes the figures into the file; the library holds no table."""
    placeholder = next(one for one in plan_placeholders(load_table(), "Qwen2-0.5B", "1.3.0") if "rk3576" in one.file_name)
    row = load_table().best("Qwen2-0.5B", "rk3576", "1.3.0")
    assert row is not None
    (tmp_path / placeholder.file_name).write_bytes(placeholder.body)
    loaded = Loaded("1.2.3", tmp_path / placeholder.file_name, max_context_tokens=320, max_new_tokens=4)
    loaded.model.run(Prompt("x"), RunOptions(), 1)
    perf = loaded.results[-1].perf
    assert perf is not None
    assert perf.memory_mb == pytest.approx(row.memory_bytes / (1 << 20))
    assert perf.prefill_ms + 1000 / row.tokens_per_second == pytest.approx(row.time_to_first_token_seconds * 1000, rel=0.1)
    assert perf.generate_ms == pytest.approx(4 / row.tokens_per_second * 1000, rel=0.2)
    assert "npu_core_num: 2, target_platform: RK3576" in capfd.readouterr().out
    assert loaded.text().startswith("[simulated runtime 1.2.3 G3]")


@pytest.mark.parametrize("generation", RELEASES)
def test_a_build_exports_the_functions_of_its_generation_and_no_others(generation: str) -> None:
    """As `nm` lists them."""
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed, which lists exports; try: apt-get install binutils")
    path = runtime(RELEASES[generation])  # type: ignore[index]
    listed = subprocess.run(["nm", "-D", "--defined-only", path], check=True, capture_output=True, text=True).stdout
    assert {line.split()[-1] for line in listed.splitlines()} == set(SYMBOLS[generation])  # type: ignore[index]


def test_a_build_is_made_once_and_again_when_its_words_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints the path; the version is where it is to be seen, or nowhere."""
    assert main(["--version", "1.2.2", "-o", str(tmp_path)]) == 0
    library = Path(capsys.readouterr().out.strip())
    assert library == tmp_path / LIBRARY
    inode = library.stat().st_ino
    build("G3", "1.2.2", tmp_path)
    assert library.stat().st_ino == inode
    assert b"\x001.2.2\x00" in library.read_bytes()
    assert main(["--version", "1.2.2", "--hide-version", "-o", str(tmp_path)]) == 0
    assert b"1.2.2" not in library.read_bytes()
    assert sorted(os.listdir(tmp_path)) == [LIBRARY, f"{LIBRARY}.sources"]


def test_every_key_of_a_script_is_documented() -> None:
    """The page of simulation names what a model file and a script can say."""
    source = (building.include_dir() / "script.c").read_text()
    page = (building.include_dir().parents[1] / "docs" / "concepts" / "simulation.md").read_text()
    found = re.findall(r"KEY\((?:NUMBER|REAL|FLAG|TEXT), (\w+)\)", source)
    assert len(found) > 40
    assert [key for key in found if f"`{key}`" not in page] == []


def test_the_wheel_has_every_source() -> None:
    """An installed rkfleet builds the library too."""
    root = building.include_dir().parents[1]
    carried = {Path(file.relative_path) for file in WheelBuilder(str(root)).recurse_included_files()}
    sources = {path.relative_to(root) for path in building.include_dir().iterdir() if path.suffix in {".c", ".h"}}
    assert len(sources) > 10
    assert sources <= carried


def test_what_cannot_be_built_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No gcc, an unknown release, a word that is no version, sources that do not compile."""
    assert main(["--version", "1.9.9", "-o", str(tmp_path)]) == 1
    assert "release '1.9.9' of the runtime is unknown" in capsys.readouterr().err
    with pytest.raises(Invalid, match="must be three numbers"):
        build("G3", 'x"', tmp_path)
    with pytest.raises(Invalid):
        generation_of("2.0.0")
    with monkeypatch.context() as without:
        without.setenv("PATH", str(tmp_path))
        with pytest.raises(FailedPrecondition, match="gcc is not on PATH"):
            build("G3", "1.2.3", tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.c").write_text("no C")
    monkeypatch.setattr(building, "include_dir", lambda: tmp_path / "broken")
    with pytest.raises(Internal, match="gcc ended with status 1"):
        build("G3", "1.2.3", tmp_path / "out")
