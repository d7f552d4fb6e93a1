"""A manifest means to rkfleet what it means to kubectl."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from msgspec import Meta

from rkfleet import manifest
from rkfleet.kinds.base import Object, Registry, Resource
from rkfleet.manifest import Source
from tests.support.kubectl import kubectl_binary

SCALARS = [
    "y", "Y", "n", "N", "yes", "No", "on", "OFF", "TRUE", "truE", "~", "null", "Null", "NULL", "nul",
    "0", "-0", "+5", "017", "0o17", "+017", "0x1F", "-0x10", "0b11", "1_000", "0_7", "08", "0x", "0o", "1_a", "_1", "9007199254740993",
    "5.", "3.0", ".5", "+.5", "-.5", "08.5", "1_0.5", "1e3", "1.5e-3", "1e", "1.2.3", "v1.2",
    "12:30", "2026-11-23", "2026-11-23T08:00:00Z", "=", "'12'", '"x"', "!!str 5", "!!int 5",
]  # fmt: skip


class Anything(Object, frozen=True, kw_only=True):
    """Keeps whatever is in its spec."""

    resource: ClassVar[Resource] = Resource(kind="Anything", plural="anythings", singular="anything", group="test.rkfleet.dev")
    spec: Annotated[dict[str, Any], Meta(description="Anything.")] = {}


@pytest.mark.kubectl
def test_scalars_are_read_as_kubectl_reads_them(tmp_path: Path) -> None:
    text = "apiVersion: test.rkfleet.dev/v1alpha1\nkind: Anything\nmetadata: {name: x}\nspec:\n  values:\n"
    file = tmp_path / "anything.yaml"
    file.write_text(text + "".join(f"  - {scalar}\n" for scalar in SCALARS))
    environment = {**os.environ, "HOME": str(tmp_path), "KUBECONFIG": os.devnull}
    command = [kubectl_binary(), "annotate", "--local", "-f", str(file), "a=b", "-o=json"]
    ran = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=20)
    expected = json.loads(ran.stdout)["spec"]["values"]
    (document,) = manifest.load([Source(str(file), file.read_bytes())], Registry((Anything,)))
    read = document.obj["spec"]["values"]
    assert [*zip(SCALARS, map(json.dumps, expected), strict=True)] == [*zip(SCALARS, map(json.dumps, read), strict=True)]
