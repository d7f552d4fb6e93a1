"""A calibration file of a model's own answers, and what it is good for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.tiny_llama import write_tiny_llama
from toolkit.quantize.calibration import read_samples


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "toolkit", *words], capture_output=True, text=True, timeout=60, check=False)


def test_a_models_own_answers_calibrate_it(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "model")
    prompts, data = tmp_path / "prompts.txt", tmp_path / "data.json"
    prompts.write_text("What is water?\nName three birds.\n")
    done = run("calibrate", str(model), "--prompts", str(prompts), "--tokens", "8", "-o", str(data))
    assert (done.returncode, done.stdout) == (0, f"wrote {data} (2 samples)\n"), done.stderr
    samples = json.loads(data.read_text())
    assert ["What is water?" in samples[0]["input"], "Name three birds." in samples[1]["input"]] == [True, True]
    assert len(read_samples(data)[1]) == 2
    words = ("quantize", str(model), "--dtype", "w4a16_g32", "--algorithm", "grq", "--calibration", str(data))
    made = run(*words, "--format", "safetensors", "-o", str(tmp_path / "small"))
    assert made.returncode == 0, made.stderr
    recipe = json.loads((tmp_path / "small/recipe.json").read_text())
    assert recipe["calibration"]["samples"] == 2
    assert run("perplexity", str(tmp_path / "small"), "--tokens", "20").returncode == 0


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("Hello\n")
    done = run("calibrate", str(model), "--prompts", str(tmp_path / "prompts.txt"), "--tokens", "1", "-o", str(tmp_path / "no/data.json"))
    assert done.returncode != 0
    assert "cannot be written: No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr
