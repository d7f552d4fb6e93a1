"""Tensors that go from a checkpoint to the house's form as they are, under another name.

In: a family's table of names and the tensors of a checkpoint. Out: an `Origin` for each, or which is missing. Called by `origins` of
families whose names are a table.
"""

from __future__ import annotations

from collections.abc import Mapping

from rkfleet.errors import Invalid
from toolkit.simulate.families.base import Origin

__all__ = ["holds_rows", "renamed"]


def renamed(
    whole: Mapping[str, str], block: Mapping[str, str], *, stem: str, layers: int, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Origin]:
    """Return where tensors come from that only change their names.

    Args:
        whole: Names outside of blocks, ours to theirs, without `.weight`; `output` may be missing, where it is the embeddings.
        block: Names inside of a block.
        stem: What theirs have before a block's number: `transformer.h`.
        layers: Number of blocks.
        shapes: Tensors of the checkpoint. Biases are taken where there are any.

    Raises:
        Invalid: A weight is missing.
    """
    names = dict(whole)
    for layer in range(layers):
        names |= {f"blk.{layer}.{ours}": f"{stem}.{layer}.{theirs}" for ours, theirs in block.items()}
    found = {}
    for ours, theirs in names.items():
        for kind in ("weight", "bias"):
            source = f"{theirs}.{kind}"
            if source in shapes:
                found[f"{ours}.{kind}"] = Origin((source,), shapes[source])
            elif kind == "weight" and ours != "output":
                raise Invalid(
                    f"the checkpoint has no tensor {source}, of {len(names)} that the config.json makes it have; is a file missing?"
                )
    return found


def holds_rows(source: str, rows: int, *, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a checkpoint has a tensor that is taken apart by rows; a bias may be missing, a weight not.

    Raises:
        Invalid: A weight is missing, or the tensor has another number of rows than heads make.
    """
    if source not in shapes:
        if source.endswith(".bias"):
            return False
        raise Invalid(f"the checkpoint has no tensor {source}; is a file missing?")
    if shapes[source][:1] != (rows,):
        raise Invalid(f"tensor {source} has shape {shapes[source]}; the heads of config.json make it {rows} rows")
    return True
