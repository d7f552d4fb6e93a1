"""Size of an installation on a board: the base and the `agent` extra, from wheels for aarch64 and CPython 3.11 only.

`python -m bench.size`. pip downloads what `requirements/cpu.txt` locks (all of `agent` and the llama.cpp runtime), by its hashes, for glibc
2.28 (Debian 10 and later), on any machine; a package without such a wheel fails the run, because a board has no compiler. Wheels are
unpacked, as `pip install --no-compile` leaves them, and then compiled, as `pip install` does; our own packages are taken from this
repository. The runtime is told beside it: boards with an NPU do without.
"""

from __future__ import annotations

import compileall
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from bench.report import Goal, finish, result
from rkfleet.clock import SystemClock

MEGABYTE: Final = 1e6
TOTAL_MEGABYTES_MAX: Final = 80.0
PLATFORMS: Final = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
REPOSITORY: Final = Path(__file__).parent.parent
OURS: Final = ("rkfleet", "agent", "controller", "gateway", "simulation", "toolkit")
CPU_RUNTIME: Final = "xllamacpp"


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="rkfleet-size-") as scratch:
        root = Path(scratch)
        download("cpu", root / "wheels")  # all of `agent` and the runtime
        names = {path.name.partition("-")[0]: install(path, root) for path in sorted((root / "wheels").glob("*.whl"))}
        for package in OURS:
            shutil.copytree(REPOSITORY / package, root / "site/rkfleet" / package, ignore=shutil.ignore_patterns("__pycache__"))
        sizes = {name: size(path) for name, path in {**names, "rkfleet": root / "site/rkfleet"}.items()}
    runtime = sizes.pop(CPU_RUNTIME)
    for name, (files, code) in sorted(sizes.items(), key=lambda one: -sum(one[1])):
        print(f"{name:24} {(files + code) / MEGABYTE:8.2f} MB, of which byte code {code / MEGABYTE:.2f}")
    files, code = (sum(one[index] for one in sizes.values()) / MEGABYTE for index in (0, 1))
    results = [
        result("agent_installed", "MB", [files], goal=Goal("value", "<=", TOTAL_MEGABYTES_MAX)),
        result("agent_installed_with_byte_code", "MB", [files + code]),
        result("agent_packages", "packages", [float(len(sizes))]),
        result("cpu_runtime_installed", "MB", [sum(runtime) / MEGABYTE]),
    ]
    return finish("size", results, SystemClock())


def download(lock: str, directory: Path) -> None:
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:",
        "--require-hashes", "--implementation", "cp", "--python-version", "3.11", "--dest", str(directory),
        "--requirement", str(REPOSITORY / f"requirements/{lock}.txt"),
        *(word for platform in PLATFORMS for word in ("--platform", platform)),
    ]  # fmt: skip
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"pip found no wheel for aarch64 of something in requirements/{lock}.txt: {done.stderr.strip().rpartition(chr(10))[2]}")


def install(wheel: Path, root: Path) -> Path:
    """Unpack a wheel into a directory of its own."""
    target = root / "site" / wheel.name.partition("-")[0]
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def size(directory: Path) -> tuple[int, int]:
    """Return bytes of files, and of the byte code that is made from them here."""
    before = total(directory)
    compileall.compile_dir(directory, quiet=2)
    return before, total(directory) - before


def total(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
