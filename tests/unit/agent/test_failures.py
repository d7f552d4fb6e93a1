"""The 25 known failures of boards with an NPU, each from the text in which it was reported."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.board.diagnosis import diagnose
from agent.board.npu import Account
from agent.board.profile import Item, Outcome
from agent.board.telemetry import observe_board
from agent.failures import facts
from agent.failures.lines import Ending, first_error, recognise
from agent.failures.modes import MODES, Failure
from agent.planning.hardware import clocks_pinned
from rkfleet import conditions
from tests.support.board_tree import BoardTree, rk3588_tree

SEGV = -int(signal.SIGSEGV)
KILL = -int(signal.SIGKILL)
AGENT = Account(990, frozenset({990, 105}))

BANNER = (
    "I rkllm: rkllm-runtime version: 1.2.1, rknpu driver version: 0.9.8, platform: RK3588",
    "I rkllm: loading rkllm model from /var/lib/rkfleet/model.rkllm",
    "I rkllm: rkllm-toolkit version: 1.1.4, max_context_limit: 4096, npu_core_num: 3, target_platform: RK3576, model_dtype: W8A8",
    "I rkllm: Enabled cpus: [4, 5]",
    "I rkllm: Enabled cpus num: 2",
)
OLD = "I rkllm: rkllm-runtime version: 1.2.1, rknpu driver version: 0.8.2, platform: RK3588"
TOO_LOW = "W rkllm: Warning: Your rknpu driver version is too low, please upgrade to 0.9.7."
HANDLE = "E RKNN: [07:13:41.510] failed to allocate handle, ret: -1, errno: 14, errstr: Bad address"
HANDLE_12 = "E RKNN: [07:13:41.510] failed to allocate handle, ret: -1, errno: 12, errstr: Cannot allocate memory"
MALLOC = "E RKNN: [07:13:41.510] failed to malloc npu memory, size: 4316987392, flags: 0x2"
NOT_LOADED = "E rkllm: load model file error!"
NO_LORA = "rkllm_load_lora returned -1 for adapter qwen_lora.safetensors"
HUNG = (
    "RKNPU: failed to wait job, task counter: 0, flags: 0x5, ret = 0, elapsed time: 6132873us",
    "RKNPU: job timeout, flags: 0x0:",
    "RKNPU: \tcore 0 irq status: 0x0, raw status: 0x0, require mask: 0x300, task counter: 0x0, elapsed time: 6132905us",
    "RKNPU: soft reset, num: 1",
)
OOM = "Out of memory: Killed process 4242 (python3) total-vm:9437184kB, anon-rss:3145728kB, file-rss:128kB, shmem-rss:0kB, UID:998"

LINES = [
    (1, [OLD, TOO_LOW, "E rkllm: matmul(w8a8) run failed", "E rkllm: matmul(w8a8) run failed"], [], {"loaded": True, "status": 1},
     r"w8a8 .* 0\.8\.2", "0.9.8"),
    (1, [OLD, TOO_LOW], [], {"status": 1}, r"0\.8\.2 .* 0\.9\.7", "0.9.8"),
    (2, [*BANNER, HANDLE, MALLOC, NOT_LOADED], [], {"status": 1}, r"4\.0 GiB", "iommuDomain"),
    (2, [OLD, HANDLE, MALLOC, NOT_LOADED], [], {"status": 1}, r"4\.0 GiB .* 0\.8\.2", "0.9.8"),
    (2, [NOT_LOADED], ["RKNPU: rknpu_gem_object_create: failed to allocate IOVA: -28"], {"status": 1}, "IOVA", "iommuDomain"),
    (2, [HANDLE], ["RKNPU: rknpu iommu is disabled, using non-iommu mode"], {"status": 1}, "without IOMMU", "dmesg"),
    (3, [*BANNER, HANDLE_12, MALLOC, NOT_LOADED], [], {"status": 1}, r"4\.0 GiB \(errno 12\)", "embedFlash"),
    (3, [], [OOM], {"status": KILL, "pid": 4242}, r"process 4242, which held 3\.0 GiB", "embedFlash"),
    (3, [], [], {"status": KILL, "kernel_killed": True}, "ran out of memory", "embedFlash"),
    (4, ["E RKNN: failed to open rknpu module, need to insmod rknpu dirver!", "E RKNN: failed to open rknn device!"], [], {"status": 1},
     "insmod", "ls -l /dev/dri"),
    (4, ["E RKNN: failed to open rknn device! errno: 13, errstr: Permission denied"], [], {"status": 1}, "may not open", "usermod -aG"),
    (5, ["E RKNN: failed to open rknn device!"], [], {"status": 1, "driver_family": "rocket"}, "rocket", "vendor's kernel"),
    (6, ["E RKNN: hw_version = -1", "E RKNN: Meet unsupported target type: 0xffffffff"], [], {"status": SEGV}, "a link",
     "rm /dev/rknpu"),
    (7, ["E rkllm: Query platform error!"], [], {"status": 1}, "Query platform error", "device-tree"),
    (7, ["E rkllm: Platform error: must be either RK3588, RK3576, RV1126B, or RK3562. Your platform is lite"], [], {"status": 1},
     "RK3588, RK3576", "device-tree"),
    (8, [*BANNER, "E rkllm: invalid rknn llm model magic", "E rkllm: failed to load model"], [], {"status": 1},
     r"runtime 1\.2\.1 .* toolkit 1\.1\.4 for RK3576", "rkfleet model push"),
    (8, ["E rkllm: failed to load model: invalid magic characters"], [], {"status": 1}, "magic", "rkfleet model push"),
    (8, ["the model version is too old and target_platform does not match"], [], {"status": 1}, "too old", "rkfleet model push"),
    (8, [], ["RKNPU: invalid rknpu core mask: 0x7"], {"status": 1}, "0x7", "convert"),
    (9, ["E RKNN: parse model error", "rkllm init success", "ggml.c:4212: GGML_ASSERT(view_src == NULL || data_size == 0) failed"], [],
     {"status": -int(signal.SIGABRT), "loaded": True}, "parse model error", ">=1.2.0"),
    (10, BANNER, [], {"status": SEGV, "loaded": True}, r"runtime 1\.2\.1 loaded .* binary interface", "doctor --self-test"),
    (11, ["E rkllm: max_context[16384] must be less than the model's max_context_limit[4096]"], [], {"status": 1}, "16384 .* 4096", "4096"),
    (12, ["E rkllm: prompt gather than max context (prompt: 5012 tokens, max context: 4096)"], [], {"status": 1, "loaded": True},
     "5012 .* 4096", "above 5012"),
    (13, [*BANNER, "E rkllm: The number of enabled CPUs must be greater than or equal to the number of NPU cores."], [], {"status": 1},
     "2 CPUs.* 3 NPU cores", "cpus"),
    (14, ["E RKNN: [08:11:02.101] failed to submit!, op id: 12, op name: Conv:conv1"], [], {"status": 1}, "operation 12", "fuser"),
    (14, [], ["RKNPU: switch iommu domain time out, failed to switch iommu domain, id: 3"], {"status": 1}, "domain 3", "fuser"),
    (14, [], ["RKNPU: job: 00000000d4, mask: 0x7, job iommu domain id: 1, dev iommu domain id: 0, wait_count: 9"], {"status": 1},
     "domain 1 waited 9 times while domain 0", "fuser"),
    (15, [], HUNG, {"status": KILL, "hung": True, "loaded": True}, "reset it 1 time", "reboot"),
    (15, [], [*HUNG[:2], "RKNPU: bypass soft reset"], {"status": 1}, "reset is off", "bypass_soft_reset"),
    (15, [], ["RKNPU: job commit failed"], {"status": 1}, "job commit failed", "reboot"),
    (16, BANNER, [], {"status": KILL, "hung": True, "loaded": True}, r"1\.2\.1", ">=1.2.2"),
    (17, [*BANNER, HANDLE, MALLOC], [], {"status": SEGV}, r"SIGSEGV .* 4\.0 GiB", "iommuDomain"),
    (17, BANNER, [], {"status": SEGV, "others": 1}, "beside 1 other worker", "iommuDomain"),
    (20, ["E RKNN: failed to convert handle(1020) to fd, ret: -1, errno: 24, errstr: Too many open files"], [], {"status": 1},
     "buffer 1020", "LimitNOFILE"),
    (21, ["OSError: libomp.so: cannot open shared object file: No such file or directory"], [], {"status": 1}, "libomp", "copy libomp.so"),
    (24, [], [], {"status": 1, "said": NO_LORA}, r"qwen_lora\.safetensors .* -1", "model_lora"),
    (24, [], [], {"status": 1, "said": "adapter law was not loaded from /a/law.safetensors: wrong format"}, "law.*wrong format",
     "model_lora"),
]  # fmt: skip


@pytest.mark.parametrize("case", LINES, ids=lambda case: str(case[0]))
def test_a_failure_is_recognised_by_its_lines(case: tuple[int, list[str], list[str], dict[str, object], str, str]) -> None:
    """The sentence has the values of the lines, and there is one thing to do."""
    number, said, kernel, end, words, remedy = case
    found = recognise(said, kernel, Ending(**end))  # type: ignore[arg-type]
    assert found is not None
    assert found.number == number
    assert re.search(words, found.message), found.message
    assert remedy in found.remedy
    assert ". Try: " not in found.message


FACTS = [
    (1, facts.driver_too_old("0.9.6"), "0.9.6"),
    (5, facts.mainline_driver("rocket"), "rocket"),
    (16, facts.run_lost("1.2.1b1"), "1.2.1b1"),
    (25, facts.model_not_unloaded(77, 3 << 30, 12.0), "process 77 .* 12 s .* 3072 MiB"),
    (25, facts.model_not_unloaded(77, 3 << 30, 12.0, killed=True), "killed 12 s ago, waits inside a driver"),
]


@pytest.mark.parametrize(("number", "found", "words"), FACTS)
def test_a_failure_is_recognised_by_what_was_measured(number: int, found: Failure | None, words: str) -> None:
    """These have no line in any log."""
    assert found is not None
    assert found.number == number
    assert re.search(words, found.message), found.message
    assert found.remedy


Seed = Callable[[BoardTree], BoardTree]
BOARDS: list[tuple[int, Seed, str]] = [
    (1, lambda tree: tree.old_driver("0.9.6"), "0.9.6"),
    (4, lambda tree: tree.no_driver(), "no NPU driver"),
    (4, lambda tree: tree.no_node(), "is not there"),
    (4, lambda tree: tree.forbidden_node(), "may not be opened"),
    (5, lambda tree: tree.mainline(), "rocket"),
    (6, lambda tree: tree.legacy_symlink(), "renderD129"),
    (13, lambda tree: tree.worker(900, cpus="6"), "core 6"),
    (14, lambda tree: tree.client(812, "frigate"), r"frigate \(process 812\)"),
    (18, lambda tree: tree.clock("cpu4", "powersave", 408_000_000), "powersave and run at 408 MHz"),
    (19, lambda tree: tree.throttled(), "heat at 96 °C"),
    (21, lambda tree: tree.libraries(openmp=False), "libomp"),
    (23, lambda tree: tree.no_debugfs(), "debugfs is not mounted"),
    (23, lambda tree: tree.load_text("?"), "nothing that can be read"),
]


@pytest.mark.parametrize(("number", "seed", "words"), BOARDS)
def test_a_failure_is_recognised_on_the_board(tmp_path: Path, number: int, seed: Seed, words: str) -> None:
    """What ails the board itself is a finding of the doctor with the number of its row, and nothing else has one."""
    tree = seed(rk3588_tree(tmp_path))
    found = [one for one in diagnose(observe_board(tree.root, tree.data_dir, account=AGENT)) if one.failure]
    assert [one.failure for one in found] == [number]
    assert re.search(words, found[0].sentence), found[0].sentence
    assert found[0].command


@pytest.mark.parametrize(("outcome", "got"), [("differs", "userspace 1000 MHz"), ("missing", "")])
def test_clocks_that_are_not_as_they_were_set_are_failure_22(outcome: Outcome, got: str) -> None:
    """It is a condition of the board, which names what is wanted and what is read back."""
    item = Item("dram", "/sys/class/devfreq/dmc", "userspace 2112 MHz", got, outcome)
    pinned = clocks_pinned("Fixed", [item], has_npu=True, has_profile=True)
    assert pinned is not None
    assert pinned.status == "False"
    assert all(words in pinned.message for words in ("/sys/class/devfreq/dmc", "2112 MHz", got))


def test_all_25_are_recognised_by_something() -> None:
    """A row that nothing recognises would be a promise without a program."""
    assert [mode.number for mode in MODES] == list(range(1, 26))
    assert {case[0] for case in (*LINES, *FACTS, *BOARDS)} | {22} == set(range(1, 26))
    assert len({mode.reason for mode in MODES}) == 25
    assert all(re.fullmatch(r"[A-Z][A-Za-z]+", mode.reason) for mode in MODES)


@pytest.mark.parametrize(
    "found",
    [
        facts.driver_too_old("0.9.8"), facts.driver_too_old(""), facts.mainline_driver("rknpu"), facts.run_lost("1.2.2"),
        facts.model_not_unloaded(1, 1 << 20, 9.0),
    ],
)  # fmt: skip
def test_what_is_well_or_unknown_is_no_failure(found: Failure | None) -> None:
    """A value that nobody could read is not a fault."""
    assert found is None


def test_the_most_specific_wins() -> None:
    """A consequence never hides its cause, and a warning that healthy boards print as well hides nothing."""
    assert number_of([TOO_LOW, HANDLE_12, MALLOC, NOT_LOADED]) == 3
    assert number_of([TOO_LOW, HANDLE, MALLOC, NOT_LOADED]) == 2
    assert number_of([TOO_LOW, "E rkllm: max_context[9] must be less than the model's max_context_limit[4]", NOT_LOADED]) == 11
    assert number_of(["E rkllm: Query platform error!", "E rkllm: failed to load model"]) == 7
    assert number_of([HANDLE, MALLOC], kernel=[OOM], status=KILL, pid=4242) == 3


def number_of(said: list[str], kernel: list[str] | None = None, **end: object) -> int | None:
    found = recognise(said, kernel or [], Ending(**{"status": 1, **end}))  # type: ignore[arg-type]
    return found.number if found else None


def test_a_kill_from_outside_is_not_blamed_on_what_was_said_before() -> None:
    """Nor is the death of another process, nor a wait that ended because its process was killed."""
    assert number_of([HANDLE, MALLOC], status=KILL) is None
    assert number_of([], kernel=[OOM], status=KILL, pid=17) is None
    assert number_of([], kernel=["RKNPU: failed to wait job, task counter: 0, flags: 0x5, ret = -512, elapsed time: 12us"]) is None


def test_a_worker_outlives_a_prompt_that_was_too_long() -> None:
    """A fault hours later is another matter."""
    line = "E rkllm: prompt gather than max context (prompt: 5012 tokens, max context: 4096)"
    assert number_of([line], loaded=True, status=SEGV) == 10


def test_a_library_that_has_answered_has_the_right_interface() -> None:
    """Its later crash is no matter of how it is called."""
    assert number_of([*BANNER, "I rkfleet: request r1 (1) ran 0.512 s and has 8 tokens"], loaded=True, status=SEGV) is None


def test_an_error_without_a_name_keeps_the_words_of_the_library() -> None:
    """There is nothing better to show."""
    said = ["I rkllm: hello", "E rkllm: the moon is in the wrong house", "goodbye"]
    assert recognise(said, [], Ending(status=1)) is None
    assert first_error(said) == "E rkllm: the moon is in the wrong house"
    assert first_error(["one", "two "]) == "two"
    assert first_error([]) == ""


def test_every_reason_is_a_constant_of_the_contract() -> None:
    """Reasons are constants in one place."""
    known = {value for name, value in vars(conditions).items() if name.isupper() and isinstance(value, str)}
    assert {mode.reason for mode in MODES} <= known
