"""From a model and options to quantized layers, and to a network that computes with them.

In: a `ModelSource`, `Options`, pieces of calibration text. Out: `QuantizedLayer`s one by one (`quantize_layers`), which are written or
computed with, or a `LinearFactory` (`quantized_factory`) for `Network`. Embeddings and norms stay in floating point. Called by
`toolkit.evaluate` and the commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from rkfleet.errors import FailedPrecondition
from toolkit.checkpoint.base import Array
from toolkit.dtypes import Dtype, dtype_of
from toolkit.loading import ModelSource
from toolkit.quantize.calibration import Progress, observe, rounds
from toolkit.quantize.gradient import quantize_gdq
from toolkit.quantize.grid import Quantized
from toolkit.quantize.layers import QuantizedLinear
from toolkit.quantize.low_rank import correction
from toolkit.quantize.normal import quantize_normal
from toolkit.quantize.options import Options
from toolkit.quantize.second_order import Inputs, Moments, quantize_grq, row_errors
from toolkit.quantize.smoothing import divisors
from toolkit.simulate.linear import Dense, Linear, LinearFactory
from toolkit.simulate.network import EMBEDDING, OUTPUT

__all__ = [
    "QuantizedLayer",
    "factory_of",
    "layer_dtypes",
    "linear_names",
    "quantize_layer",
    "quantize_layers",
    "quantized_factory",
    "read_weight",
    "refused_widths",
]


class QuantizedLayer(msgspec.Struct, frozen=True):
    """One layer, ready to be written or computed with.

    Attributes:
        divisors: (in_features,) by which inputs are divided first, or None; the weight is that of divided inputs.
        low_rank: a (rank, in_features) and b (out_features, rank), or None.
    """

    name: str
    dtype: Dtype
    weight: Quantized
    divisors: Array | None = None
    low_rank: tuple[Array, Array] | None = None

    def linear(self, bias: Array | None) -> QuantizedLinear:
        """Return the layer that computes."""
        thin = None if self.low_rank is None else (self.low_rank[0].T, self.low_rank[1].T)
        bits = self.dtype.activation_bits
        return QuantizedLinear(self.name, self.weight, bias, activation_bits=bits, divisors=self.divisors, low_rank=thin)


def linear_names(source: ModelSource) -> list[str]:
    """Return the names of linear layers, as `Network` finds them, without `.weight`; the output layer is last."""
    stems = [name.removesuffix(".weight") for name, info in source.tensors.items() if name.endswith(".weight") and len(info.shape) == 2]
    return [stem for stem in stems if stem not in (EMBEDDING, OUTPUT)] + [OUTPUT]


def read_weight(source: ModelSource, name: str) -> Array:
    """Return the weight of a linear layer; a tied output layer has that of the embeddings."""
    tied = name == OUTPUT and f"{OUTPUT}.weight" not in source.tensors
    return source.read(f"{EMBEDDING if tied else name}.weight")


def refused_widths(source: ModelSource, dtypes: Mapping[str, Dtype]) -> list[str]:
    """Return a sentence for every width that is no multiple of its group; the simulation gives it a shorter last group.

    Source of the rule: RKLLM SDK user guide 1.2, build: the output width of every linear layer has to be a multiple of the group. Inputs
    are looked at too, since groups run along them here.
    """
    found: dict[tuple[int, str, int], int] = {}
    for name, dtype in dtypes.items():
        tied = name == OUTPUT and f"{OUTPUT}.weight" not in source.tensors
        outputs, inputs = source.tensors[f"{EMBEDDING if tied else name}.weight"].shape
        for kind, width in (("outputs", outputs), ("inputs", inputs)):
            if dtype.group and width % dtype.group:
                key = dtype.group, kind, width
                found[key] = found.get(key, 0) + 1
    return [
        f"{layers} layers have {width} {kind}, no multiple of the group {group}: the vendor's build refuses this width"
        for (group, kind, width), layers in sorted(found.items())
    ]


def layer_dtypes(source: ModelSource, options: Options, sensitivities: Mapping[str, float] | None = None) -> dict[str, Dtype]:
    """Return the dtype of every layer that is quantized.

    Args:
        source: The model.
        options: Checked.
        sensitivities: By layer, larger is worse; needed if there is a hybrid rate. Of a dtype without groups the most sensitive layers get
            groups; of one with groups the least sensitive lose them.
    """
    main, other = dtype_of(options.dtype), options.counterpart
    names = linear_names(source)[:-1]
    dtypes = dict.fromkeys(names, main)
    count = int(options.hybrid_rate * len(names))
    if count and other is not None and sensitivities is not None:
        order = sorted(names, key=lambda name: (sensitivities[name], name), reverse=not main.group)
        dtypes |= dict.fromkeys(order[:count], other)
    if options.output_dtype is not None:
        dtypes[OUTPUT] = options.output_dtype
    return dtypes


def sensitivity(name: str, weight: Array, dtype: Dtype, moments: Moments | None) -> float:
    """Return what plain rounding adds to a layer's output, as a share of the output's own power; without moments inputs count alike."""
    difference = quantize_normal(name, weight, dtype).dequantize() - weight
    if moments is None:
        return float(np.einsum("ri,ri->", difference, difference)) / (float(np.einsum("ri,ri->", weight, weight)) or 1.0)
    return float(row_errors(difference, moments).sum()) / (float(row_errors(weight, moments).sum()) or 1.0)


def quantize_layer(name: str, weight: Array, dtype: Dtype, options: Options, inputs: Inputs | None) -> QuantizedLayer:
    """Quantize one layer.

    The algorithm of the options is for the dtypes that it takes; eight bits (the output layer of a w4a16 model) are always `normal`.

    Raises:
        Invalid: The weight holds what is no number.
        FailedPrecondition: The algorithm needs calibration, and there is none.
    """
    if options.needs_calibration and inputs is None:
        raise FailedPrecondition(f"algorithm {options.algorithm!r} needs what layer {name!r} is given: pass a calibration file")
    smooth = None
    if options.optimization_level and dtype.activation_bits == 8 and inputs is not None:
        smooth = divisors(name, weight, dtype, inputs)
    if smooth is not None:
        weight = weight * smooth
    moments = None if inputs is None else inputs.moments
    if options.algorithm == "normal" or dtype.weight_bits == 8 or moments is None:
        quantized = quantize_normal(name, weight, dtype)
    elif options.algorithm == "grq":
        quantized = quantize_grq(name, weight, dtype, moments)
    else:
        quantized = quantize_gdq(name, weight, dtype, moments)
    thin = None
    if options.low_rank and name != OUTPUT:
        scaled = moments if moments is None or smooth is None else moments / np.outer(smooth, smooth)
        a, b = correction(weight, quantized, options.low_rank, scaled)
        thin = (a if smooth is None else a / smooth, b)
    return QuantizedLayer(name, dtype, quantized, smooth, thin)


def quantize_layers(
    source: ModelSource, options: Options, pieces: Sequence[Sequence[int]] = (), progress: Progress | None = None
) -> Iterator[QuantizedLayer]:
    """Quantize a model, layer by layer; embeddings and norms are not among them.

    Args:
        source: The model.
        options: See `Options`.
        pieces: Token ids of the calibration text; may be empty for `normal`, where it only serves to order layers and to fit corrections.
        progress: Told after every piece and every layer.

    Raises:
        Invalid: Options do not go together, or a tensor holds what is no number.
        FailedPrecondition: The algorithm needs calibration, and there is none.
    """
    options.check()
    if options.needs_calibration and not pieces:
        raise FailedPrecondition(
            f"algorithm {options.algorithm!r} with optimization level {options.optimization_level} needs a calibration file;"
            " `rkfleet toolkit calibrate` makes one"
        )
    wanted = [name for name in linear_names(source) if name != OUTPUT or options.output_dtype is not None]
    observing = bool(pieces) and bool(options.needs_calibration or options.low_rank or options.hybrid_rate)
    groups = rounds(source, wanted) if observing else [wanted]
    kept = observe(source, groups[0], pieces, progress) if observing else {}
    sensitivities: dict[str, float] = {}
    if options.hybrid_rate:
        for index, group in enumerate(groups):
            seen = kept if index == 0 else observe(source, group, pieces, progress)
            for name in group:
                given = seen.get(name)
                sensitivities[name] = sensitivity(
                    name, read_weight(source, name), dtype_of(options.dtype), None if given is None else given.moments
                )
    dtypes = layer_dtypes(source, options, sensitivities)
    done = 0
    for index, group in enumerate(groups):
        seen = kept if index == 0 else observe(source, group, pieces, progress)
        for name in group:
            yield quantize_layer(name, read_weight(source, name), dtypes[name], options, seen.get(name))
            done += 1
            if progress is not None:
                progress("quantizing", done, len(wanted))
        kept = {}


def factory_of(layers: Iterable[QuantizedLayer]) -> LinearFactory:
    """Return a factory that makes a network of these layers; one that is not among them stays as it is."""
    by_name: Final = {layer.name: layer for layer in layers}

    def make(name: str, weight: Array, bias: Array | None) -> Linear:
        layer = by_name.get(name)
        return Dense(name, weight, bias) if layer is None else layer.linear(bias)

    return make


def quantized_factory(
    source: ModelSource, options: Options, pieces: Sequence[Sequence[int]] = (), progress: Progress | None = None
) -> LinearFactory:
    """Return a factory whose layers compute as the options say; arguments and errors as `quantize_layers`.

    `normal` without hybrid rate and corrections is quantized as the network is made, and takes no further memory.
    """
    options.check()
    if options.needs_calibration or options.hybrid_rate or options.low_rank:
        return factory_of(quantize_layers(source, options, pieces, progress))
    dtypes = layer_dtypes(source, options)

    def make(name: str, weight: Array, bias: Array | None) -> Linear:
        dtype = dtypes.get(name)
        return Dense(name, weight, bias) if dtype is None else quantize_layer(name, weight, dtype, options, None).linear(bias)

    return make
