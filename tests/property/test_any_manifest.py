"""Manifests over arbitrary text."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rkfleet import manifest
from rkfleet.errors import Invalid
from rkfleet.kinds import KINDS, Event
from rkfleet.kinds.base import Registry
from rkfleet.manifest import Source
from rkfleet.validation import format_path

EVENTS = Registry((Event,))
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)
LABELS = st.dictionaries(st.from_regex(r"[a-z]([a-z0-9-]{0,6}[a-z0-9])?", fullmatch=True), TEXT, min_size=1, max_size=5)


def event(annotations: dict[str, str], **fields: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "annotations": annotations}, **fields}


@given(LABELS, TEXT, st.integers(-(2**63), 2**63 - 1), st.sampled_from(["json", "block", "flow"]))
@settings(max_examples=150, deadline=None)
def test_what_was_written_is_read(annotations: dict[str, str], message: str, count: int, style: str) -> None:
    """Whatever writes the YAML, text stays that text and numbers that number; every field has a line."""
    obj = event(annotations, message=message, count=count)
    match style:
        case "json":
            text = json.dumps(obj)
        case "block":
            text = yaml.safe_dump(obj, allow_unicode=True, default_flow_style=False, default_style='"')
        case _:
            text = yaml.safe_dump(obj, default_flow_style=True, default_style="'")
    (document,) = manifest.load([Source("x", text.encode())], EVENTS)
    assert document.obj == obj
    if style == "block":
        lines = text.split("\n")
        for key in annotations:
            assert key in lines[document.line_of(format_path(("metadata", "annotations", key))) - 1]


@given(st.binary(max_size=60) | st.text("[]{}:,-&*!#'\"\n ab1%|>?~.", max_size=40).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_no_text_breaks_the_reader(text: bytes) -> None:
    """It is read or refused, never anything else."""
    with contextlib.suppress(Invalid):
        manifest.load([Source("x", text)], KINDS)
