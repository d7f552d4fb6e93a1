"""Guides as tests: every ```bash block of a page runs, in a folder that looks like a clone with a fleet running in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.up import Up

ROOT = Path(__file__).resolve().parents[2]
SCRIPT_SECONDS_MAX = 180


def run_guide(page: str, fleet: Up, folder: Path) -> str:
    """Run the blocks of `docs/guides/<page>` one after another as one script that ends at the first failure; return what it printed."""
    if shutil.which("kubectl") is None:
        assert not os.environ.get("CI"), "CI has no kubectl"
        pytest.skip("no kubectl")
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs/guides" / page).read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3, f"{page} has lost its blocks"
    clone = folder / page.removesuffix(".md")
    clone.mkdir()
    for name in ("manifests", ".venv"):
        (clone / name).symlink_to(ROOT / name)
    (clone / ".rkfleet").symlink_to(fleet.data_dir)
    port = fleet.endpoints.gateway.rpartition(":")[2]
    # What a block left in the background ends with the script; the default ports are those of this fleet.
    script = "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + "\n".join(blocks)
    script = script.replace("127.0.0.1:7480", f"127.0.0.1:{port}").replace("https://127.0.0.1:7443", fleet.endpoints.api)
    environment = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(
        ["bash", "-c", script], cwd=clone, env=environment, capture_output=True, text=True, timeout=SCRIPT_SECONDS_MAX, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
