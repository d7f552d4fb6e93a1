"""Recognises a known failure from what a worker and the kernel said. Pure.

In: the worker's last lines, the kernel's lines of the same time, and how the process ended. Out: one `Failure`, or None for a failure
nobody has a name for, whose own words are then all there is to show. Called by `agent/workers/backends.py`.

The most specific wins: `_ORDER` is asked from top to bottom and the first answer is taken. First what the kernel did to the process, then
what keeps a runtime from starting at all (a missing library, node or platform: whatever it says afterwards is a consequence), then
refusals that name their number, then memory, then the file, and last what is only a guess from how the process ended.

Source of the lines: the runtime's and driver's own messages as quoted in the threads that `agent/failures/modes.py` names; the driver's
formats are those of drivers/rknpu in the vendor's kernel, those of the kernel are mm/oom_kill.c.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from agent.failures.facts import driver_too_old, mainline_driver, run_lost
from agent.failures.modes import Failure, failure

__all__ = ["LINES_MAX", "LINE_CHARACTERS_MAX", "Ending", "first_error", "recognise"]

# A runtime says a few dozen lines when it fails; a longer list is cut in the middle, because causes come first and last words last.
LINES_MAX: Final = 400
LINE_CHARACTERS_MAX: Final = 400


class Ending(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """How a worker ended.

    Attributes:
        status: Exit status; the negative number of the signal that ended it.
        pid: Its process id, 0 for unknown; the kernel's lines about killed processes name theirs.
        said: What the worker itself gave as its reason, for example the call of the library that returned what.
        loaded: Whether it had loaded its model.
        hung: Whether it was ended because it made no progress.
        kernel_killed: Whether the kernel killed some process for want of memory while it lived.
        others: Workers on the same NPU while it lived.
        driver_family: `rknpu`, `rocket` or empty for unknown.
    """

    status: int = 0
    pid: int = 0
    said: str = ""
    loaded: bool = False
    hung: bool = False
    kernel_killed: bool = False
    others: int = 0
    driver_family: str = ""


class _Case(msgspec.Struct, frozen=True, gc=False):
    """All that is known, as bounded texts with one line each."""

    said: str
    kernel: str
    end: Ending

    def says(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        return pattern.search(self.said)

    def kernel_says(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        return pattern.search(self.kernel)

    def line_of(self, match: re.Match[str]) -> str:
        """Return the whole line of a match."""
        text = match.string
        start, end = text.rfind("\n", 0, match.start()) + 1, text.find("\n", match.end())
        return text[start : end if end >= 0 else len(text)].strip()


def recognise(said: Sequence[str], kernel: Sequence[str], end: Ending) -> Failure | None:
    """Return the known failure that explains an ending, or None.

    Args:
        said: Lines of the worker and its library, oldest first; more than `LINES_MAX` are cut in the middle.
        kernel: Lines of the kernel log since the worker started, oldest first; empty where it cannot be read.
        end: How it ended.
    """
    case = _Case(_text([*said, end.said] if end.said else said), _text(kernel), end)
    if end.status in _KILLS and not end.hung:
        return _killed_for_memory(case)  # somebody's kill; what was said before is no reason for it
    for rule in _ORDER:
        found = rule(case)
        if found is not None:
            return found
    return None


def first_error(said: Sequence[str]) -> str:
    """Return the first line that the vendor's libraries marked as an error (`E rkllm: ...`, `E RKNN: ...`), else the last line."""
    marked = (line.strip() for line in said if _MARKED.match(line))
    return next(marked, said[-1].strip() if said else "")[:LINE_CHARACTERS_MAX]


def _text(lines: Sequence[str]) -> str:
    if len(lines) > LINES_MAX:
        lines = [*lines[: LINES_MAX // 2], *lines[-(LINES_MAX // 2) :]]
    return "\n".join(line[:LINE_CHARACTERS_MAX].replace("\n", " ") for line in lines)


# ---- What the libraries say ----------------------------------------------------------------------------------------------------

_MARKED: Final = re.compile(r"\s*E (?:rkllm|RKNN)\b")
_ERROR_LINE: Final = re.compile(r"^\s*E (?:rkllm|RKNN)\b[^\n]*", re.MULTILINE)

_OPENMP: Final = re.compile(r"libomp\.so[^\n]{0,200}cannot open shared object")
_LINKED_NODE: Final = re.compile(r"hw_version = -1|Meet unsupported target type: (0x[0-9a-fA-F]{1,16})")
_PLATFORM: Final = re.compile(r"Query platform error|Platform error: must be|Your platform is (?:lite|unknown)", re.IGNORECASE)
_PLATFORM_NAMES: Final = re.compile(r"must be either ([^\n]{1,120})")
_NO_NODE: Final = re.compile(r"failed to open rknpu module|failed to open rknn device")
_NOT_PERMITTED: Final = re.compile(r"Permission denied|errno: 13\b|EACCES", re.IGNORECASE)
_OPEN_FILES: Final = re.compile(r"errno: 24\b|Too many open files")
_HANDLE: Final = re.compile(r"failed to convert handle\((\d{1,12})\)")
_CONTEXT_LIMIT: Final = re.compile(r"max_context\[(\d{1,12})\] must be less than the model's max_context_limit\[(\d{1,12})\]")
_PROMPT: Final = re.compile(r"prompt g\w{1,10} than max context ?\(prompt: ?(\d{1,12}) tokens?, max context: ?(\d{1,12})\)")
_FEW_CPUS: Final = re.compile(r"number of enabled CPUs must be greater than or equal to the number of NPU cores")
_ENABLED_CPUS: Final = re.compile(r"Enabled cpus num: ?(\d{1,4})")
_CORES: Final = re.compile(r"npu_core_num: ?(\d{1,4})")
_LORA: Final = re.compile(r"rkllm_load_lora\b[^\n]{0,200}?(-\d{1,9})\b")
_ADAPTER: Final = re.compile(r"adapter [^\s]{1,200} was not loaded from [^\n]{1,1000}")
_ADAPTER_NAME: Final = re.compile(r"[\w./-]{1,200}\.(?:safetensors|rkllm|bin)")
_ASSERT: Final = re.compile(r"GGML_ASSERT\(view_src == NULL")
_SUBMIT: Final = re.compile(r"failed to submit!?,? ?(?:op id[: ]*(\d{1,9}))?")
_ERRNO_12: Final = re.compile(r"errno: 12\b|Cannot allocate memory")
_ERRNO_14: Final = re.compile(r"errno: 14\b|failed to malloc npu memory")
_MALLOC_SIZE: Final = re.compile(r"failed to malloc npu memory, ?size: ?(\d{1,18})")
_MAGIC: Final = re.compile(r"invalid rknn llm model magic|invalid magic characters|model version is too old|target_platform does not match")
_LOAD_REFUSED: Final = re.compile(r"failed to load model|load model file error")
_TOOLKIT: Final = re.compile(r"rkllm-toolkit version: ?([\w.+-]{1,40})")
_TARGET: Final = re.compile(r"target_platform: ?(\w{1,20})")
_RUNTIME: Final = re.compile(r"rkllm-runtime version: ?([\w.+-]{1,40})")
_DRIVER: Final = re.compile(r"rknpu driver version: ?v?(\d{1,4}\.\d{1,4}\.\d{1,4})")
_RUN_ENDED: Final = re.compile(r"request [^\n]{1,200} ran \d")  # what the worker itself says after each run
_MATMUL: Final = re.compile(r"matmul\(([\w ]{1,40})\) run failed")
_TOO_LOW: Final = re.compile(r"driver version[^\n]{0,80} is too low(?:[^\n]{0,60}upgrade to ([\d.]{1,20}))?")

# ---- What the kernel says ------------------------------------------------------------------------------------------------------

_OOM_KILLED: Final = re.compile(r"[Oo]ut of memory: Killed process (\d{1,10}) \(([^)\n]{0,64})\)(?:[^\n]{0,200}?anon-rss:(\d{1,15})kB)?")
_WAIT_JOB: Final = re.compile(r"RKNPU[^\n]{0,80}failed to wait job[^\n]{0,120}?ret = (-?\d{1,6})")
_TIMEOUT: Final = re.compile(r"RKNPU[^\n]{0,80}(?:job timeout|soft reset, num)")
_SOFT_RESET: Final = re.compile(r"soft reset, num: ?(\d{1,9})")
_BYPASS: Final = re.compile(r"bypass soft reset")
_DOMAIN_TIMEOUT: Final = re.compile(r"switch iommu domain time ?out[^\n]{0,80}?id: ?(\d{1,3})")
_DOMAINS: Final = re.compile(r"job iommu domain id: ?(\d{1,3}), dev iommu domain id: ?(\d{1,3}), wait_count: ?(\d{1,9})")
_NO_IOMMU: Final = re.compile(r"rknpu iommu is disabled")
_KERNEL_MEMORY: Final = re.compile(
    r"RKNPU[^\n]{0,80}failed to (?:allocate [^\n]{0,40}(?:buffer|IOVA)|get pages|allocate IOVA|map SG)[^\n]{0,120}"
)
_CORE_MASK: Final = re.compile(r"invalid rknpu core mask(?:[:=] ?(0x[0-9a-fA-F]{1,8}|\d{1,6}))?")
_COMMIT_FAILED: Final = re.compile(r"RKNPU[^\n]{0,80}(job commit failed|invalid irq status[^\n]{0,60})")

# Status of an interrupted wait: the waiting process was killed, the NPU did not hang. Source: ERESTARTSYS, include/linux/errno.h.
_INTERRUPTED: Final = "-512"


# ---- One rule each, in no order ------------------------------------------------------------------------------------------------


def _killed_for_memory(case: _Case) -> Failure | None:
    for found in _OOM_KILLED.finditer(case.kernel):
        pid, rss = int(found[1]), found[3]
        if case.end.pid and pid != case.end.pid:
            continue
        held = f", which held {_bytes(int(rss) * 1024)}" if rss else ""
        return failure(3, f"the kernel killed the worker (process {pid}{held}), because the board ran out of memory")
    if case.end.kernel_killed and case.end.status == -signal.SIGKILL:
        return failure(3, "the kernel killed the worker because the board ran out of memory")
    return None


def _openmp(case: _Case) -> Failure | None:
    found = case.says(_OPENMP)
    return failure(21, f"the runtime library cannot be opened without libomp.so: {case.line_of(found)}") if found else None


def _linked_node(case: _Case) -> Failure | None:
    found = case.says(_LINKED_NODE)
    if not found:
        return None
    kind = found[1] or "hw_version = -1"
    return failure(6, f"the runtime read {kind} from the NPU, as it does when /dev/rknpu is a link to the render node")


def _platform(case: _Case) -> Failure | None:
    found = case.says(_PLATFORM)
    if not found:
        return None
    names = case.says(_PLATFORM_NAMES)
    wanted = f"; it knows {names[1].rstrip('. ')}" if names else ""
    return failure(7, f"the runtime does not recognise the chip ({case.line_of(found)}){wanted}")


def _not_accessible(case: _Case) -> Failure | None:
    found = case.says(_NO_NODE)
    if not found:
        return None
    if case.end.driver_family == "rocket":
        return mainline_driver("rocket")
    line = case.line_of(found)
    if case.says(_NOT_PERMITTED):
        groups = "on the board: usermod -aG render,video rkfleet && systemctl restart rkfleet-agent"
        return failure(4, f"the worker may not open the NPU's node: {line}", groups)
    return failure(4, f"the worker found no node of an NPU driver: {line}")


def _open_files(case: _Case) -> Failure | None:
    found = case.says(_OPEN_FILES)
    if not found:
        return None
    handle = case.says(_HANDLE)
    at = f" at buffer {handle[1]}" if handle else ""
    return failure(20, f"the worker has too many open files{at} (errno 24); this runtime opens one for each buffer")


def _context_limit(case: _Case) -> Failure | None:
    found = case.says(_CONTEXT_LIMIT)
    if not found:
        return None
    why = f"contextTokens {found[1]} is more than the {found[2]} that the model file was converted for"
    return failure(11, why, f"set spec.template.serving.contextTokens to {found[2]} or less")


def _prompt(case: _Case) -> Failure | None:
    found = case.says(_PROMPT)
    if not found or (case.end.loaded and case.end.status in _FAULTS):  # a worker outlives such a request; a later fault is another matter
        return None
    raise_it = f"send a shorter prompt, or raise spec.template.serving.contextTokens above {found[1]}"
    return failure(12, f"a prompt of {found[1]} tokens does not fit into the context of {found[2]}", raise_it)


def _few_cpus(case: _Case) -> Failure | None:
    if not case.says(_FEW_CPUS):
        return None
    cpus, cores = case.says(_ENABLED_CPUS), case.says(_CORES)
    have = f"{cpus[1]} CPUs" if cpus else "fewer CPUs"
    need = f"the {cores[1]} NPU cores" if cores else "NPU cores"
    return failure(13, f"the runtime got {have}, and needs at least one for each of {need} of the model")


def _adapter(case: _Case) -> Failure | None:
    found = case.says(_LORA)
    if found is None:
        refused = case.says(_ADAPTER)
        return failure(24, f"the library refused an adapter: {refused[0]}") if refused else None
    name = _ADAPTER_NAME.search(case.line_of(found))
    return failure(24, f"the library refused adapter {name[0] if name else 'of the model'} (rkllm_load_lora returned {found[1]})")


def _false_success(case: _Case) -> Failure | None:
    if not case.says(_ASSERT):
        return None
    line = case.says(_ERROR_LINE)
    cause = f"; while loading it said: {line[0].strip()}" if line else ""
    return failure(9, f"the runtime reported a load that had failed as a success and ended in the first run{cause}")


def _hang(case: _Case) -> Failure | None:
    waits = [found for found in _WAIT_JOB.finditer(case.kernel) if found[1] != _INTERRUPTED]
    timeout = case.kernel_says(_TIMEOUT)
    if not waits and not timeout:
        return None
    resets = len(_SOFT_RESET.findall(case.kernel))
    times = f"the driver reset it {resets} time{'s' if resets != 1 else ''}" if resets else "the driver did not reset it"
    if case.kernel_says(_BYPASS):
        on = "on the board: echo 0 > /sys/module/rknpu/parameters/bypass_soft_reset"
        return failure(15, f"the NPU hung, and its automatic reset is off, so it stays so ({times})", on)
    return failure(15, f"the NPU hung and a job timed out; {times}")


def _contention(case: _Case) -> Failure | None:
    if found := case.says(_SUBMIT):
        op = f" (operation {found[1]})" if found[1] else ""
        return failure(14, f"the NPU took no job{op}, as it does when several programs use it at once")
    if found := case.kernel_says(_DOMAIN_TIMEOUT):
        return failure(14, f"IOMMU domain {found[1]} of the NPU could not be switched to, because another program's job held its own")
    return None


def _waiting_for_another(case: _Case) -> Failure | None:
    for found in _DOMAINS.finditer(case.kernel):
        if found[1] != found[2]:
            why = f"a job of IOMMU domain {found[1]} waited {found[3]} times while domain {found[2]} had the NPU"
            return failure(14, why)
    return None


def _memory(case: _Case) -> Failure | None:
    found = case.says(_ERRNO_12)
    if not found:
        return None
    return failure(3, f"the board has no memory left for {_wanted(case)} (errno 12)")


def _npu_memory(case: _Case) -> Failure | None:
    found, kernel = case.says(_ERRNO_14), case.kernel_says(_KERNEL_MEMORY)
    if case.kernel_says(_NO_IOMMU) and (found or kernel):
        why = f"the NPU's driver runs without IOMMU, and its contiguous memory is too small for {_wanted(case)}"
        return failure(2, why, "boot a kernel whose device tree enables the NPU's IOMMU, then on the board: dmesg | grep iommu")
    if not found and not kernel:
        return None
    if case.end.status < 0 and not case.end.loaded:
        return failure(17, f"the worker crashed with {_signal(case.end.status)} when it found no NPU memory for {_wanted(case)}")
    driver = case.says(_DRIVER)
    old = driver_too_old(driver[1]) if driver else None
    if old is not None and driver:
        return failure(2, f"{_wanted(case)} does not fit into the NPU memory that driver {driver[1]} can give", old.remedy)
    where = "" if found or not kernel else f": {case.line_of(kernel)}"
    return failure(2, f"{_wanted(case)} does not fit into what is free in its IOMMU domain of about 4 GB{where}")


def _crash_beside_others(case: _Case) -> Failure | None:
    crashed = case.end.status in _FAULTS and not case.end.loaded
    if not crashed or not case.end.others:
        return None
    beside = f"{case.end.others} other worker{'s' if case.end.others != 1 else ''}"
    why = f"it was loading beside {beside}, and runtimes may crash when NPU memory ends"
    return failure(17, why, guess=True)


def _file(case: _Case) -> Failure | None:
    if found := case.kernel_says(_CORE_MASK):
        mask = f" (core mask {found[1]})" if found[1] else ""
        return failure(8, f"the model file uses more NPU cores than the chip has{mask}")
    found = case.says(_MAGIC) or case.says(_LOAD_REFUSED)
    if not found:
        return None
    toolkit, target, runtime = case.says(_TOOLKIT), case.says(_TARGET), case.says(_RUNTIME)
    facts = [f"made by toolkit {toolkit[1]}" if toolkit else "", f"for {target[1]}" if target else ""]
    made = " ".join(fact for fact in facts if fact)
    reader = f"runtime {runtime[1]}" if runtime else "the runtime"
    return failure(8, f"{reader} refused the model file{f', {made}' if made else ''}: {case.line_of(found)}")


def _matmul(case: _Case) -> Failure | None:
    found = case.says(_MATMUL)
    if not found:
        return None
    driver = case.says(_DRIVER)
    version = f"NPU driver {driver[1]}" if driver else "an old NPU driver"
    return failure(1, f"the NPU refused {found[1]} multiplications, as with {version}; answers would be garbage")


def _driver_warning(case: _Case) -> Failure | None:
    found = case.says(_TOO_LOW)
    if not found:
        return None
    driver = case.says(_DRIVER)
    have = f"NPU driver {driver[1]}" if driver else "the NPU driver"
    floor = f"; the runtime asks for {found[1].rstrip('.')} at least" if found[1] else ""
    return failure(1, f"{have} is too old for this runtime{floor}")


def _async(case: _Case) -> Failure | None:
    runtime = case.says(_RUNTIME)
    return run_lost(runtime[1]) if case.end.hung and runtime else None


def _job_refused(case: _Case) -> Failure | None:
    found = case.kernel_says(_COMMIT_FAILED)
    return failure(15, f"the NPU did not take or finish a job: {found[1].strip()}") if found else None


def _abi(case: _Case) -> Failure | None:
    if case.end.status not in _FAULTS or not case.end.loaded or case.says(_RUN_ENDED):
        return None
    runtime = case.says(_RUNTIME)
    library = f"runtime {runtime[1]}" if runtime else "the runtime"
    why = f"{library} loaded without errors and ended no run, as a library does that has another binary interface than it is called with"
    return failure(10, why, guess=True)


# The order is the rule of "most specific wins"; the module's docstring says why it is this one.
_ORDER: Final[tuple[Callable[[_Case], Failure | None], ...]] = (
    _killed_for_memory,
    _openmp, _linked_node, _platform, _not_accessible,
    _open_files, _context_limit, _prompt, _few_cpus, _adapter,
    _false_success, _contention, _hang,
    _memory, _npu_memory, _matmul, _file,
    _crash_beside_others, _job_refused, _driver_warning, _waiting_for_another, _async, _abi,
)  # fmt: skip

_KILLS: Final = frozenset({-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP})

# Signals of a fault in native code, as against a kill.
_FAULTS: Final = frozenset({-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT, -signal.SIGILL, -signal.SIGFPE})


def _wanted(case: _Case) -> str:
    size = case.says(_MALLOC_SIZE)
    return f"a buffer of {_bytes(int(size[1]))}" if size else "the model"


def _bytes(count: int) -> str:
    """Return a size as people read it, with the exact bytes where they are few."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def _signal(status: int) -> str:
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
