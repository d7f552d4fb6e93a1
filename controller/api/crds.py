"""Writes the CustomResourceDefinitions of every kind as YAML: `python -m controller.api.crds manifests/crds` (`make crds`).

In: the registry of kinds. Out: one file per kind, named as kubebuilder names them, and no other `.yaml` file in the folder. A test
compares the committed files with `render`, so the CRDs cannot drift from the structs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from rkfleet.kinds import KINDS
from rkfleet.kinds.base import Registry
from rkfleet.schema import crd_of

__all__ = ["main", "render", "write"]

_HEADER = "# Made by `make crds` from the structs in rkfleet/kinds/; change those.\n"
_WIDTH = 140


def render(registry: Registry) -> Mapping[str, str]:
    """Return the file name and text of each CustomResourceDefinition; built-in kinds of Kubernetes have none."""
    return {
        f"{kind.resource.group}_{kind.resource.plural}.yaml": _HEADER + yaml.safe_dump(crd_of(kind), sort_keys=False, width=_WIDTH)
        for kind in registry
        if not kind.resource.built_in
    }


def write(folder: Path, registry: Registry) -> None:
    """Make `folder` hold exactly the rendered files; other files than `.yaml` are left alone."""
    rendered = render(registry)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.yaml"):
        if old.name not in rendered:
            old.unlink()
    for name, text in rendered.items():
        (folder / name).write_text(text, encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Run the command; the one argument is the folder."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m controller.api.crds FOLDER\n")
        return 2
    write(Path(arguments[0]), KINDS)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
