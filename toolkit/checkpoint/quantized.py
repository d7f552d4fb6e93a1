"""A quantized model as our own directory: codes and scales as they are, everything else losslessly.

In: a directory that `toolkit.quantize.checkpoint` wrote. Out: a `Checkpoint` in the house's form, whose `read` gives code times scale, and
`parts`, the stored arrays of a layer. Files: `model.safetensors` (names below, and in its metadata under `rkfleet.layers` what each layer
is) and METADATA, the key-value pairs that a GGUF file of the model would have.

A layer NAME has NAME.codes (int8, or uint8 with two four-bit codes, the even column in the low half), NAME.scales (float32), and may have
NAME.divisors, NAME.lora_a and NAME.lora_b.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import safetensors
from numpy.typing import NDArray

from rkfleet.errors import Invalid, NotFound
from toolkit.checkpoint.base import Array, TensorInfo

__all__ = ["LAYERS_KEY", "METADATA", "WEIGHTS", "LayerParts", "QuantizedCheckpoint", "pack4", "unpack4"]

WEIGHTS: Final = "model.safetensors"
METADATA: Final = "rkfleet-quantized.json"
LAYERS_KEY: Final = "rkfleet.layers"
METADATA_BYTES_MAX: Final = 256 << 20  # A vocabulary of 256 k tokens with its merges takes a tenth of it.


class LayerParts(msgspec.Struct, frozen=True):
    """What `rkfleet.layers` says of a layer.

    Attributes:
        shape: Of the weight, (out_features, in_features).
        group: Inputs that share a scale; 0 for one scale for each output channel.
    """

    shape: tuple[int, int]
    bits: int
    group: int
    dtype: str


def pack4(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return codes -8..7 of (rows, width) two in a byte, (rows, ceil(width / 2))."""
    if codes.shape[1] % 2:
        codes = np.concatenate([codes, np.zeros((codes.shape[0], 1), np.int8)], axis=1)
    halves = np.bitwise_and(codes.view(np.uint8), np.uint8(15))
    packed: NDArray[np.uint8] = np.bitwise_or(halves[:, 0::2], np.left_shift(halves[:, 1::2], np.uint8(4)))
    return packed


def unpack4(packed: NDArray[np.uint8], width: int) -> NDArray[np.int8]:
    """Return what `pack4` was given."""
    codes = np.empty((packed.shape[0], 2 * packed.shape[1]), np.int8)
    codes[:, 0::2] = (packed & 15).view(np.int8)
    codes[:, 1::2] = (packed >> 4).view(np.int8)
    codes = codes[:, :width]
    return np.where(codes > 7, codes - 16, codes).astype(np.int8)


class QuantizedCheckpoint:
    """One such directory, or one file of layers alone (`--qparams`)."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        self._file: Final = path / WEIGHTS if path.is_dir() else path
        try:
            opened: Any = safetensors.safe_open(str(self._file), framework="numpy")
            self._open: Final = opened
            said = self._open.metadata() or {}
            self.layers: Final = msgspec.json.decode(said.get(LAYERS_KEY, ""), type=dict[str, LayerParts])
            self._metadata: Final = self._read_metadata() if path.is_dir() else {}
        except FileNotFoundError as error:
            raise NotFound(f"quantized model {str(self._file)!r} does not exist") from error
        except (OSError, msgspec.MsgspecError, safetensors.SafetensorError) as error:
            raise Invalid(f"quantized model {str(self._file)!r} cannot be read: {error}") from error
        self.said: Final[Mapping[str, str]] = said
        self._keys: Final = frozenset(self._open.keys())
        parts = tuple(f"{name}{end}" for name in self.layers for end in (".codes", ".scales", ".divisors", ".lora_a", ".lora_b"))
        self._tensors: Final[dict[str, TensorInfo]] = {}
        for name in sorted(self._keys.difference(parts)):
            cut = self._open.get_slice(name)
            shape = tuple(cut.get_shape())
            self._tensors[name] = TensorInfo(
                name, shape, str(cut.get_dtype()), int(np.prod(shape)) * (2 if cut.get_dtype() == "F16" else 4)
            )
        for name, layer in self.layers.items():
            size = layer.shape[0] * layer.shape[1] * layer.bits // 8
            self._tensors[f"{name}.weight"] = TensorInfo(f"{name}.weight", layer.shape, layer.dtype, size)

    @property
    def path(self) -> Path:
        """The directory."""
        return self._path

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What a GGUF file of this model would say."""
        return self._metadata

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors under GGUF names; a quantized one has its dtype's name as type."""
        return self._tensors

    def read(self, name: str) -> Array:
        """Return a tensor as float32; see `Checkpoint.read`.

        A quantized one is code times scale; if the layer has divisors, that is the weight of divided inputs.
        """
        layer = self.layers.get(name.removesuffix(".weight"))
        if layer is None:
            if name not in self._tensors:
                raise NotFound(f"quantized model {str(self._path)!r} has no tensor {name!r}")
            return np.array(self._open.get_tensor(name), dtype=np.float32)
        codes, scales = self.parts(name.removesuffix(".weight"))
        wide = scales if scales.shape[1] == 1 else np.repeat(scales, layer.group, axis=1)[:, : layer.shape[1]]
        return codes.astype(np.float32) * wide

    def read_raw(self, name: str) -> NDArray[np.uint8]:
        """Return the bytes of a tensor: of a quantized one, its codes."""
        stem = name.removesuffix(".weight")
        stored = f"{stem}.codes" if stem in self.layers else name
        if stored not in self._keys:
            raise NotFound(f"quantized model {str(self._path)!r} has no tensor {name!r}")
        raw: NDArray[np.uint8] = np.asarray(self._open.get_tensor(stored)).reshape(-1).view(np.uint8)
        return raw

    def find(self, name: str) -> Array | None:
        """Return a stored float32 array, for example `output.divisors`, or None."""
        return np.asarray(self._open.get_tensor(name), dtype=np.float32) if name in self._keys else None

    def parts(self, name: str) -> tuple[NDArray[np.int8], Array]:
        """Return codes (out_features, in_features) and scales (out_features, groups) of a layer.

        Raises:
            Invalid: Their shapes are not those of the layer.
        """
        layer = self.layers[name]
        scales = self.find(f"{name}.scales")
        stored = self._open.get_tensor(f"{name}.codes") if f"{name}.codes" in self._keys else None
        rows, width = layer.shape
        groups = -(-width // layer.group) if layer.group > 0 else 1
        wide = -(-width // 2) if layer.bits == 4 else width
        kind = np.uint8 if layer.bits == 4 else np.int8
        if stored is None or scales is None or stored.shape != (rows, wide) or stored.dtype != kind or scales.shape != (rows, groups):
            raise Invalid(
                f"quantized model {str(self._file)!r}: codes or scales of {name!r} are not those of a {layer.dtype} {layer.shape}"
            )
        return (unpack4(stored, width) if layer.bits == 4 else stored), scales

    def _read_metadata(self) -> dict[str, Any]:
        file = self._path / METADATA
        if file.stat().st_size > METADATA_BYTES_MAX:
            raise Invalid(f"{str(file)!r} has more than {METADATA_BYTES_MAX} bytes")
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
