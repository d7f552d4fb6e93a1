"""The seam of weights: a file, or several, as named tensors that are read one at a time.

In: nothing. Out: `TensorInfo` and the `Checkpoint` protocol, which `gguf`, `safetensors` and `pytorch` beside this file meet and which
`toolkit.simulate.families` turns into the house's form. One tensor at a time, so that memory is bounded by the largest tensor and not by
the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Checkpoint", "TensorInfo"]

Array = NDArray[np.float32]


class TensorInfo(msgspec.Struct, frozen=True):
    """What the head of a file says about a tensor.

    Attributes:
        shape: Outermost dimension first, as numpy has it: a linear layer is (out_features, in_features).
        dtype: Type in the file, in the file's own words: F32, BF16, Q4_0.
        size_bytes: Bytes in the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int

    @property
    def elements(self) -> int:
        """Numbers in the tensor."""
        return math.prod(self.shape)


class Checkpoint(Protocol):
    """Named tensors of a model, and what the files say beside them."""

    @property
    def path(self) -> Path:
        """File or directory."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Key-value pairs of a GGUF file; the `__metadata__` of safetensors."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, in the order of the file."""

    def read(self, name: str) -> Array:
        """Return a tensor as float32, a copy of its own.

        Raises:
            NotFound: There is no such tensor.
            Invalid: Its bytes are not what the head says.
        """

    def read_raw(self, name: str) -> NDArray[np.uint8]:
        """Return the bytes of a tensor as they are in the file; a view that stays good while the checkpoint does."""
