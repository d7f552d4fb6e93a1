"""`rkfleet toolkit inspect` shows what the heads of a model say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.tiny_llama import write_tiny_llama


def inspect(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "toolkit", "inspect", *words], capture_output=True, text=True, timeout=60, check=False)


def test_a_model_is_shown_as_a_table_and_as_json(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "tiny")
    table = inspect(str(tmp_path / "tiny"), "--tensors")
    assert table.returncode == 0, table.stderr
    assert "family       llama" in table.stdout
    facts = json.loads(inspect(str(tmp_path / "tiny"), "--tensors", "-o", "json").stdout)
    assert facts["parameters"] == sum(sums["parameters"] for sums in facts["types"].values())
    assert facts["tokenizer"] == "gpt2"
    assert all(tensor["name"] in table.stdout for tensor in facts["tensors"])
    refused = inspect(str(tmp_path / "tiny"), "-o", "xml")
    assert refused.returncode == 1
    assert "known are table, json" in refused.stderr
