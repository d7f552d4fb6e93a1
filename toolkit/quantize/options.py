"""What may be asked of quantization, and the vendor's rules about it.

In: words of a command line or a recipe. Out: `Options`, checked. Rules are those of the vendor's `build` (RKLLM SDK user guide 1.3.0), so
that what works here works there: `normal` takes every dtype, `gdq` and `grq` only w4a16 and w4a16_gN, ranks go from 1 to 64, 0 <= hybrid
rate < 1. Which chip takes which dtype is `toolkit.platforms`.
"""

from __future__ import annotations

import re
from typing import Final, Literal, get_args

import msgspec

from rkfleet.errors import Invalid
from toolkit.dtypes import Dtype, dtype_of
from toolkit.recipe import Algorithm

__all__ = ["RANK_MAX", "SCHEMES", "Options", "OutputLayer", "parse_algorithm"]

RANK_MAX: Final = 64
OutputLayer = Literal["w8a8", "same", "float"]

SCHEMES: Final = {
    "normal": "round to nearest, symmetric; at 4 bits scales of least squared error",
    "grq": "GPTQ (arXiv:2210.17323) with static groups and columns by falling diagonal",
    "gdq": "SignRound (arXiv:2309.05516) on the layer's second moments, begun from GPTQ (arXiv:2210.17323)",
}
LOW_RANK_SCHEME: Final = "error of low rank by LQER (arXiv:2402.02446)"
SMOOTHING_SCHEME: Final = "activations smoothed by SmoothQuant (arXiv:2211.10438)"
_ALGORITHM: Final = re.compile(r"(normal|gdq|grq)(?:_r([0-9]{1,3}))?")
# The other grouping of hybrid_rate; 128 is the largest group of four bits and the finest of eight, and the one both share.
_GROUP_OF_HYBRID: Final = 128


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is to be quantized.

    Attributes:
        low_rank: `_rN`; 0 for none.
        optimization_level: 1 smooths activations of `a8` layers, for which there must be calibration.
        hybrid_rate: Share of layers that take the other grouping.
        output_layer: The last layer: `w8a8`, the model's dtype, or float. The vendor does not say what it does; eight bits is what its
            file sizes allow and what GGUF quantizers do alike, because four bits hurt this layer most.

    Raises:
        Invalid: From `check`, naming field and rule.
    """

    dtype: str
    algorithm: Algorithm = "normal"
    low_rank: int = 0
    optimization_level: int = 0
    hybrid_rate: float = 0.0
    output_layer: OutputLayer = "w8a8"

    def check(self) -> Options:
        """Return itself if it may be asked for.

        Raises:
            Invalid: A value is out of range, or algorithm and dtype do not go together.
        """
        dtype = dtype_of(self.dtype)
        if self.algorithm != "normal" and not (dtype.weight_bits == 4 and dtype.activation_bits == 16):
            raise Invalid(
                f"algorithm {self.algorithm!r} does not go with dtype {self.dtype!r}: gdq and grq take w4a16 and w4a16_gN only, as in the"
                " vendor's toolkit; use algorithm normal, or dtype w4a16_g128"
            )
        if not 0 <= self.low_rank <= RANK_MAX:
            raise Invalid(f"rank {self.low_rank} is not from 1 to {RANK_MAX}; write the algorithm as {self.algorithm}_r8, for example")
        if self.optimization_level not in (0, 1):
            raise Invalid(f"optimization level {self.optimization_level} is neither 0 nor 1")
        if not 0 <= self.hybrid_rate < 1:
            raise Invalid(f"hybrid rate {self.hybrid_rate} must be at least 0 and less than 1; 0 turns it off")
        if self.hybrid_rate and self.counterpart is None:
            raise Invalid(f"hybrid rate {self.hybrid_rate} needs a dtype with and without groups; {self.dtype!r} has only one: use 0")
        if self.output_layer not in get_args(OutputLayer):
            raise Invalid(f"output layer {self.output_layer!r} is none of {', '.join(get_args(OutputLayer))}")
        return self

    @property
    def needs_calibration(self) -> bool:
        """Whether there is no result without a calibration text."""
        return self.algorithm != "normal" or self.optimization_level == 1

    @property
    def counterpart(self) -> Dtype | None:
        """The dtype that a share of layers takes by `hybrid_rate`."""
        dtype = dtype_of(self.dtype)
        bare = f"w{dtype.weight_bits}a{dtype.activation_bits}"
        name = bare if dtype.group else f"{bare}_g{_GROUP_OF_HYBRID}"
        try:
            return dtype_of(name)
        except Invalid:
            return None

    @property
    def output_dtype(self) -> Dtype | None:
        """Dtype of the output layer; None for float."""
        return {"w8a8": dtype_of("w8a8"), "same": dtype_of(self.dtype), "float": None}[self.output_layer]

    @property
    def scheme(self) -> str:
        """What the algorithm is built on, with its sources."""
        parts = [SCHEMES[self.algorithm]]
        parts += [LOW_RANK_SCHEME] if self.low_rank else []
        parts += [SMOOTHING_SCHEME] if self.optimization_level else []
        return "; ".join(parts)


def parse_algorithm(word: str) -> tuple[Algorithm, int]:
    """Return algorithm and rank of `grq` or `grq_r8`.

    Raises:
        Invalid: It is neither.
    """
    found = _ALGORITHM.fullmatch(word)
    if found is None or (found[2] is not None and not 1 <= int(found[2]) <= RANK_MAX):
        raise Invalid(f"algorithm {word!r} is none of normal, grq, gdq, each with or without a rank _r1 to _r{RANK_MAX}")
    return msgspec.convert(found[1], Algorithm), int(found[2] or 0)
