"""Where the vendor's runtime library lies, and the OpenMP library that it loads.

In: the file system root and where the operator says that the runtime is. Out: `Libraries`. Called by `telemetry.py` for the doctor. The
runtime's README (airockchip/rknn-llm, from release 1.2.0) says to put libomp.so beside it where the loader finds none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agent.board.snapshot import Libraries

__all__ = ["RKLLM_NAME", "observe_libraries"]

RKLLM_NAME: Final = "librkllmrt.so"
# Where the loader looks on Debian, Ubuntu and Buildroot images of boards, and where people put what they copy by hand.
_DIRECTORIES: Final = ("usr/lib", "usr/lib64", "usr/lib/aarch64-linux-gnu", "usr/local/lib", "lib", "lib/aarch64-linux-gnu")
# Where rkfleet has several versions, as `agent/workers/libraries.py` looks for them.
_SIDE_BY_SIDE: Final = "opt/rkfleet/runtimes"
_OPENMP: Final = ("libomp.so", "libomp.so.5")


def observe_libraries(root: Path, runtime_library: Path | None = None) -> Libraries:
    """Look where the loader would; a runtime that is named is looked for nowhere else."""
    places = [root / directory for directory in _DIRECTORIES]
    beside_each_other = sorted((root / _SIDE_BY_SIDE).glob(f"*/{RKLLM_NAME}"))
    usual = [*(place / RKLLM_NAME for place in places), *beside_each_other]
    candidates = [runtime_library] if runtime_library is not None else usual
    rkllm = next((one for one in candidates if one.is_file()), None)
    beside = [rkllm.parent] if rkllm is not None else []
    llvm = sorted((root / "usr/lib").glob("llvm-*/lib"))
    openmp = next((place / name for place in (*beside, *places, *llvm) for name in _OPENMP if (place / name).exists()), None)
    return Libraries(rkllm=_shown(root, rkllm), openmp=_shown(root, openmp))


def _shown(root: Path, found: Path | None) -> str:
    if found is None:
        return ""
    return f"/{found.relative_to(root)}" if found.is_relative_to(root) else str(found)
