"""Adapters in GGUF files: `general.type` is `adapter`, tensors end in `.lora_a` and `.lora_b`.

In: an opened GGUF file. Out: an `Adapter`; rows are in GGUF order already. Called by `open.py`.

Source: llama.cpp, `convert_lora_to_gguf.py` and `llama-adapter.cpp`: the scale is `adapter.lora.alpha` by the rank.
"""

from __future__ import annotations

from typing import Final

from rkfleet.errors import Invalid
from toolkit.adapters.base import Adapter, LowRank
from toolkit.checkpoint.base import Checkpoint
from toolkit.simulate.network import EMBEDDING

__all__ = ["read_gguf_adapter"]

_DOWN: Final = ".weight.lora_a"
_UP: Final = ".weight.lora_b"


def read_gguf_adapter(checkpoint: Checkpoint, architecture: str) -> Adapter:
    """Return the adapter in a GGUF file.

    Args:
        checkpoint: The file.
        architecture: Of the model that it is for.

    Raises:
        Invalid: It is no LoRA, is for another architecture, or its tensors do not fit each other.
    """
    path, metadata = checkpoint.path, checkpoint.metadata
    kind = metadata.get("general.type"), metadata.get("adapter.type")
    if kind != ("adapter", "lora"):
        raise Invalid(
            f"file {str(path)!r} is no LoRA: general.type and adapter.type are {kind[0]!r} and {kind[1]!r}, not 'adapter' and 'lora'"
        )
    if metadata.get("general.architecture") != architecture:
        raise Invalid(f"adapter {str(path)!r} is for {metadata.get('general.architecture')!r}, the model is {architecture!r}")
    alpha = metadata.get("adapter.lora.alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise Invalid(f"adapter {str(path)!r}: GGUF key adapter.lora.alpha is {alpha!r}, not a number")
    layers = {}
    for name, info in checkpoint.tensors.items():
        stem, kind_ = (name.removesuffix(_DOWN), _UP) if name.endswith(_DOWN) else (name.removesuffix(_UP), _DOWN)
        if stem == name or f"{stem}{kind_}" not in checkpoint.tensors:
            raise Invalid(f"adapter {str(path)!r} has tensor {name!r} without its other half {_DOWN} or {_UP}")
        if stem == EMBEDDING:
            raise Invalid(
                f"adapter {str(path)!r} changes the embeddings ({name}), which is not computed here; adapters of linear layers are"
            )
        if name.endswith(_UP):
            continue
        other = checkpoint.tensors[f"{stem}{_UP}"]
        if len(info.shape) != 2 or len(other.shape) != 2 or info.shape[0] != other.shape[1]:
            raise Invalid(
                f"adapter {str(path)!r}: {stem} has shapes {info.shape} and {other.shape}, which are no (rank, in) and (out, rank)"
            )
        # A rank of files without alpha: llama.cpp takes 1 as the scale if alpha is 0.
        scale = float(alpha) / info.shape[0] if alpha else 1.0
        layers[stem] = LowRank(checkpoint.read(name), checkpoint.read(other.name), scale)
    return Adapter(path, layers)
