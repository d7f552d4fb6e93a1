"""A virtual environment with stand-ins for the vendor's toolkits, whose versions are what a test says."""

from __future__ import annotations

import json
import os
import select
import venv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

PACKAGES = Path(__file__).parent / "vendor_toolkits"
GONE_SECONDS_MAX = 20


def make_vendor_python(directory: Path, **versions: str) -> Path:
    """Make one and return its interpreter; names of versions have `_` for `-`."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(directory)
    packages = next((directory / "lib").glob("python*/site-packages"))
    beside = Path(np.__file__).parents[1]  # numpy is the one library that a simulator needs.
    (packages / "numpy").symlink_to(beside / "numpy")
    for libraries in beside.glob("numpy.libs"):
        (packages / libraries.name).symlink_to(libraries)
    if versions:
        (packages / "vendor.pth").write_text(f"{PACKAGES}\n")
    for name, version in versions.items():
        info = packages / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return directory / "bin/python"


def faults(**stages: str) -> Mapping[str, str]:
    """Return the environment in which stages go wrong."""
    return {"FAKE_VENDOR": json.dumps(stages)}


def wait_until_gone(pid: int) -> None:
    """Wait until a process is gone; one that is gone already is as good."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with open(handle, closefd=True):
        ready, _, _ = select.select([handle], [], [], GONE_SECONDS_MAX)
        assert ready, f"process {pid} is still there after {GONE_SECONDS_MAX} s"
