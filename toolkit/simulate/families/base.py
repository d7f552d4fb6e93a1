"""The seam of families.

A family knows three things: how a Hugging Face `config.json` becomes `Hyperparameters`, how its tensors become tensors under GGUF names and
in GGUF layout, and what one block computes. `registry.py` finds a family by either name. `Network` (toolkit/simulate/network.py) does
the rest and hands a family one `Step` for each block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from toolkit.checkpoint.base import Array
from toolkit.simulate.cache import KvCache
from toolkit.simulate.hyperparameters import Hyperparameters

if TYPE_CHECKING:
    from toolkit.simulate.network import Network

__all__ = ["Family", "Origin", "Step"]


class Origin(msgspec.Struct, frozen=True):
    """Where a tensor of the house's form comes from: tensors of the checkpoint, and what is done with them.

    Attributes:
        sources: Their names in the checkpoint; none for a tensor that follows from config.json alone.
        shape: Of the result.
        make: Gets the sources as float32 in their order; None leaves a single source as it is.
    """

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    make: Callable[[Sequence[Array]], Array] | None = None


class Step(msgspec.Struct, frozen=True):
    """What a block needs besides its input: which layer it is, the cache, and the new tokens' rotary tables.

    Attributes:
        table: Cosines and sines for this layer.
    """

    layer: int
    cache: KvCache
    table: tuple[Array, Array]


class Family(Protocol):
    """One architecture, without state."""

    @property
    def architecture(self) -> str:
        """`general.architecture` of its GGUF files."""

    @property
    def hugging_face(self) -> tuple[str, ...]:
        """Names that its checkpoints have in `architectures` of config.json."""

    def from_config(self, config: Mapping[str, Any]) -> Hyperparameters:
        """Read a config.json.

        Raises:
            Invalid: A field is missing, or a value is one that this family cannot compute; the message names both.
        """

    def from_gguf(self, general: Hyperparameters, metadata: Mapping[str, Any]) -> Hyperparameters:
        """Add to what every GGUF file says what is this family's own: layout of rotary pairs, scales, windows."""

    def to_gguf(self, hyperparameters: Hyperparameters) -> dict[str, Any]:
        """Return the metadata keys that are this family's own, for a GGUF file."""

    def origins(self, hyperparameters: Hyperparameters, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Origin]:
        """Return, for a Hugging Face checkpoint with these tensors, every tensor of the house's form and where it comes from."""

    def block(self, network: Network, x: Array, step: Step) -> Array:
        """Return what one block makes of (tokens, hidden)."""

    def finish(self, network: Network, x: Array) -> Array:
        """Return the last norm of (tokens, hidden), as the output layer takes it."""
