"""From a path to a model in the house's form: `open_model`.

In: a GGUF file, or a directory with config.json and safetensors or PyTorch files. Out: a `ModelSource`: hyperparameters, tensors under
GGUF names, the family, and for GGUF the metadata. Nothing is read but heads until a tensor is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from rkfleet.errors import Invalid, NotFound
from toolkit.checkpoint.base import Array, TensorInfo
from toolkit.checkpoint.gguf import GgufCheckpoint
from toolkit.checkpoint.quantized import METADATA, QuantizedCheckpoint
from toolkit.simulate.families.base import Family
from toolkit.simulate.families.registry import family_of
from toolkit.simulate.hyperparameters import Hyperparameters, from_gguf
from toolkit.simulate.network import EMBEDDING

__all__ = ["ModelSource", "open_model"]


class ModelSource(Protocol):
    """A model that is not loaded yet."""

    @property
    def path(self) -> Path:
        """File or directory."""

    @property
    def family(self) -> Family:
        """Its family."""

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Its sizes."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Metadata of a GGUF file, or what it would be."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by their GGUF names."""

    def read(self, name: str) -> Array:
        """Return one tensor as float32."""


class GgufSource:
    """A GGUF file, or a directory of our own quantized form: both are in the house's form already."""

    def __init__(self, checkpoint: GgufCheckpoint | QuantizedCheckpoint) -> None:
        self.checkpoint: Final = checkpoint
        self.path: Final = checkpoint.path
        self.metadata: Final = checkpoint.metadata
        self.tensors: Final = checkpoint.tensors
        self.family: Final = family_of(str(self.metadata.get("general.architecture", "")))
        if f"{EMBEDDING}.weight" not in self.tensors:
            raise Invalid(f"model file {str(self.path)!r} has no tensor {EMBEDDING}.weight")
        general = from_gguf(self.metadata, vocabulary=self.tensors[f"{EMBEDDING}.weight"].shape[0])
        self.hyperparameters: Final = self.family.from_gguf(general, self.metadata)

    def read(self, name: str) -> Array:
        """Return one tensor as float32."""
        return self.checkpoint.read(name)


def open_model(path: Path) -> ModelSource:
    """Open a model.

    Raises:
        NotFound: There is nothing at the path.
        Invalid: It is no model, or of a family that is unknown.
    """
    if not path.exists():
        raise NotFound(f"model {str(path)!r} does not exist")
    if (path / METADATA).is_file():
        return GgufSource(QuantizedCheckpoint(path))
    return GgufSource(GgufCheckpoint(path))
