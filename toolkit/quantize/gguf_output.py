"""A quantized model as a GGUF file, for the CPU runtime.

In: a model and its `QuantizedLayer`s. Out: the file, and `Difference`s: what GGUF could not hold as it was. Codes and scales go into the
file unchanged where they can: eight bits as Q8_0 and four as Q4_0, whose blocks of 32 repeat the scale of the group or channel. That
needs a width that is a multiple of 32 and scales within float16; other layers become F16. What GGUF cannot say at all is how activations
are quantized: llama.cpp takes blocks of 32 of them at int8, whatever the dtype. Corrections of low rank go to a second file, a GGUF LoRA.

Source of the blocks: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h, block_q8_0 and block_q4_0; of keys:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import gguf
import msgspec
import numpy as np
from numpy.typing import NDArray

from rkfleet.errors import FailedPrecondition
from toolkit.checkpoint.base import Array
from toolkit.loading import ModelSource
from toolkit.quantize.apply import QuantizedLayer
from toolkit.quantize.checkpoint import recipe_metadata
from toolkit.quantize.grid import Quantized, spread
from toolkit.recipe import Recipe

__all__ = ["ACTIVATIONS", "Difference", "pack_blocks", "write_gguf"]

ACTIVATIONS: Final = (
    "activations: the CPU runtime quantizes them by itself, in blocks of 32; quality of `a8` and `a16` is what our simulation says"
)
BLOCK: Final = 32
HALF_MIN, HALF_MAX = 2.0**-14, 65504.0  # Between them float16 has all numbers of eleven significant bits.
_Type = gguf.GGMLQuantizationType


class Difference(msgspec.Struct, frozen=True):
    """A tensor that GGUF holds only nearly.

    Attributes:
        relative: Norm of the difference over the norm of the tensor.
    """

    name: str
    type: str
    relative: float


def pack_blocks(weight: Quantized) -> NDArray[np.uint8] | None:
    """Return (out_features, bytes) of Q8_0 or Q4_0 blocks with the same values, or None if there are none."""
    rows, width = weight.codes.shape
    magnitudes = np.abs(weight.scales)
    if width % BLOCK or (weight.scales.shape[1] > 1 and weight.group % BLOCK):
        return None
    if magnitudes.min() < HALF_MIN or magnitudes.max() > HALF_MAX:
        return None
    wide = np.broadcast_to(spread(weight.scales, weight.group, width), (rows, width))
    scales = np.ascontiguousarray(wide[:, ::BLOCK].astype(np.float16)).view(np.uint8).reshape(rows, -1, 2)
    codes = weight.codes.reshape(rows, -1, BLOCK)
    if weight.bits == 8:
        body = codes.view(np.uint8)
    else:
        halves = (codes + np.int8(8)).astype(np.uint8)
        body = np.bitwise_or(halves[..., : BLOCK // 2], np.left_shift(halves[..., BLOCK // 2 :], np.uint8(4)))
    packed: NDArray[np.uint8] = np.concatenate([scales, body], axis=2).reshape(rows, -1)
    return packed


def write_gguf(path: Path, source: ModelSource, layers: Iterable[QuantizedLayer], recipe: Recipe) -> list[Difference]:
    """Write the file, and PATH-lora.gguf if layers have corrections; return what is not as it was.

    Raises:
        FailedPrecondition: A file is there already.
    """
    adapter = path.with_name(f"{path.stem}-lora.gguf")
    for file in (path, adapter):
        if file.exists():
            raise FailedPrecondition(f"{str(file)!r} exists: remove it or name another output")
    whole = path.with_name(f".{path.name}.whole")
    writer = gguf.GGUFWriter(whole, source.hyperparameters.architecture, use_temp_file=True)
    _add_metadata(writer, source.metadata)
    _add_metadata(writer, recipe_metadata(recipe))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if recipe.dtype.startswith("w8") else gguf.LlamaFileType.MOSTLY_Q4_0)
    differences: list[Difference] = []
    written: set[str] = set()
    thin: dict[str, tuple[Array, Array]] = {}
    try:
        for layer in layers:
            name = f"{layer.name}.weight"
            differences += _add_layer(writer, name, layer)
            written.add(name)
            if layer.low_rank is not None:
                thin[name] = layer.low_rank
        for name, info in source.tensors.items():
            if name not in written:
                differences += _add_float(writer, name, source.read(name), whole=len(info.shape) == 1)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        whole.replace(path)
    finally:
        whole.unlink(missing_ok=True)
    if thin:
        _write_adapter(adapter, source.hyperparameters.architecture, thin)
    return differences


def _add_layer(writer: gguf.GGUFWriter, name: str, layer: QuantizedLayer) -> list[Difference]:
    packed = pack_blocks(layer.weight) if layer.divisors is None else None
    if packed is not None:
        writer.add_tensor(name, packed, raw_dtype=_Type.Q8_0 if layer.weight.bits == 8 else _Type.Q4_0)
        return []
    values = layer.weight.dequantize()
    if layer.divisors is not None:
        values /= layer.divisors
    return _add_float(writer, name, values, whole=False)


def _add_float(writer: gguf.GGUFWriter, name: str, values: Array, *, whole: bool) -> list[Difference]:
    if whole:
        writer.add_tensor(name, values)
        return []
    half = np.clip(values, -HALF_MAX, HALF_MAX).astype(np.float16)
    writer.add_tensor(name, half)
    lost = float(np.linalg.norm(half.astype(np.float32) - values)) / (float(np.linalg.norm(values)) or 1.0)
    return [Difference(name, "F16", lost)] if lost else []


def _add_metadata(writer: gguf.GGUFWriter, metadata: Mapping[str, Any]) -> None:
    for key, value in metadata.items():
        if key in ("general.architecture", "general.file_type", "general.quantization_version"):
            continue  # The writer says these itself.
        match value:
            case bool():
                writer.add_bool(key, value)
            case int() if 0 <= value < 1 << 32:
                writer.add_uint32(key, value)
            case int():
                writer.add_int64(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case list() if value:
                writer.add_array(key, value)
            case _:
                continue  # Empty lists have no type in GGUF.


def _write_adapter(path: Path, architecture: str, thin: Mapping[str, tuple[Array, Array]]) -> None:
    """Write a LoRA as llama.cpp reads it: alpha is the rank, so that it is added as it is."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(max(a.shape[0] for a, _ in thin.values())))
    for name, (a, b) in thin.items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
