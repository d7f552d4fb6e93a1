"""GGUF files: head, metadata and tensors.

In: a path. Out: a `Checkpoint`. Tensors of all types that the `gguf` package can decode become float32.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
from numpy.typing import NDArray

from rkfleet.errors import Invalid, NotFound
from toolkit.checkpoint.base import Array, TensorInfo

__all__ = ["GgufCheckpoint"]


class GgufCheckpoint:
    """One GGUF file, mapped into memory."""

    def __init__(self, path: Path) -> None:
        try:
            reader = gguf.GGUFReader(path)
        except OSError as error:
            raise NotFound(f"model file {str(path)!r} cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, IndexError) as error:
            raise Invalid(f"model file {str(path)!r} is not GGUF: {error}") from error
        self._path: Final = path
        self._raw: Final = {str(tensor.name): tensor for tensor in reader.tensors}
        self._metadata: Final = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        self._tensors: Final = {
            name: TensorInfo(name, tuple(int(size) for size in reversed(tensor.shape)), tensor.tensor_type.name, int(tensor.n_bytes))
            for name, tensor in self._raw.items()
        }

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Key-value pairs, arrays as lists."""
        return self._metadata

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, in the order of the file."""
        return self._tensors

    def read(self, name: str) -> Array:
        """Return a tensor as float32; see `Checkpoint.read`."""
        tensor = self._find(name)
        raw = self.read_raw(name).view(tensor.data.dtype).reshape(tensor.data.shape)
        values = gguf.dequantize(raw, tensor.tensor_type)
        return np.array(values, dtype=np.float32).reshape(self._tensors[name].shape)

    def read_raw(self, name: str) -> NDArray[np.uint8]:
        """Return the bytes of a tensor as they are in the file; they are read, not mapped, so that they do not stay in memory."""
        tensor = self._find(name)
        with self._path.open("rb") as file:
            file.seek(tensor.data_offset)
            return np.fromfile(file, np.uint8, int(tensor.n_bytes))

    def _find(self, name: str) -> Any:
        try:
            return self._raw[name]
        except KeyError as error:
            raise NotFound(f"model file {str(self._path)!r} has no tensor {name!r}") from error
