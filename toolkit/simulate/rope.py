"""Frequencies of rotary positions, stretched or not.

In: hyperparameters. Out: one frequency for each pair of dimensions, in float32. Formulas: arXiv:2104.09864; the stretching `llama3` as
published with Llama 3.1 (transformers `modeling_rope_utils.py` states it).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from toolkit.checkpoint.base import Array
from toolkit.simulate.hyperparameters import Hyperparameters, RopeScaling

__all__ = ["frequencies"]


def frequencies(hyperparameters: Hyperparameters, *, local: bool = False) -> Array:
    """Return the angle that each pair turns from one token to the next; `local` for layers that see a window only."""
    base = hyperparameters.rope_base_local if local and hyperparameters.rope_base_local else hyperparameters.rope_base
    exponents = np.arange(0, hyperparameters.rope_dimensions, 2, dtype=np.float64) / hyperparameters.rope_dimensions
    plain = 1.0 / base**exponents
    scaling = None if local else hyperparameters.rope_scaling
    return (plain if scaling is None else _stretched(plain, scaling)).astype(np.float32)


def _stretched(plain: NDArray[np.float64], scaling: RopeScaling) -> NDArray[np.float64]:
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "llama3":
        wavelength = 2 * math.pi / plain
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        smooth = np.clip((scaling.original_context / wavelength - low) / (high - low), 0, 1)
        mixed: NDArray[np.float64] = (1 - smooth) * plain / scaling.factor + smooth * plain
        return mixed
    raise AssertionError(f"no formula for {scaling.kind}")
