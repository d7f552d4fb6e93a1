"""The committed CRD YAML."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.api import crds, rules
from controller.api.admission import Admission
from rkfleet.kinds import KINDS
from rkfleet.kinds.base import Object, Registry

FOLDER = Path(__file__).parents[2] / "manifests" / "crds"


def test_committed_definitions_equal_the_kinds() -> None:
    """If this fails: `make crds`, and read the difference as your users will."""
    committed = {file.name: file.read_text(encoding="utf-8") for file in FOLDER.glob("*.yaml")}
    assert committed == dict(crds.render(KINDS))


def test_a_definition_says_scope_names_columns_and_subresources() -> None:
    definition = yaml.safe_load(crds.render(KINDS)["rkfleet.dev_modeldeployments.yaml"])
    version = definition["spec"]["versions"][0]
    assert definition["metadata"]["name"] == "modeldeployments.rkfleet.dev"
    assert definition["spec"]["scope"] == "Namespaced"
    assert definition["spec"]["names"]["shortNames"] == ["mdep"]
    assert version["subresources"]["scale"]["specReplicasPath"] == ".spec.replicas"
    assert [column["name"] for column in version["additionalPrinterColumns"]][-1] == "Age"
    assert version["schema"]["openAPIV3Schema"]["properties"]["metadata"]["properties"]["name"]["maxLength"] == 40


def test_writing_removes_definitions_of_kinds_that_are_gone(tmp_path: Path) -> None:
    (tmp_path / "rkfleet.dev_gones.yaml").write_text("kind: Gone\n")
    (tmp_path / "README.md").write_text("kept\n")
    assert crds.main([str(tmp_path)]) == 0
    assert {file.name for file in tmp_path.iterdir()} == {"README.md", *crds.render(KINDS)}


def test_the_command_wants_one_folder() -> None:
    assert crds.main([]) == 2


def _rule_texts(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (one["rule"] for one in node.get("x-kubernetes-validations", ()))
    for below in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _rule_texts(below)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.resource.built_in])
def test_admission_compiles_the_rules_of_the_committed_definition(kind: type[Object], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a real kube-apiserver runs from the CRD is run here by the same text: none left out, none of our own."""
    file = FOLDER / f"{kind.resource.group}_{kind.resource.plural}.yaml"
    committed = sorted(_rule_texts(yaml.safe_load(file.read_text(encoding="utf-8"))))
    compiled: list[str] = []
    compile_rule = rules.cel.compile

    def noting(text: str) -> Any:
        compiled.append(text)
        return compile_rule(text)

    monkeypatch.setattr(rules.cel, "compile", noting)
    Admission(Registry((kind,)))
    assert sorted(compiled) == committed
