"""`rkfleet bench table`, and the words that `rkfleet model push` refuses before it asks anybody."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from rkfleet.cli.main import app
from rkfleet.errors import NotFound


def run(*words: str) -> tuple[int, str]:
    ended = CliRunner().invoke(app, words)
    if isinstance(ended.exception, NotFound):
        raise ended.exception
    return ended.exit_code, ended.output


def test_each_protocol_is_a_table_of_its_own_with_its_conditions() -> None:
    """Whose figures they are, how they were measured and where they stand comes before them."""
    status, said = run("bench", "table", "--model", "TinyLLAMA-1.1B", "--soc", "rk3588")
    assert status == 0
    first, second = said.split("\n\n")
    for block, release, prompt, new, rate in ((first, "1.1.0", 64, 256, "24.21"), (second, "1.3.0", 128, 64, "24.43")):
        head, columns, *rows = block.strip().splitlines()
        assert head.startswith(f"RKLLM {release}: vendor's figures, measured on its boards with CPU and NPU at their highest clocks")
        assert f"prompt of {prompt} tokens, {new} new tokens. Source: airockchip/rknn-llm" in head
        assert columns.split() == ["MODEL", "DTYPE", "SOC", "TTFT", "TOKENS/S", "MEMORY"]
        assert any(rate in row for row in rows)


def test_programs_get_every_row_with_units_in_the_names() -> None:
    """All 119, each below its protocol."""
    _, said = run("bench", "table", "-o", "json")
    protocols = json.loads(said)["protocols"]
    assert [(one["sdkVersion"], one["promptTokens"], one["newTokens"], len(one["rows"])) for one in protocols] == [
        ("1.1.0", 64, 256, 32), ("1.3.0", 128, 64, 87),
    ]  # fmt: skip
    row = next(one for one in protocols[0]["rows"] if (one["model"], one["dtype"]) == ("Qwen2-1.5B", "w8a8"))
    assert (row["timeToFirstTokenSeconds"], row["tokensPerSecond"], row["maxContextTokens"]) == (0.206, 16.46, 320)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "Qwen2"), "it does not know the model; similar names are"),
        (("--soc", "rk3399"), "chips are rk3562, rk3576, rk3588, rv1126b"),
    ],
)
def test_what_the_table_does_not_have_is_named_with_what_it_has(words: tuple[str, ...], said: str) -> None:
    """A near miss is a typing error more often than not."""
    with pytest.raises(NotFound, match=said):
        run("bench", "table", *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("file", "--simulated", "Qwen2-1.5B"), "makes its own files and variants"),
        (("--name", "x"), "name at least one FILE, or --simulated MODEL"),
        (("file", "--variant", "name=a,soc=any,dtype=f16,runtime=llamacpp"), "is needed: how the Model is called"),
        (("file", "--name", "x"), "1 files and 0 variants; each file needs its own"),
        (("file", "--name", "x", "--sdk", "1.1.0", "--variant", "name=a,soc=any,dtype=f16,runtime=llamacpp"), "goes with --simulated only"),
    ],
)
def test_words_of_a_push_that_do_not_go_together_are_refused(words: tuple[str, ...], said: str) -> None:
    """With the usage status, and before any file is read."""
    status, output = run("model", "push", *words)
    assert status == 2
    assert said in " ".join(output.split())
