"""A model as one GGUF file: weights, sizes, tokenizer and chat template.

In: an opened model, adapters to join, and the type of its matrices. Out: a file that llama.cpp runs. Called by `rkfleet toolkit gguf`.

One tensor is in memory at a time, and the file appears under its name when it is whole. Tensors of a GGUF file that stay of their type are
copied byte by byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import gguf
import msgspec
from numpy.typing import NDArray

from rkfleet.errors import Invalid
from toolkit.adapters.base import Adapter, JoinedSource
from toolkit.checkpoint.base import Array, TensorInfo
from toolkit.checkpoint.gguf import GgufCheckpoint
from toolkit.checkpoint.gguf_fields import field_of
from toolkit.checkpoint.gguf_head import VERSIONS
from toolkit.checkpoint.gguf_writer import planned, write_gguf_file
from toolkit.loading import GgufSource, ModelSource
from toolkit.quantize.blocks import THREADS_MAX, encode

__all__ = ["TYPES", "Written", "write_gguf"]

TYPES: Final[Mapping[str, gguf.GGMLQuantizationType]] = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "q4_1": gguf.GGMLQuantizationType.Q4_1,
}
_FILE_TYPES: Final = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "bf16": 32}  # `general.file_type`, as llama.cpp counts.
_QUANTIZATION_VERSION: Final = 2  # Of the layout of these blocks. Source: ggml.h, GGML_QNT_VERSION.


class Written(msgspec.Struct, frozen=True):
    """What was written.

    Attributes:
        types: How many tensors there are of each type.
    """

    path: Path
    size_bytes: int
    tensors: int
    types: Mapping[str, int]


def write_gguf(
    model: ModelSource,
    path: Path,
    *,
    kind: str | None = None,
    adapters: Sequence[tuple[Adapter, float]] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write a model as a GGUF file.

    Args:
        model: As `open_model` opened it.
        path: File to write; one that is there is replaced when the new one is whole.
        kind: One of `TYPES` for all matrices; None keeps each as it is, or as near to it as GGUF has. Vectors are always f32.
            A matrix whose rows are no whole number of blocks becomes f16.
        adapters: With their scales; joined into the weights.
        progress: Called with bytes written and bytes in all, after each tensor.

    Raises:
        Invalid: The type is unknown, a value does not fit into it, an adapter is for another model, or the path is that of the model.
        NotFound: The model has no tokenizer.
        FailedPrecondition: The file cannot be written.
    """
    if kind is not None and kind not in TYPES:
        raise Invalid(f"--type {kind!r} is unknown; known are {', '.join(TYPES)}")
    if path.exists() and path.samefile(model.path):
        raise Invalid(f"-o {str(path)!r} is the model itself; write to another file")
    source = JoinedSource(model, adapters) if adapters else None
    plan = {name: _type_of(model, info, kind, changed=source is not None and source.changes(name)) for name, info in model.tensors.items()}
    metadata = _metadata(model, kind, plan)
    own = model.checkpoint if kind is None and isinstance(model, GgufSource) else None
    kept = own if isinstance(own, GgufCheckpoint) else None
    size = write_gguf_file(
        path,
        {key: kept.fields[key] if kept is not None and key in kept.fields else field_of(key, value) for key, value in metadata.items()},
        [planned(name, model.tensors[name].shape, dtype.name) for name, dtype in plan.items()],
        lambda name: _encoded(model, source, name, plan[name]),
        version=kept.version if kept is not None else VERSIONS[-1],
        progress=progress,
    )
    types: dict[str, int] = {}
    for one in plan.values():
        types[one.name] = types.get(one.name, 0) + 1
    return Written(path, size, len(plan), types)


def _type_of(model: ModelSource, info: TensorInfo, kind: str | None, *, changed: bool) -> gguf.GGMLQuantizationType:
    """Return the type that a tensor gets."""
    if kind is None and isinstance(model, GgufSource) and not changed:
        return gguf.GGMLQuantizationType[info.dtype]
    if len(info.shape) < 2:
        return gguf.GGMLQuantizationType.F32
    wanted = TYPES.get(kind or _near(info.dtype), gguf.GGMLQuantizationType.F16)
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if info.shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def _near(dtype: str) -> str:
    """Return the type of GGUF that holds a checkpoint's values: its own, or f32 for what is wider, f16 for what is narrower."""
    word = dtype.lower()
    return {"float32": "f32", "f64": "f32", "float64": "f32", "bfloat16": "bf16", "float16": "f16"}.get(word, word)


def _metadata(model: ModelSource, kind: str | None, plan: Mapping[str, gguf.GGMLQuantizationType]) -> dict[str, Any]:
    metadata = {key: value for key, value in model.metadata.items() if not key.startswith("split.")}  # What is written is one file.
    if kind is None and isinstance(model, GgufSource):
        return metadata
    matrices = [one.name.lower() for name, one in plan.items() if len(model.tensors[name].shape) > 1]
    most = max(sorted(set(matrices)), key=matrices.count, default="f32")
    if most in _FILE_TYPES:
        metadata["general.file_type"] = _FILE_TYPES[most]
    if any(one.name not in ("F32", "F16", "BF16") for one in plan.values()):
        metadata["general.quantization_version"] = _QUANTIZATION_VERSION
    return metadata


def _encoded(model: ModelSource, joined: JoinedSource | None, name: str, kind: gguf.GGMLQuantizationType) -> NDArray[Any]:
    """Return the bytes of one tensor."""
    info = model.tensors[name]
    changed = joined is not None and joined.changes(name)
    if isinstance(model, GgufSource) and info.dtype == kind.name and not changed:
        return model.checkpoint.read_raw(name)
    values: Array = joined.read(name) if joined is not None else model.read(name)
    return encode(values, kind.name, threads=THREADS_MAX, where=f"tensor {name}")
