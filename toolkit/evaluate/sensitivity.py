"""Which blocks of a model suffer from quantization: each one quantized alone, and the model held against full precision.

In: a network in full precision, the same as a dtype has it, windows of a text. Out: a `Sensitivity` for each block and the output layer, in
their order. Of the text only the first TOKENS_MAX predicted tokens are used: what is wanted is which block is worse, not by how many
percent. Used by `compare --layers` and `recommend`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from toolkit.evaluate.compare import Reference
from toolkit.evaluate.perplexity import Progress
from toolkit.evaluate.text import Window
from toolkit.simulate.network import OUTPUT, Network

__all__ = ["METHOD", "Sensitivity", "measure_blocks"]

TOKENS_MAX: Final = 256  # A run of the model for each block: 30 blocks of SmolLM2 take ten seconds.
METHOD: Final = "each block quantized alone; divergence of the model's distribution from full precision, in nats"


class Sensitivity(msgspec.Struct, frozen=True):
    """One block: mean divergence of the model (nats) when only this block is quantized."""

    name: str
    divergence: float


def measure_blocks(full: Network, quantized: Network, found: Sequence[Window], progress: Progress | None = None) -> tuple[Sensitivity, ...]:
    """Run the model once for each block."""
    reference = Reference(full, _short(found))
    groups = {f"blk.{layer}": f"blk.{layer}." for layer in range(full.hyperparameters.layers)} | {OUTPUT: OUTPUT}
    measured: list[Sensitivity] = []
    for done, (name, beginning) in enumerate(groups.items(), 1):
        alone = full.with_linears({stem: layer for stem, layer in quantized.linears.items() if stem.startswith(beginning)})
        measured.append(Sensitivity(name, reference.against(alone).divergence))
        if progress is not None:
            progress("blocks", done, len(groups))
    return tuple(measured)


def _short(found: Sequence[Window]) -> tuple[Window, ...]:
    """Return the first windows, cut so that no more than TOKENS_MAX tokens are predicted."""
    first = found[0]
    return (Window(first.tokens[: first.first + TOKENS_MAX], first.first),)
