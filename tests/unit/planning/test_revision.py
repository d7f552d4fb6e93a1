"""Names and equality of revisions."""

from __future__ import annotations

import msgspec
import pytest

from controller.planning.revision import canonical_json, find_revision, name_revision, revision_hash
from rkfleet.kinds.deployment import Serving, Template, TemplateMeta
from rkfleet.kinds.model import Requires
from tests.support import planned

# The names that releases gave. A line may be added; a line that has to be changed renames what runs in every fleet.
GOLDEN = [
    ("0.1.0", Template(model="smollm2"), 0, "14ac50cba3"),
    ("0.1.0", Template(model="smollm2"), 1, "c84e708065"),
    ("0.1.0", Template(model="qwen2-1.5b", variants=("rk3588-w8a8", "rk3576-w4a16")), 0, "a8a0f3297b"),
    ("0.1.0", Template(model="qwen2-1.5b", serving=Serving(context_tokens=2048, threads=3, drain_seconds=0)), 0, "2439055436"),
    ("0.1.0", Template(model="qwen2-1.5b", metadata=TemplateMeta(annotations={"b": "2", "a": "ü \u2028 \"x\""})), 0, "7aa56a9e3d"),
]  # fmt: skip


@pytest.mark.parametrize(("release", "template", "collisions", "name"), GOLDEN)
def test_a_template_keeps_the_name_that_a_release_gave_it(release: str, template: Template, collisions: int, name: str) -> None:
    assert revision_hash(template, collisions) == name


def test_defaults_that_are_written_out_change_no_name() -> None:
    written = msgspec.convert({"model": "m", "variants": [], "serving": {"contextTokens": 1024, "maxConcurrent": 1}}, Template)
    assert revision_hash(written) == revision_hash(Template(model="m"))


def test_canonical_json_is_sorted_by_utf16_and_left_unescaped_where_rfc_8785_leaves_it() -> None:
    meta = TemplateMeta(annotations={"\U0001f600": "smile", "\ufb33": "dalet", "b": "1", "a": '"\n'})
    assert canonical_json(meta) == '{"annotations":{"a":"\\"\\n","b":"1","\U0001f600":"smile","\ufb33":"dalet"}}'.encode()


def test_equal_quantities_have_one_spelling() -> None:
    assert canonical_json(Requires(memory="1024Mi")) == canonical_json(Requires(memory="1Gi")) == b'{"memory":"1Gi"}'


def test_a_revision_is_found_by_what_its_template_means_today() -> None:
    chat = planned.deployment()
    stored = planned.revision("chat-1", chat, serving={"contextTokens": 1024})
    assert find_revision([stored], chat.spec.template, "uid-qwen") is stored
    assert find_revision([stored], planned.deployment(template={"serving": {"contextTokens": 2048}}).spec.template, "uid-qwen") is None


def test_a_model_that_was_made_again_needs_a_new_revision_under_another_name() -> None:
    chat = planned.deployment()
    first, count = name_revision([], "chat", chat.spec.template)
    stored = planned.revision(first, chat)
    assert find_revision([stored], chat.spec.template, "uid-of-another-qwen") is None
    second, collisions = name_revision([stored], "chat", chat.spec.template)
    assert (count, collisions) == (0, 1)
    assert second != first
