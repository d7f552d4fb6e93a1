"""LongRoPE in files: factors for each pair of a head's dimensions, one set up to the context of training, one beyond.

In: a config.json, or the metadata of a GGUF file. Out: `RopeScaling`, GGUF keys, and the tensors `rope_factors_short` and
`rope_factors_long` in which GGUF files keep the factors. `toolkit.simulate.rope` computes with them. Source: arXiv:2402.13753; attention
factor as published with Phi-3 and MiniCPM3: sqrt(1 + ln(stretch) / ln(original context)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rkfleet.errors import Invalid
from toolkit.checkpoint.base import Array
from toolkit.simulate.families.base import Origin
from toolkit.simulate.families.config import Config, rope_scaling
from toolkit.simulate.families.keys import stored_count, stored_number
from toolkit.simulate.hyperparameters import Hyperparameters, RopeScaling

__all__ = ["Constant", "factor_origins", "longrope", "longrope_keys", "refuse_longrope", "stored_longrope"]


def longrope(config: Config, *, context: int, pairs: int) -> RopeScaling | None:
    """Return how a config.json stretches positions, longrope among the kinds.

    Raises:
        Invalid: The kind is unknown, or factors are not one finite positive number for each of `pairs`.
    """
    nested = config.fields.get("rope_scaling") or config.fields.get("rope_parameters")
    if not isinstance(nested, Mapping) or nested.get("rope_type", nested.get("type")) != "longrope":
        return rope_scaling(config)
    read = Config(nested)
    field = "original_max_position_embeddings"
    original = config.count(field, read.count(field, context))  # Of two that differ transformers takes the outer one.
    stretch = read.positive("factor", context / original)
    implied = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 and original > 1 else 1.0
    return RopeScaling(
        kind="longrope",
        factor=stretch,
        original_context=original,
        attention_factor=read.number("attention_factor", implied),
        factors_short=_factors(nested, "short_factor", pairs),
        factors_long=_factors(nested, "long_factor", pairs),
    )


def stored_longrope(general: Hyperparameters, metadata: Mapping[str, Any]) -> RopeScaling:
    """Return what a GGUF file's metadata says of longrope; the factors are tensors, which the network adds where the file has them."""
    prefix = f"{general.architecture}.rope.scaling"
    return RopeScaling(
        kind="longrope",
        original_context=stored_count(metadata, f"{prefix}.original_context_length", general.context),
        attention_factor=stored_number(metadata, f"{prefix}.attn_factor", 1.0),
    )


def longrope_keys(hyperparameters: Hyperparameters) -> dict[str, Any]:
    """Return longrope as keys of a GGUF file; none if positions are not stretched so."""
    scaling = hyperparameters.rope_scaling
    if scaling is None or scaling.kind != "longrope":
        return {}
    prefix = f"{hyperparameters.architecture}.rope.scaling"
    return {
        f"{prefix}.type": "longrope",
        f"{prefix}.original_context_length": scaling.original_context,
        f"{prefix}.attn_factor": scaling.attention_factor,
    }


def factor_origins(hyperparameters: Hyperparameters) -> dict[str, Origin]:
    """Return the tensors of factors, made of the config alone: they have no sources."""
    scaling = hyperparameters.rope_scaling
    if scaling is None or not scaling.factors_short:
        return {}
    named = {"rope_factors_long.weight": scaling.factors_long, "rope_factors_short.weight": scaling.factors_short}
    return {name: Origin((), (len(factors),), Constant(factors)) for name, factors in named.items()}


class Constant:
    """Makes a tensor of numbers that are known."""

    def __init__(self, values: tuple[float, ...]) -> None:
        self.values = values

    def __call__(self, sources: Sequence[Array]) -> Array:  # noqa: ARG002 (see Origin.make)
        """Return the numbers; there are no sources."""
        return np.array(self.values, np.float32)


def _factors(nested: Mapping[str, Any], field: str, pairs: int) -> tuple[float, ...]:
    values = nested.get(field)
    if not isinstance(values, list) or len(values) != pairs:
        had = f"{len(values)} numbers" if isinstance(values, list) else repr(values)
        raise Invalid(f"config.json: rope_scaling.{field} is {had}; a head has {pairs} pairs of dimensions that turn, one factor each")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise Invalid(f"config.json: rope_scaling.{field} has {value!r}; factors are finite and positive")
    return tuple(float(value) for value in values)


def refuse_longrope(hyperparameters: Hyperparameters) -> Hyperparameters:
    """Return the hyperparameters of a family whose published models and GGUF files have no longrope.

    Raises:
        Invalid: They have.
    """
    scaling, architecture = hyperparameters.rope_scaling, hyperparameters.architecture
    if scaling is not None and scaling.kind != "linear":
        raise Invalid(f"config.json: rope_scaling.rope_type is {scaling.kind!r}; {architecture} is simulated with default and linear only")
    return hyperparameters
