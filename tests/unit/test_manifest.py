"""Manifests: what people write, with lines."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from rkfleet import manifest
from rkfleet.errors import BadRequest, Cause, Invalid, NotFound
from rkfleet.kinds import KINDS
from rkfleet.manifest import DEPTH_MAX, Document, Source

MANIFESTS = Path(__file__).parents[2] / "manifests"
HEAD = "apiVersion: rkfleet.dev/v1alpha1\nkind: ModelDeployment\n"


def load(text: str) -> tuple[Document, ...]:
    return manifest.load([Source("manifests/x.yaml", text.encode())], KINDS)


def problems(text: str) -> list[str]:
    with pytest.raises(Invalid) as refused:
        load(text)
    return refused.value.message.splitlines()


def test_a_problem_names_file_line_field_value_and_limit() -> None:
    text = f"""{HEAD}metadata:
  name: smollm2
spec:
  template:
    model: smollm2-135m
  placement:
    boardSelector:
      matchLabels:
        rkfleet.dev/site: lab
  replicas: "three"
"""
    assert problems(text) == ['manifests/x.yaml:12: spec.replicas: "three": must be an integer 0..1000']


def test_every_problem_of_every_document_is_told_in_the_order_of_lines() -> None:
    text = f"""{HEAD}metadata: {{name: Not_A_Name}}
spec:
  replicas: -1
  replicaz: 3
  strategy:
    maxSurge: 101%
  template:
    serving: {{contextTokens: 8}}
---
apiVersion: v1
kind: Pod
---
apiVersion: rkfleet.dev/v1alpha1
kind: Board
metadata:
  name: b
  namespace: default
spec: {{unschedulable: perhaps}}
"""
    found = problems(text)
    assert [line.split(": ")[:2] for line in found] == [
        ["manifests/x.yaml:3", "metadata.name"],
        ["manifests/x.yaml:5", "spec.replicas"],
        ["manifests/x.yaml:6", "spec.replicaz"],
        ["manifests/x.yaml:8", "spec.strategy.maxSurge"],
        ["manifests/x.yaml:9", "spec.template.model"],
        ["manifests/x.yaml:10", "spec.template.serving.contextTokens"],
        ["manifests/x.yaml:13", "kind"],
        ["manifests/x.yaml:19", "metadata.namespace"],
        ["manifests/x.yaml:20", "spec.unschedulable"],
    ]
    assert found[4].endswith("must be set: name of the Model, in the same namespace")
    assert found[6].startswith("manifests/x.yaml:13: kind: no kind 'Pod' in 'v1'; there are Board (rkfleet.dev/v1alpha1)")


def test_problems_of_all_files_are_told_together() -> None:
    sources = [Source("a.yaml", b"a: ["), Source("b.yaml", f"{HEAD}metadata: {{name: x}}\n".encode())]
    with pytest.raises(Invalid) as refused:
        manifest.load(sources, KINDS)
    assert [line.split(":")[0] for line in refused.value.message.splitlines()] == ["a.yaml", "b.yaml"]
    assert refused.value.causes[1] == Cause("spec", "must be set: the wanted state", "FieldValueRequired")


def test_a_document_keeps_what_was_written_without_defaults() -> None:
    (document,) = load(f"# first\n---\n{HEAD}metadata: {{name: x}}\nspec: {{template: {{model: m}}, replicas: 2}}\n---\n")
    assert document.obj["spec"] == {"template": {"model": "m"}, "replicas": 2}
    assert (document.path, document.line, document.kind.resource.kind) == ("manifests/x.yaml", 3, "ModelDeployment")


def test_a_cause_from_a_server_is_shown_with_its_line() -> None:
    (document,) = load(f"{HEAD}metadata: {{name: x}}\nspec:\n  template:\n    model: m\n")
    assert document.show(Cause("spec.template.model", "no such Model")) == "manifests/x.yaml:6: spec.template.model: no such Model"
    assert document.line_of("spec.strategy.maxSurge") == 4
    assert document.line_of("") == 1


def test_a_duplicate_key_names_both_lines() -> None:
    text = f"{HEAD}metadata: {{name: x}}\nspec:\n  replicas: 1\n  template: {{model: m}}\n  replicas: 2\n"
    assert problems(text) == ["manifests/x.yaml:7: spec.replicas: the same key is already on line 5"]


def test_aliases_are_refused() -> None:
    """A few nested aliases can multiply into gigabytes."""
    text = f"{HEAD}metadata: &m {{name: x}}\nspec: *m\n"
    assert problems(text) == ["manifests/x.yaml:4: spec: *m: aliases are not allowed, write the value out"]


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 5_000 + "x"], ids=["flow lists", "flow maps", "block lists"])
def test_depth_is_refused_before_it_hurts(text: str) -> None:
    (problem,) = problems(text)
    assert problem.endswith(f"is nested deeper than {DEPTH_MAX} levels")


def test_too_many_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "NODES_MAX", 1000)
    (problem,) = problems("[" + "1," * 1000 + "]")
    assert "at most 1000 values" in problem


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: !!python/object:os.system {}", "tag !python/object:os.system is not allowed"),
        ("a: !!binary aGk=", "tag !binary is not allowed"),
        ("a: .inf", "must be a finite number"),
        ("a: 1e999", "must be a finite number"),
        ("? [a]\n: b", "a key must be text"),
        ("a: 'b", "is not YAML: found unexpected end of stream"),
        ("a: \x00", "is not YAML"),
        ("- 1", "a document must be a mapping"),
        ("kind: Model", "apiVersion: must be set"),
    ],
)
def test_what_json_has_no_word_for_is_refused(text: str, why: str) -> None:
    assert any(why in problem for problem in problems(text))


def test_bytes_that_are_not_text_are_refused() -> None:
    with pytest.raises(Invalid, match=r"x.yaml:1: is not YAML"):
        manifest.load([Source("x.yaml", b"a: \xff\xfe\xfa")], KINDS)


@pytest.mark.parametrize("written", ["2026-11-23", "2026-11-23T08:00:00Z", "12:30", "0x", "1_a", "nul", "'12'", "!!str 12"])
def test_text_stays_text(written: str) -> None:
    """Times too: a store that turned them into something else would change what was written."""
    (document,) = load(f"{HEAD}metadata: {{name: x}}\nspec: {{template: {{model: {written}}}}}\n")
    assert document.obj["spec"]["template"]["model"] == written.removeprefix("!!str ").strip("'")


@pytest.mark.parametrize(
    ("written", "value"), [("3", 3), ("+3", 3), ("0x10", 16), ("0o17", 15), ("017", 15), ("0b11", 3), ("1_000", 1000), ("!!int 5", 5)]
)
def test_integers_are_read_as_kubectl_reads_them(written: str, value: int) -> None:
    (document,) = load(f"{HEAD}metadata: {{name: x}}\nspec: {{template: {{model: m}}, replicas: {written}}}\n")
    assert document.obj["spec"]["replicas"] == value


@pytest.mark.parametrize(("written", "value"), [("yes", True), ("on", True), ("True", True), ("n", False), ("OFF", False)])
def test_booleans_are_read_as_kubectl_reads_them(written: str, value: bool) -> None:
    (document,) = load(f"{HEAD}metadata: {{name: x}}\nspec: {{template: {{model: m}}, paused: {written}}}\n")
    assert document.obj["spec"]["paused"] is value


def test_the_items_of_a_list_are_documents_with_their_own_lines() -> None:
    text = """apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Namespace
  metadata: {name: lab}
- apiVersion: v1
  kind: Namespace
  metadata:
    name: Lab
"""
    (problem,) = problems(text)
    assert problem.startswith("manifests/x.yaml:10: metadata.name: 'Lab'")
    (first, _) = load(text.replace("name: Lab", "name: attic"))
    assert (first.obj["metadata"], first.line) == ({"name": "lab"}, 4)


def test_json_is_yaml() -> None:
    (document,) = load('{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "lab"}}')
    assert document.obj["metadata"] == {"name": "lab"}


def test_a_name_must_be_there() -> None:
    """Applying the same file twice must mean the same object, so a name that the server would make does not do."""
    text = f"{HEAD}metadata: {{generateName: x-}}\nspec: {{template: {{model: m}}}}\n"
    assert problems(text) == ["manifests/x.yaml:3: metadata.name: must not be empty"]


def test_files_folders_and_standard_input_are_read(tmp_path: Path) -> None:
    (tmp_path / "b.yml").write_bytes(b"b")
    (tmp_path / "a.yaml").write_bytes(b"a")
    (tmp_path / "notes.txt").write_bytes(b"c")
    read = manifest.read([str(tmp_path), "-"], io.BytesIO(b"d"))
    assert [(Path(source.name).name, source.text) for source in read] == [("a.yaml", b"a"), ("b.yml", b"b"), ("-", b"d")]


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match=r"gone.yaml: no such file"):
        manifest.read([str(tmp_path / "gone.yaml")], io.BytesIO())
    with pytest.raises(NotFound, match="holds no"):
        manifest.read([str(tmp_path)], io.BytesIO())
    monkeypatch.setattr(manifest, "SOURCE_BYTES_MAX", 3)
    with pytest.raises(BadRequest, match="larger than 3 bytes"):
        manifest.read(["-"], io.BytesIO(b"four"))


@pytest.mark.parametrize("file", sorted(MANIFESTS.glob("d*/*.yaml")), ids=lambda file: file.name)
def test_the_sample_manifests_are_valid(file: Path) -> None:
    assert manifest.load(manifest.read([str(file)], io.BytesIO()), KINDS)
