"""The health script for Argo CD names only what the kinds have."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from rkfleet import conditions
from rkfleet.kinds import GROUP, KINDS
from rkfleet.schema import schema_of

FILE = Path(__file__).parents[2] / "manifests" / "argocd" / "argocd-cm.yaml"


def test_the_health_script_reads_fields_and_conditions_that_exist() -> None:
    customizations = yaml.safe_load(yaml.safe_load(FILE.read_text())["data"]["resource.customizations"])
    assert list(customizations) == [f"{GROUP}/*"]
    script = customizations[f"{GROUP}/*"]["health.lua"]
    types = set(re.findall(r'condition\.type == "(\w+)"', script))
    assert types == {conditions.READY, conditions.PROGRESSING}
    ours = [kind for kind in KINDS if kind.resource.group == GROUP and kind.resource.status]
    assert ours
    for kind in ours:
        status = schema_of(kind)["properties"]["status"]["properties"]
        assert set(re.findall(r"obj\.status\.(\w+)", script)) <= set(status), kind.resource.kind
    assert set(re.findall(r'status = "(\w+)"', script)) == {"Progressing", "Healthy", "Degraded"}
