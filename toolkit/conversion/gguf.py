"""A model as one GGUF file: weights, sizes, tokenizer and chat template.

In: an opened model, adapters to join, and the type of its matrices. Out: a file that llama.cpp runs. Called by `rkfleet toolkit gguf`.

One tensor is in memory at a time, and the file appears under its name when it is whole. Tensors of a GGUF file that stay of their type are
copied byte by byte.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import gguf
import msgspec
import numpy as np
from numpy.typing import NDArray

from rkfleet.errors import FailedPrecondition, Invalid
from toolkit.adapters.base import Adapter, JoinedSource
from toolkit.checkpoint.base import Array, TensorInfo
from toolkit.loading import GgufSource, ModelSource

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
_BLOCK: Final = 32  # Weights in a block of Q8_0, Q4_0 and Q4_1.
_QUANTIZATION_VERSION: Final = 2  # Of the layout of these blocks. Source: ggml.h, GGML_QNT_VERSION.
_F16_MAX: Final = 65504.0


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
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as place:
            part = Path(place) / "model.gguf"
            _write(part, model, source, metadata=metadata, plan=plan, progress=progress)
            part.replace(path)
    except OSError as error:
        raise FailedPrecondition(f"file {str(path)!r} cannot be written: {error.strerror or error}") from error
    types: dict[str, int] = {}
    for one in plan.values():
        types[one.name] = types.get(one.name, 0) + 1
    return Written(path, path.stat().st_size, len(plan), types)


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
    metadata = dict(model.metadata)
    if kind is None and isinstance(model, GgufSource):
        return metadata
    matrices = [one.name.lower() for name, one in plan.items() if len(model.tensors[name].shape) > 1]
    most = max(sorted(set(matrices)), key=matrices.count, default="f32")
    if most in _FILE_TYPES:
        metadata["general.file_type"] = _FILE_TYPES[most]
    if any(one.name not in ("F32", "F16", "BF16") for one in plan.values()):
        metadata["general.quantization_version"] = _QUANTIZATION_VERSION
    return metadata


def _write(
    path: Path,
    model: ModelSource,
    joined: JoinedSource | None,
    *,
    metadata: Mapping[str, Any],
    plan: Mapping[str, gguf.GGMLQuantizationType],
    progress: Callable[[int, int], None] | None,
) -> None:
    writer = gguf.GGUFWriter(path, str(metadata["general.architecture"]))
    try:
        for key, value in metadata.items():
            _add(writer, key, value)
        for name, kind in plan.items():
            shape = model.tensors[name].shape
            writer.add_tensor_info(name, shape, np.dtype(np.float32), _bytes_of(shape, kind), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done, total = 0, sum(_bytes_of(model.tensors[name].shape, kind) for name, kind in plan.items())
        for name, kind in plan.items():
            data = _encoded(model, joined, name, kind)
            writer.write_tensor_data(data)
            done += data.nbytes
            del data  # Before the next one is read.
            if progress is not None:
                progress(done, total)
        writer.flush()
        with path.open("rb") as file:
            os.fsync(file.fileno())
    finally:
        writer.close()


def _encoded(model: ModelSource, joined: JoinedSource | None, name: str, kind: gguf.GGMLQuantizationType) -> NDArray[Any]:
    """Return the bytes of one tensor."""
    info = model.tensors[name]
    changed = joined is not None and joined.changes(name)
    if isinstance(model, GgufSource) and info.dtype == kind.name and not changed:
        return model.checkpoint.read_raw(name)
    values: Array = joined.read(name) if joined is not None else model.read(name)
    if kind == gguf.GGMLQuantizationType.F32:
        return np.ascontiguousarray(values, dtype=np.float32)
    if kind == gguf.GGMLQuantizationType.F16:
        largest = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
        if not largest <= _F16_MAX:
            raise Invalid(f"tensor {name} has a value of {largest:g}, f16 ends at {_F16_MAX:g}; take --type bf16 or f32")
        return values.astype(np.float16)
    encoded: NDArray[Any] = gguf.quantize(np.ascontiguousarray(values), kind)
    return encoded


def _bytes_of(shape: Sequence[int], kind: gguf.GGMLQuantizationType) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    elements = 1
    for one in shape:
        elements *= one
    return elements // block * size


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add a key of the type that its value has; counts are unsigned where they can be, as llama.cpp reads them."""
    if key == "general.architecture":  # The writer has put it in.
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value) if 0 <= value < 1 << 32 else writer.add_int64(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))
