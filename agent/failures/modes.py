"""The table of known failures: number, reason, what one sees, why it happens, and what helps.

Out: `MODES` for `docs/generate.py`, and `failure`, which makes a `Failure` from a row and a sentence with the values of this case. Called
by `agent/failures/lines.py` and `agent/failures/facts.py`; a finding of `agent/board/diagnosis.py` has the number of
its row. The numbers are stable: documentation and tests refer to them.

Sources stand in each row: threads of https://github.com/airockchip (rknn-llm, rknn-toolkit2) and of projects that stand on its runtime,
and the driver's own source (drivers/rknpu of the vendor's kernel). What only a third party reported is worded as "may".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from rkfleet import conditions
from rkfleet.kinds.replica import ExitReason

__all__ = ["DRIVER_MIN", "DRIVER_WANTED", "MESSAGE_CHARACTERS_MAX", "MODES", "Failure", "Mode", "failure"]

# What every SDK release since 1.1.0 asks for in its manual. Source: RKLLM SDK manuals 1.1.0 to 1.3.0, chapter on the environment.
DRIVER_MIN: Final = (0, 9, 8)
DRIVER_WANTED: Final = ".".join(map(str, DRIVER_MIN))

# A condition message shows one sentence of a library, not its log; the log has its own command.
MESSAGE_CHARACTERS_MAX: Final = 600

_LLM: Final = "https://github.com/airockchip/rknn-llm/issues/"
_TOOLKIT: Final = "https://github.com/airockchip/rknn-toolkit2/issues/"


class Mode(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One row of the table.

    Attributes:
        number: 1 to 25, stable.
        reason: CamelCase constant of `rkfleet.conditions`.
        seen: What somebody sees: lines, symptoms.
        cause: Why it happens.
        remedy: One command or one field; a `Failure` may have a more exact one.
        source: Where it was reported, a URL.
        exit: Reason of the worker's exit where the mode decides it; None leaves what the process itself told.
    """

    number: int
    reason: str
    seen: str
    cause: str
    remedy: str
    source: str
    exit: ExitReason | None = None


class Failure(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A mode that was recognised.

    Attributes:
        number: Row of the table.
        reason: Its CamelCase reason.
        message: One sentence with the values of this case, without a full stop.
        remedy: One command or one field to change.
        exit: As in the row.
        guess: Whether only the way in which the process ended suggests it, and no line or value says so.
    """

    number: int
    reason: str
    message: str
    remedy: str
    exit: ExitReason | None = None
    guess: bool = False


MODES: Final[tuple[Mode, ...]] = (
    Mode(
        number=1,
        reason=conditions.NPU_DRIVER_TOO_OLD,
        seen="`driver version is too low, please upgrade`, then `matmul(w8a8) run failed` again and again and answers that are garbage; the"
        " load itself said success",
        cause="the kernel's NPU driver is older than the runtime needs",
        remedy=f"boot a vendor kernel with RKNPU driver {DRIVER_WANTED} or newer",
        source=f"{_LLM}413",
    ),
    Mode(
        number=2,
        reason=conditions.NPU_MEMORY_EXHAUSTED,
        seen="`failed to allocate handle, ret: -1, errno: 14`, `failed to malloc npu memory, size: N`; in the kernel log `failed"
        " to allocate IOVA` or `iommu is disabled`",
        cause="the weights exceed what is free in their IOMMU domain of about 4 GB: another model is in it, or the driver is too old",
        remedy="set spec.template.serving.iommuDomain to a domain that no other model uses",
        source=f"{_LLM}437",
        exit="OutOfMemory",
    ),
    Mode(
        number=3,
        reason=conditions.OUT_OF_MEMORY,
        seen="`errno: 12, errstr: Cannot allocate memory`, or the process was killed and the kernel log has `Out of memory:"
        " Killed process`",
        cause="the board has no memory left",
        remedy="set spec.template.serving.embedFlash to true, or contextTokens lower",
        source=f"{_LLM}149",
        exit="OutOfMemory",
    ),
    Mode(
        number=4,
        reason=conditions.NPU_NOT_ACCESSIBLE,
        seen="`failed to open rknpu module, need to insmod rknpu dirver!`, `failed to open rknn device!`",
        cause="there is no driver, or its node is not visible or not permitted to this user or container",
        remedy="on the board: ls -l /dev/dri /dev/rknpu /sys/module/rknpu",
        source=f"{_LLM}287",
    ),
    Mode(
        number=5,
        reason=conditions.MAINLINE_NPU_DRIVER,
        seen="no NPU, although `/dev/dri/renderD128` exists",
        cause="the mainline kernel's `rocket` driver has the NPU; the vendor's runtime cannot speak to it",
        remedy="boot the vendor's kernel, whose driver is rknpu",
        source=f"{_TOOLKIT}570",
    ),
    Mode(
        number=6,
        reason=conditions.NPU_NODE_IS_A_LINK,
        seen="`hw_version = -1`, `Meet unsupported target type: 0xffffffff`, then a crash",
        cause="somebody made `/dev/rknpu` a link to the render node, which sends the runtime down the path of another kind of driver",
        remedy="on the board: rm /dev/rknpu",
        source=f"{_TOOLKIT}534",
    ),
    Mode(
        number=7,
        reason=conditions.PLATFORM_UNKNOWN,
        seen="`Query platform error!`, `Platform error: must be either RK3588, RK3576, ...`",
        cause="the chip is not supported, or the runtime cannot read the device tree (hidden in a container)",
        remedy="on the board, where the agent runs: cat /proc/device-tree/compatible",
        source=f"{_LLM}530",
    ),
    Mode(
        number=8,
        reason=conditions.MODEL_FILE_REFUSED,
        seen="`invalid rknn llm model magic`, `invalid magic characters`, `model version is too old`, `target_platform does not match`; in"
        " the kernel log `invalid rknpu core mask`",
        cause="the file was made for another release or chip, or is a truncated copy or a pointer of git-lfs",
        remedy="convert the model for this chip and runtime, then: rkfleet model push FILE",
        source=f"{_LLM}235",
    ),
    Mode(
        number=9,
        reason=conditions.LOAD_REPORTED_FALSELY,
        seen="an error line while loading, then success; the first run dies with `GGML_ASSERT(view_src == NULL ...)`",
        cause="runtimes of the 1.1 line report success for a load that failed",
        remedy='set spec.template.serving.runtimeVersion to ">=1.2.0"',
        source=f"{_LLM}156",
    ),
    Mode(
        number=10,
        reason=conditions.RUNTIME_ABI_MISMATCH,
        seen="SIGSEGV in the first run after a load without errors",
        cause="the library has another binary interface than it was called with, as after a library file was swapped",
        remedy="on the board: rkfleet doctor --self-test",
        source=f"{_LLM}509",
    ),
    Mode(
        number=11,
        reason=conditions.CONTEXT_ABOVE_MODEL_LIMIT,
        seen="`max_context[16384] must be less than the model's max_context_limit[4096]`",
        cause="more context is asked for than the file was converted for",
        remedy="set spec.template.serving.contextTokens to the limit",
        source="https://github.com/NotPunchnox/rkllama/issues/60",
    ),
    Mode(
        number=12,
        reason=conditions.PROMPT_TOO_LONG,
        seen="`prompt gather than max context (prompt: N tokens, max context: M)`",
        cause="a prompt is longer than the context",
        remedy="send a shorter prompt, or raise spec.template.serving.contextTokens",
        source="https://github.com/NotPunchnox/rkllama/issues/25",
    ),
    Mode(
        number=13,
        reason=conditions.TOO_FEW_CPUS,
        seen="`The number of enabled CPUs must be greater than or equal to the number of NPU cores.`",
        cause="the runtime was given fewer CPUs than the model uses NPU cores",
        remedy="set spec.template.serving.cpus to 4-7",
        source=f"{_LLM}271",
    ),
    Mode(
        number=14,
        reason=conditions.NPU_CONTENTION,
        seen="`failed to submit!, op id`, one NPU core at 100%; in the kernel log `switch iommu domain time out`; the board may freeze",
        cause="several programs use the NPU at once",
        remedy="on the board: fuser -v /dev/dri/renderD* /dev/rknpu",
        source=f"{_LLM}315",
    ),
    Mode(
        number=15,
        reason=conditions.NPU_RESET,
        seen="in the kernel log `RKNPU: failed to wait job`, `job timeout`, `soft reset`",
        cause="the NPU hung, because of power, driver or job, and the driver reset it",
        remedy="on the board, if it happens again: reboot",
        source=f"{_TOOLKIT}536",
    ),
    Mode(
        number=16,
        reason=conditions.ASYNC_RUN_LOST,
        seen="a run that was started asynchronously never ends and never calls back",
        cause="a defect of runtime 1.2.1",
        remedy='set spec.template.serving.runtimeVersion to ">=1.2.2"',
        source=f"{_LLM}320",
    ),
    Mode(
        number=17,
        reason=conditions.CRASH_ON_NPU_MEMORY,
        seen="the process crashes, instead of refusing, when a second model finds too little NPU memory",
        cause="runtime 1.3.0 does not survive a load that runs out of NPU memory",
        remedy="set spec.template.serving.iommuDomain to a domain that no other model uses",
        source=f"{_LLM}522",
        exit="OutOfMemory",
    ),
    Mode(
        number=18,
        reason=conditions.CPU_CLOCK_LOW,
        seen="half of the table's tokens per second, big cores at 408 MHz",
        cause="the CPU governor keeps the fast cores slow, and part of the work is theirs",
        remedy="set spec.tuning.clocks of the Board to Fixed",
        source=f"{_LLM}27",
    ),
    Mode(
        number=19,
        reason=conditions.THERMAL_THROTTLING,
        seen="the speed falls after minutes of work; clocks are below what was set",
        cause="the chip is hot",
        remedy="cool the board, or take it out of service meanwhile: rkfleet board cordon NAME",
        source="https://github.com/Joshua-Riek/ubuntu-rockchip/issues/395",
    ),
    Mode(
        number=20,
        reason=conditions.TOO_MANY_OPEN_FILES,
        seen="`failed to convert handle(1020) to fd`, `errno: 24, Too many open files`",
        cause="runtimes 1.0 open a file for each buffer, and the process may open 1024",
        remedy="set LimitNOFILE=102400 in the unit of the agent: systemctl edit rkfleet-agent",
        source=f"{_LLM}62",
    ),
    Mode(
        number=21,
        reason=conditions.OPENMP_MISSING,
        seen="`libomp.so: cannot open shared object file`",
        cause="the OpenMP library that the runtime is linked to is not on the board",
        remedy="copy libomp.so into the directory of librkllmrt.so",
        source="https://github.com/airockchip/rknn-llm/blob/main/README.md",
    ),
    Mode(
        number=22,
        reason=conditions.TUNING_WITHOUT_EFFECT,
        seen="frequencies were set and the clocks are others",
        cause="the vendor's script checks nothing: no permission, or the kernel has other nodes",
        remedy="on the board: rkfleet doctor",
        source="https://github.com/airockchip/rknn-llm/tree/main/scripts",
    ),
    Mode(
        number=23,
        reason=conditions.NPU_LOAD_UNKNOWN,
        seen="the load of the NPU is missing",
        cause="its node is in debugfs, which is not mounted or only root may read",
        remedy="on the board: mount -t debugfs none /sys/kernel/debug",
        source="https://github.com/airockchip/rknn-llm/tree/main/rknpu-driver",
    ),
    Mode(
        number=24,
        reason=conditions.ADAPTER_NOT_CONVERTED,
        seen="`rkllm_load_lora` fails",
        cause="the adapter is as it was trained; it must be converted as the model was",
        remedy="convert the adapter with the toolkit (model_lora) and push the .rkllm file",
        source=f"{_LLM}332",
    ),
    Mode(
        number=25,
        reason=conditions.MODEL_NOT_UNLOADED,
        seen="the memory of a model stays taken after another one was asked for",
        cause="a process that should be gone still holds it",
        remedy="on the board: kill -9 PID, or reboot where that does not end it",
        source="https://github.com/NotPunchnox/rkllama/issues/86",
    ),
)

_BY_NUMBER: Final[Mapping[int, Mode]] = {mode.number: mode for mode in MODES}


def failure(number: int, message: str, remedy: str = "", *, guess: bool = False) -> Failure:
    """Return the failure of a row with this case's sentence; without a remedy of its own it has the row's."""
    mode = _BY_NUMBER[number]
    said = message.rstrip(".")[:MESSAGE_CHARACTERS_MAX]
    return Failure(number=number, reason=mode.reason, message=said, remedy=remedy or mode.remedy, exit=mode.exit, guess=guess)
