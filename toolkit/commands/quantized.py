"""What commands share that run a model as a dtype would make it: words to options, options to a network.

In: words of the command line. Out: checked `Options`, and a factory or a `Network` in that arithmetic. Used by perplexity, compare,
recommend and chat.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from toolkit.loading import ModelSource
    from toolkit.quantize.options import Options
    from toolkit.simulate.linear import LinearFactory
    from toolkit.simulate.network import Network
    from toolkit.tokens.base import Tokenizer

__all__ = ["Wanted", "factory_for", "network_of", "refuse_stored"]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Words about quantization that go for every dtype of a command."""

    algorithm: str = "normal"
    calibration: Path | None = None
    optimization_level: int = 0
    hybrid_rate: float = 0.0

    def options(self, dtype: str, *, lenient: bool = False) -> Options:
        """Return options for a dtype.

        Args:
            dtype: The vendor's word.
            lenient: Where the dtype does not take the algorithm, level or rate, take the nearest it does; for lists of dtypes.

        Raises:
            Invalid: They do not go together.
        """
        from toolkit.dtypes import dtype_of
        from toolkit.quantize.options import Options, parse_algorithm

        algorithm, low_rank = parse_algorithm(self.algorithm)
        found = dtype_of(dtype)
        if lenient and not (found.weight_bits == 4 and found.activation_bits == 16):
            algorithm = "normal"
        level = 0 if lenient and found.activation_bits != 8 else self.optimization_level
        options = Options(dtype=dtype, algorithm=algorithm, low_rank=low_rank, optimization_level=level, hybrid_rate=self.hybrid_rate)
        if lenient and options.hybrid_rate and options.counterpart is None:
            options = msgspec.structs.replace(options, hybrid_rate=0.0)
        return options.check()


def refuse_stored(model: ModelSource) -> None:
    """Refuse a model that is quantized already, where full precision is what others are held against.

    Raises:
        Invalid: It is a directory of `rkfleet toolkit quantize`.
    """
    from rkfleet.errors import Invalid
    from toolkit.quantize.checkpoint import is_stored

    if is_stored(model.path):
        raise Invalid(f"{str(model.path)!r} is quantized already; give the model that it was made of, or measure it with perplexity")


def factory_for(
    model: ModelSource, tokenizer: Tokenizer, options: Options | None, calibration: Path | None, tell: Callable[[str, int, int], None]
) -> LinearFactory:
    """Return what makes the linear layers of a model as it is, or as options have it; a quantized directory is in its own arithmetic.

    The toolkit's own prose calibrates where no file is given.
    """
    from toolkit.evaluate.texts import CALIBRATION
    from toolkit.quantize.apply import quantized_factory
    from toolkit.quantize.calibration import read_samples, tokenize
    from toolkit.quantize.checkpoint import stored_factory

    if options is None:
        return stored_factory(model.path)
    pieces = []
    if options.needs_calibration or options.low_rank or options.hybrid_rate:
        _, samples = read_samples(calibration or CALIBRATION)
        pieces = tokenize(samples, tokenizer)
    return quantized_factory(model, options, pieces, tell)


def network_of(
    model: ModelSource, tokenizer: Tokenizer, options: Options | None, calibration: Path | None, tell: Callable[[str, int, int], None]
) -> Network:
    """Return a network of `factory_for`."""
    from toolkit.simulate.network import Network

    return Network(model, model.family, factory_for(model, tokenizer, options, calibration, tell))
