"""Adapters as PEFT writes them: a directory with adapter_config.json and adapter_model.safetensors (or .bin).

In: the directory, and the family and sizes of the model. Out: an `Adapter` under GGUF names: the family says which tensor of the house's
form a layer becomes and what is done with it; what moves rows of a weight moves the rows of B. Called by `open.py`.

Source: https://huggingface.co/docs/peft/developer_guides/checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from rkfleet.errors import Invalid
from toolkit.adapters.base import Adapter, LowRank
from toolkit.checkpoint.base import Array, Checkpoint
from toolkit.checkpoint.json_file import read_json
from toolkit.simulate.families.base import Family, Origin
from toolkit.simulate.hyperparameters import Hyperparameters

__all__ = ["CONFIG", "read_peft_adapter"]

CONFIG: Final = "adapter_config.json"
RANK_MAX: Final = 4096  # Ranks in use end at 512; beyond the width of a layer a rank means nothing.
_PREFIX: Final = "base_model.model."
_DOWN: Final = ".lora_A.weight"
_COPY: Final = ".base_layer.weight"
_UP: Final = ".lora_B.weight"
_TOLERANCE: Final = 1e-4  # Of the check that a family's rule for a weight holds for B alike; float32 rounding is a hundredth of it.


def read_peft_adapter(directory: Path, checkpoint: Checkpoint, family: Family, hyperparameters: Hyperparameters) -> Adapter:
    """Return the adapter in a directory.

    Args:
        directory: Of PEFT.
        checkpoint: Its tensors.
        family: Of the model that it is for.
        hyperparameters: Of that model.

    Raises:
        Invalid: It is of a kind that is not computed here, changes what the model does not have, or its tensors do not fit each other.
    """
    config = read_json(directory / CONFIG)
    _refuse(directory, config)
    pairs = _pairs(directory, checkpoint, (hyperparameters.vocabulary, hyperparameters.hidden))
    shapes = _Shapes({f"{module}.weight": (up.shape[0], down.shape[1]) for module, (down, up) in pairs.items()}, hyperparameters)
    try:
        origins = family.origins(hyperparameters, shapes)
    except KeyError as error:
        raise Invalid(f"adapter {str(directory)!r} does not fit {family.architecture}: there is no {error}") from error
    wanted = {f"{module}.weight" for module in pairs}
    layers: dict[str, LowRank] = {}
    used: set[str] = set()
    for name, origin in origins.items():
        touched = wanted.intersection(origin.sources)
        if not touched:
            continue
        used |= touched
        stem, _, kind = name.rpartition(".")
        if kind != "weight" or stem == "token_embd":
            raise Invalid(f"adapter {str(directory)!r} changes {name}, which is no linear layer; adapters of linear layers are computed")
        layers[stem] = _moved(directory, name, origin, pairs, lambda module: _scale(directory, config, module))
    unused = sorted(wanted - used)
    if unused:
        raise Invalid(f"adapter {str(directory)!r} changes {unused[0]}, which {family.architecture} does not have; it is for another model")
    return Adapter(directory, layers)


class _Shapes(dict[str, tuple[int, ...]]):
    """Shapes of the tensors that an adapter changes, for a family that looks at a whole checkpoint: it is told that every weight is there.

    What it makes of weights that the adapter does not change is not used.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], sizes: Hyperparameters) -> None:
        super().__init__(shapes)
        self._other: Final = (sizes.vocabulary, sizes.hidden)
        self._fused: Final = (sizes.heads * sizes.head_dim + sizes.kv_heads * (sizes.head_dim + sizes.value_dim), sizes.hidden)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and name.endswith(".weight"))

    def __missing__(self, name: str) -> tuple[int, ...]:
        return self._fused if "qkv" in name else self._other


def _refuse(directory: Path, config: Mapping[str, Any]) -> None:
    """Name what an adapter needs and is not computed here."""
    where = f"adapter {str(directory)!r}: {CONFIG}"
    if config.get("peft_type") != "LORA":
        raise Invalid(
            f"{where} has peft_type {config.get('peft_type')!r}; LORA is computed. Merge the adapter with PEFT's merge_and_unload"
        )
    for field, what in (
        ("use_dora", "DoRA rescales the columns of whole weights"),
        ("modules_to_save", "whole layers are replaced"),
        ("trainable_token_indices", "rows of the embeddings are replaced"),
        ("layer_replication", "layers are repeated"),
        ("fan_in_fan_out", "weights are transposed"),
        ("lora_bias", "corrections have biases"),
        ("use_qalora", "inputs are pooled by groups"),
        ("use_bdlora", "matrices are block-diagonal"),
        ("alora_invocation_tokens", "it is switched on by tokens"),
        ("target_parameters", "parameters that are no layers are changed"),
    ):
        if config.get(field):
            raise Invalid(
                f"{where} has {field} {config[field]!r}: {what}. Merge the adapter with PEFT's merge_and_unload and load the result"
            )
    if config.get("bias", "none") != "none":
        raise Invalid(f"{where} has bias {config['bias']!r}: biases are replaced. Merge the adapter with PEFT's merge_and_unload")


def _pairs(directory: Path, checkpoint: Checkpoint, embeddings: tuple[int, int]) -> dict[str, tuple[Array, Array]]:
    """Return A (rank, in) and B (out, rank) by the name of the module that they change."""
    # PEFT writes the embeddings beside an adapter that changes them or the output layer: copies of the model's own, unless it was resized.
    names = {name: info for name, info in checkpoint.tensors.items() if not (name.endswith(_COPY) and info.shape == embeddings)}
    found = {}
    for name, info in names.items():
        module = name.removeprefix(_PREFIX).removesuffix(_DOWN)
        other = f"{name.removesuffix(_DOWN)}{_UP}"
        if name.endswith(_UP) and f"{name.removesuffix(_UP)}{_DOWN}" in names:
            continue
        if not name.endswith(_DOWN) or other not in names:
            raise Invalid(f"adapter {str(directory)!r} has tensor {name!r}, which is no half of a LoRA of a linear layer")
        shape = names[other].shape
        if len(info.shape) != 2 or len(shape) != 2 or info.shape[0] != shape[1] or not 0 < info.shape[0] <= RANK_MAX:
            raise Invalid(
                f"adapter {str(directory)!r}: {module} has shapes {info.shape} and {shape}, which are no (rank, in) and (out, rank) "
                f"of a rank from 1 to {RANK_MAX}"
            )
        found[module] = checkpoint.read(name), checkpoint.read(other)
    return found


def _scale(directory: Path, config: Mapping[str, Any], module: str) -> float:
    """Return alpha / rank of a module, by the patterns that may give it another than the rest."""
    rank = _number(directory, config, "r", module, "rank_pattern")
    alpha = _number(directory, config, "lora_alpha", module, "alpha_pattern")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _number(directory: Path, config: Mapping[str, Any], field: str, module: str, pattern: str) -> float:
    value, where = config.get(field), field
    special = config.get(pattern) or {}
    for key in special if isinstance(special, Mapping) else ():
        name = key.removeprefix("^")  # PEFT anchors a whole name so; otherwise a key matches the end of a name.
        if module == name or module.endswith(f".{name}"):
            value, where = special[key], f"{pattern}[{key!r}]"
            break
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise Invalid(f"adapter {str(directory)!r}: {CONFIG} has {where} {value!r}, not a number from 0 to 1e6")
    return float(value)


def _moved(directory: Path, name: str, origin: Origin, pairs: Mapping[str, tuple[Array, Array]], scale_of: Any) -> LowRank:
    """Return the correction of a tensor of the house's form."""
    modules = [source.removesuffix(".weight") for source in origin.sources]
    if origin.make is None:
        down, up = pairs[modules[0]]
        return LowRank(down, up, scale_of(modules[0]))
    if not all(module in pairs for module in modules):
        missing = next(module for module in modules if module not in pairs)
        raise Invalid(f"adapter {str(directory)!r} changes a part of {name} only, not {missing}; adapters of all its parts are computed")
    down, up = _stacked([(pairs[module][0], pairs[module][1] * np.float32(scale_of(module))) for module in modules], origin.make)
    rule = origin.make(list(_products(pairs, modules, scale_of)))
    if rule.shape != (up.shape[0], down.shape[1]) or not np.allclose(
        up @ down, rule, atol=_TOLERANCE * max(1.0, float(np.abs(rule).max()))
    ):
        raise Invalid(f"adapter {str(directory)!r} changes {name}, whose weight is made of the checkpoint's in a way that B cannot follow")
    return LowRank(down, up, 1.0)


def _products(pairs: Mapping[str, tuple[Array, Array]], modules: Sequence[str], scale_of: Any) -> Iterator[Array]:
    for module in modules:
        down, up = pairs[module]
        yield (up @ down) * np.float32(scale_of(module))


def _stacked(parts: Sequence[tuple[Array, Array]], make: Any) -> tuple[Array, Array]:
    """Return one A and one B for layers that become one: ranks side by side, each B filled with zeros where another's rank is."""
    ranks = [down.shape[0] for down, _ in parts]
    wide = []
    at = 0
    for (_, up), rank in zip(parts, ranks, strict=True):
        filled = np.zeros((up.shape[0], sum(ranks)), np.float32)
        filled[:, at : at + rank] = up
        wide.append(filled)
        at += rank
    return np.concatenate([down for down, _ in parts]), make(wide)
