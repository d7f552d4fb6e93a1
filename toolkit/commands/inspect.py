"""`rkfleet toolkit inspect`: what a model file is, without loading it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(source: Annotated[Path, typer.Argument(help="GGUF file, or directory of a Hugging Face model.")]) -> None:
    """Show a model's family, sizes and tensors; only heads of files are read."""
    from toolkit.loading import open_model

    model = open_model(source)
    sizes = model.hyperparameters
    print(f"family      {sizes.architecture}")
    print(f"layers      {sizes.layers}")
    print(f"hidden      {sizes.hidden}")
    print(f"vocabulary  {sizes.vocabulary}")
    print(f"context     {sizes.context}")
    print(f"parameters  {sum(info.elements for info in model.tensors.values())}")
