"""Frequencies of rotary positions, stretched or not.

In: hyperparameters. Out: one frequency for each pair of dimensions, in float32. Formulas: arXiv:2104.09864; the stretching `llama3` as
published with Llama 3.1 (transformers `modeling_rope_utils.py` states it); `longrope`, arXiv:2402.13753.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from rkfleet.errors import Invalid
from toolkit.checkpoint.base import Array
from toolkit.simulate.hyperparameters import Hyperparameters, RopeScaling

__all__ = ["amplitude", "frequencies", "with_stored_factors"]


def frequencies(hyperparameters: Hyperparameters, *, local: bool = False, capacity: int = 0) -> Array:
    """Return the angle that each pair turns from one token to the next.

    `local` is for layers that see a window only: where they have a base of their own, nothing stretches it; else they turn as all do.

    Longrope takes its long factors where room for more than the original context was asked for (`capacity`), however short the text still
    is: so does llama.cpp, and keys in a cache need one set of factors.
    """
    local = local and hyperparameters.rope_base_local > 0
    base = hyperparameters.rope_base_local if local else hyperparameters.rope_base
    exponents = np.arange(0, hyperparameters.rope_dimensions, 2, dtype=np.float64) / hyperparameters.rope_dimensions
    plain = 1.0 / base**exponents
    scaling = None if local else hyperparameters.rope_scaling
    return (plain if scaling is None else _stretched(plain, scaling, capacity)).astype(np.float32)


def amplitude(hyperparameters: Hyperparameters) -> float:
    """Return the factor on cosines and sines: 1 unless a stretching has one."""
    scaling = hyperparameters.rope_scaling
    return scaling.attention_factor if scaling is not None and scaling.kind == "longrope" else 1.0


def with_stored_factors(hyperparameters: Hyperparameters, tensors: Mapping[str, Array]) -> Hyperparameters:
    """Return hyperparameters with the factors of longrope or of llama3 that a model keeps as tensors.

    GGUF files have those of llama3 as `rope_freqs.weight`, computed: they are longrope's with one set and nothing else.

    Raises:
        Invalid: One set is missing, or factors are not one for each pair of dimensions that turns.
    """
    scaling, names = hyperparameters.rope_scaling, ("rope_factors_short.weight", "rope_factors_long.weight")
    if "rope_freqs.weight" in tensors:
        return _with_one_set(hyperparameters, tensors["rope_freqs.weight"])
    if scaling is None or scaling.kind != "longrope" or not any(name in tensors for name in names):
        return hyperparameters
    pairs = hyperparameters.rope_dimensions // 2
    for name in names:
        if name not in tensors or tensors[name].shape != (pairs,):
            had = f"shape {tensors[name].shape}" if name in tensors else "nothing"
            raise Invalid(f"tensor {name}: the model has {had}; {pairs} pairs of dimensions turn, one factor each")
    short, long = (tuple(tensors[name].tolist()) for name in names)
    return msgspec.structs.replace(hyperparameters, rope_scaling=msgspec.structs.replace(scaling, factors_short=short, factors_long=long))


def _with_one_set(hyperparameters: Hyperparameters, factors: Array) -> Hyperparameters:
    pairs, scaling = hyperparameters.rope_dimensions // 2, hyperparameters.rope_scaling
    if factors.shape != (pairs,) or not (np.isfinite(factors) & (factors > 0)).all():
        raise Invalid(f"tensor rope_freqs.weight has shape {factors.shape}; {pairs} pairs of dimensions turn, one positive factor each")
    if scaling is not None and scaling.kind == "linear":
        raise Invalid(f"the model stretches positions twice: by rope.scaling.factor {scaling.factor} and by tensor rope_freqs.weight")
    one = tuple(factors.tolist())
    both = RopeScaling(kind="longrope", original_context=hyperparameters.context, attention_factor=1.0, factors_short=one, factors_long=one)
    return msgspec.structs.replace(hyperparameters, rope_scaling=both)


def _stretched(plain: NDArray[np.float64], scaling: RopeScaling, capacity: int) -> NDArray[np.float64]:
    if scaling.kind == "longrope":
        factors = scaling.factors_long if capacity > scaling.original_context else scaling.factors_short
        return plain / np.array(factors) if factors else plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "llama3":
        wavelength = 2 * math.pi / plain
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        smooth = np.clip((scaling.original_context / wavelength - low) / (high - low), 0, 1)
        mixed: NDArray[np.float64] = (1 - smooth) * plain / scaling.factor + smooth * plain
        return mixed
    raise AssertionError(f"no formula for {scaling.kind}")
