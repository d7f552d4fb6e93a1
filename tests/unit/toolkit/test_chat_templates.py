"""Chat templates render as in transformers, and one that means harm is stopped."""

from __future__ import annotations

import json
import resource
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from rkfleet.clock import SystemClock
from rkfleet.errors import Invalid, NotFound
from toolkit.tokens import template as module
from toolkit.tokens.template import Template, template_from_directory, template_from_metadata

DATA = Path(__file__).parents[2] / "data" / "toolkit" / "chat_templates.json"
HELLO = [{"role": "user", "content": "hello"}]


@cache
def oracle() -> dict[str, Any]:
    return json.loads(DATA.read_text())


class Ticking(SystemClock):
    """A second passes whenever somebody looks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return datetime(2026, 2, 3, tzinfo=UTC)

    def monotonic(self) -> float:
        self.seconds += 0.001
        return self.seconds


@pytest.mark.parametrize("name", ["chatml", "headers", "turns", "thinking", "marked"])
def test_a_template_renders_as_in_transformers(name: str) -> None:
    template = Template(oracle()["templates"][name], SystemClock(), tokens=oracle()["tokens"])
    for case in oracle()["cases"]:
        if case["template"] != name:
            continue
        asked = {"tools": case.get("tools", ()), "thinking": case.get("thinking"), "open_answer": case.get("open", True)}
        if "error" in case:
            with pytest.raises(Invalid, match=case["error"].split("/")[0]):
                template.render(case["messages"], **asked)
        else:
            assert template.render(case["messages"], **asked) == case["text"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "not done after 5 s"),
        ("{{ 'a' * 10 ** 9 }}", "more than 16777216 characters"),
        ("{{ 2 ** 1000 }}", "an exponent is 1000, at most 64"),
        ("{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}", "more than 4096 bits"),
        ("{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}", "more than 16777216"),
        ("{{ 'x'.center(10 ** 9) }}", "attribute 'center' of 'str' object is unsafe"),
        ("{{ '{:1000000000}'.format(1) }}", "attribute 'format' of 'str' object is unsafe"),
        ("{{ '%1000000000d' % 1 }}", "has a width"),
        ("{{ 'x' | center(10 ** 9) }}", "No filter named 'center'"),
        ("{{ messages | tojson(indent=100000000) }}", "indent by 100000000"),
        ("{{ ('a' * 10000).replace('', 'b' * 100000) }}", "more than 16777216"),
        ("{{ ().__class__.__bases__ }}", "attribute '__class__' of 'tuple' object is unsafe"),
        ("{{ messages.append(1) }}", "is unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion"),
        ("{{ range(10 ** 9) | list }}", "Range too big"),
        ("{{" + "[" * 3000 + "]" * 3000 + "}}", "nested too deeply"),
        ("x" * ((1 << 20) + 1), "more than 1048576 bytes"),
        ("{% for %}", "line 1"),
    ],
)
def test_a_template_that_means_harm_is_stopped(source: str, words: str) -> None:
    with pytest.raises(Invalid, match=words.replace("(", "\\(")):
        Template(source, Ticking()).render(HELLO)


def test_a_template_that_doubles_itself_stops_before_memory_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENDER_BYTES_MAX", 32 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = "{% set n = namespace(x='aaaaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"
    with pytest.raises(Invalid, match="it takes more than 32 MiB"):
        Template(source, SystemClock()).render(HELLO)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_the_date_is_the_clocks() -> None:
    assert Template("{{ strftime_now('%d %b %Y') }}", Ticking()).render(HELLO) == "03 Feb 2026"


def test_templates_are_found_where_models_keep_them(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="has no chat template"):
        template_from_directory(tmp_path, SystemClock())
    named = [{"name": "default", "template": "D{{ bos_token }}"}, {"name": "tool_use", "template": "T"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named, "bos_token": "<s>"}))
    assert template_from_directory(tmp_path, SystemClock()).render(HELLO) == "D<s>"
    assert template_from_directory(tmp_path, SystemClock(), name="tool_use").render(HELLO) == "T"
    with pytest.raises(NotFound, match="has no chat template 'rag'; it has default, tool_use"):
        template_from_directory(tmp_path, SystemClock(), name="rag")
    with pytest.raises(NotFound, match="cannot be called"):
        template_from_directory(tmp_path, SystemClock(), name="../x")
    (tmp_path / "chat_template.jinja").write_text("J{{ messages[0].content }}")
    assert template_from_directory(tmp_path, SystemClock()).render(HELLO) == "Jhello"


def test_a_gguf_files_template_knows_its_tokens() -> None:
    metadata = {"tokenizer.chat_template": "{{ eos_token }}!", "tokenizer.ggml.tokens": ["<s>", "</s>"], "tokenizer.ggml.eos_token_id": 1}
    assert template_from_metadata(metadata, SystemClock()).render(HELLO) == "</s>!"
    with pytest.raises(NotFound, match=r"no key tokenizer.chat_template"):
        template_from_metadata({}, SystemClock())
