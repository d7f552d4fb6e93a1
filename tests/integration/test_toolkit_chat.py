"""`rkfleet toolkit chat` with the real sample model: prompts kept in files, lines from a pipe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rkfleet.sample import ensure_sample
from toolkit.commands.chat import LABEL

pytestmark = pytest.mark.model

PLAIN = ("--temperature", "0", "--repeat-penalty", "1", "--max-new-tokens", "12", "--context", "256")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    import asyncio

    return asyncio.run(ensure_sample())


def chat(*arguments: object, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "toolkit", "chat", *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=100, check=False)


def test_an_answer_is_the_same_with_and_without_the_prompts_file(model, tmp_path):
    file = tmp_path / "prompt"
    asked = (model, *PLAIN, "--prompt", "What is the capital of France?", "--output", "json", "--prompt-cache", file)
    first, second = (json.loads(chat(*asked).stdout) for _ in range(2))

    assert "Paris" in first["text"]
    assert first["measured"] == LABEL
    assert (first["text"], first["tokens"]) == (second["text"], second["tokens"])
    assert first["reused_tokens"] == 0
    assert second["reused_tokens"] == second["prompt_tokens"] - 1

    refused = chat(*asked, "--dtype", "w8a8")
    assert refused.returncode == 1
    assert "was made by another model, dtype or adapter" in refused.stderr


def test_lines_of_a_pipe_are_turns_of_one_conversation(model):
    done = chat(model, *PLAIN, "--stats", given="My name is Bob.\n\nWhat is my name?\n")
    assert done.returncode == 0
    assert len(done.stdout.strip().splitlines()) == 2
    figures = done.stderr.strip().splitlines()
    assert len(figures) == 2
    assert all(LABEL in line for line in figures)
    assert "more were there" in figures[1]


def test_what_cannot_be_run_is_one_sentence_before_anything_is_loaded(model):
    done = chat(model, "--prompt", "x", "--top-p", "3")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: top_p is 3.0; take one from 0 to 1\n"
