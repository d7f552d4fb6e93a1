"""Small real disks for a fleet: a tmpfs in some of its directories, seen by the fleet only, and a way to give each more room.

The fleet runs in user and mount namespaces of its own, so this needs no rights on the machine and leaves nothing behind. From outside,
its files are below `/proc/<pid of up>/root`.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.up import Up


class SmallDisks:
    """One tmpfs per directory below a data directory; sizes as mount(8) takes them, for example 150m."""

    def __init__(self, data_dir: Path, sizes: dict[str, str]) -> None:
        self._data_dir = data_dir
        for folder in sizes:
            (data_dir / folder).mkdir(parents=True)
        mounts = [f"mount -t tmpfs -o mode=700,size={size} tmpfs {shlex.quote(str(data_dir / name))}" for name, size in sizes.items()]
        self.before = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", " && ".join([*mounts, 'exec "$@"']), "sh")
        possible = subprocess.run([*self.before, "true"], capture_output=True, text=True, check=False)
        if possible.returncode:
            assert not os.environ.get("CI"), f"CI cannot mount: {possible.stderr}"
            pytest.skip(f"this machine does not let users mount: {possible.stderr.strip()}")

    def inside(self, fleet: Up, folder: str) -> Path:
        """The folder as the fleet sees it."""
        return Path(f"/proc/{fleet.process.pid}/root{self._data_dir / folder}")

    def resize(self, fleet: Up, folder: str, size: str) -> None:
        enter = ("nsenter", "--target", str(fleet.process.pid), "--user", "--mount", "--preserve-credentials")
        subprocess.run([*enter, "mount", "-o", f"remount,size={size}", str(self._data_dir / folder)], check=True)
