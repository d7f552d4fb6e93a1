"""Quantized models on disk, written layer by layer and loaded again for the same logits.

In: a model and its `QuantizedLayer`s. Out: the directory that `toolkit.checkpoint.quantized` describes, with `recipe.json` in it; or one
file of layers alone, the cache of `--qparams`, from which a second export is made without quantizing again. Peak memory is that of one
layer: tensors go to a file beside the target, and the head, which has to come first, is written when all are known.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from rkfleet.errors import FailedPrecondition, Invalid
from toolkit.checkpoint.quantized import LAYERS_KEY, METADATA, WEIGHTS, LayerParts, QuantizedCheckpoint, pack4
from toolkit.dtypes import dtype_of
from toolkit.loading import ModelSource
from toolkit.quantize.apply import QuantizedLayer
from toolkit.quantize.grid import Quantized
from toolkit.recipe import Recipe

__all__ = ["RECIPE_KEY", "LayerFile", "read_layers", "write_checkpoint"]

RECIPE_KEY: Final = "rkfleet.recipe"
DIGEST_KEY: Final = "rkfleet.recipe.digest"
_NAMES: Final = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8"}


class LayerFile:
    """A safetensors file that grows. Source of the format: https://github.com/huggingface/safetensors, "Format"."""

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self.path: Final = path
        self._metadata: Final = dict(metadata)
        self._data: Final = path.with_name(f".{path.name}.data")
        self._file: Final = self._data.open("wb")
        self._head: Final[dict[str, Any]] = {}
        self._layers: Final[dict[str, LayerParts]] = {}

    def add(self, name: str, values: np.ndarray[Any, Any]) -> None:
        """Write one array."""
        start = self._file.tell()
        self._file.write(np.ascontiguousarray(values).tobytes())
        self._head[name] = {"dtype": _NAMES[str(values.dtype)], "shape": list(values.shape), "data_offsets": [start, self._file.tell()]}

    def add_layer(self, layer: QuantizedLayer) -> None:
        """Write codes, scales and what else a layer has."""
        weight = layer.weight
        rows, width = weight.codes.shape
        self._layers[layer.name] = LayerParts((rows, width), weight.bits, weight.group, layer.dtype.name)
        self.add(f"{layer.name}.codes", pack4(weight.codes) if weight.bits == 4 else weight.codes)
        self.add(f"{layer.name}.scales", weight.scales)
        if layer.divisors is not None:
            self.add(f"{layer.name}.divisors", layer.divisors)
        if layer.low_rank is not None:
            self.add(f"{layer.name}.lora_a", layer.low_rank[0])
            self.add(f"{layer.name}.lora_b", layer.low_rank[1])

    def close(self) -> None:
        """Write the head and put the file in its place, all of it or nothing."""
        self._file.close()
        said = {**self._metadata, LAYERS_KEY: msgspec.json.encode(self._layers).decode()}
        head = msgspec.json.encode({"__metadata__": said, **self._head})
        head += b" " * (-len(head) % 8)
        whole = self.path.with_name(f".{self.path.name}.whole")
        with whole.open("wb") as out, self._data.open("rb") as data:
            out.write(len(head).to_bytes(8, "little") + head)
            shutil.copyfileobj(data, out, 1 << 20)
        self._data.unlink()
        whole.replace(self.path)

    def discard(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self._data.unlink(missing_ok=True)


def recipe_metadata(recipe: Recipe) -> dict[str, str]:
    """Return what files of a recipe carry in their metadata."""
    return {RECIPE_KEY: recipe.encode().decode(), DIGEST_KEY: recipe.digest}


def write_layers(path: Path, layers: Iterable[QuantizedLayer], recipe: Recipe) -> None:
    """Write a file of layers alone."""
    file = LayerFile(path, recipe_metadata(recipe))
    try:
        for layer in layers:
            file.add_layer(layer)
        file.close()
    except BaseException:
        file.discard()
        raise


def read_layers(path: Path, recipe: Recipe | None = None) -> Iterator[QuantizedLayer]:
    """Return the layers of a directory or of a file of layers.

    Args:
        path: See above.
        recipe: What they must have been made by; only the form of the output may differ.

    Raises:
        NotFound: There is nothing at the path.
        Invalid: It is damaged.
        FailedPrecondition: It was made by another recipe.
    """
    checkpoint = QuantizedCheckpoint(path)
    if recipe is not None:
        try:
            theirs = msgspec.json.decode(checkpoint.said.get(RECIPE_KEY, ""), type=Recipe)
        except msgspec.MsgspecError as error:
            raise Invalid(f"layers {str(path)!r} say no recipe: {error}") from error
        if msgspec.structs.replace(theirs, output=recipe.output) != recipe:
            raise FailedPrecondition(
                f"layers {str(path)!r} were made by another recipe ({theirs.dtype}, {theirs.algorithm}, {theirs.digest}): remove the file"
                " or name another, and it is made anew"
            )
    return _layers(checkpoint)


def write_checkpoint(directory: Path, source: ModelSource, layers: Iterable[QuantizedLayer], recipe: Recipe) -> None:
    """Write a directory; tensors that are not quantized keep every bit, as float16 where that holds them.

    Raises:
        FailedPrecondition: The directory has something in it already.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FailedPrecondition(f"{str(directory)!r} exists and is not empty: name another directory")
    directory.mkdir(parents=True, exist_ok=True)
    file = LayerFile(directory / WEIGHTS, recipe_metadata(recipe))
    try:
        written = set()
        for layer in layers:
            file.add_layer(layer)
            written.add(f"{layer.name}.weight")
        for name in source.tensors:
            if name not in written:
                values = source.read(name)
                with np.errstate(over="ignore"):
                    half = values.astype(np.float16)
                file.add(name, half if np.array_equal(half.astype(np.float32), values) else values)
        file.close()
    except BaseException:
        file.discard()
        raise
    (directory / METADATA).write_bytes(msgspec.json.encode({**source.metadata, **recipe_metadata(recipe)}))
    (directory / "recipe.json").write_bytes(recipe.encode() + b"\n")


def _layers(checkpoint: QuantizedCheckpoint) -> Iterator[QuantizedLayer]:
    for name, parts in checkpoint.layers.items():
        codes, scales = checkpoint.parts(name)
        a, b = checkpoint.find(f"{name}.lora_a"), checkpoint.find(f"{name}.lora_b")
        thin = None if a is None or b is None else (a, b)
        weight = Quantized(codes, scales, parts.group, parts.bits)
        yield QuantizedLayer(name, dtype_of(parts.dtype), weight, checkpoint.find(f"{name}.divisors"), thin)
