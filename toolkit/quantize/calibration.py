"""What the inputs of every linear layer look like on a text: second moments and largest magnitudes.

In: a model, its tokenizer, and a calibration file; the vendor's JSON, a list of objects with `input` (prompt with the chat template
applied) and `target` (answer), or plain text. Out: `Inputs` by layer, in rounds that each fit MOMENTS_BYTES_MAX. A round is one run of
the model in full precision over the text, with observers in the place of its linear layers; a model that is larger than the limit is run
once for each group of layers. Called by `toolkit.quantize.apply`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from rkfleet.errors import Invalid, NotFound
from toolkit.checkpoint.base import Array
from toolkit.loading import ModelSource
from toolkit.quantize.second_order import ROWS_MAX, Inputs
from toolkit.simulate.cache import KvCache
from toolkit.simulate.linear import Dense, Linear
from toolkit.simulate.network import OUTPUT, Network
from toolkit.tokens.base import Tokenizer

__all__ = ["CalibrationSample", "Progress", "observe", "read_samples", "rounds", "tokenize"]

FILE_BYTES_MAX: Final = 64 << 20  # A thousand times the vendor's example of 20 samples.
SAMPLES_MAX: Final = 4096
SAMPLE_TOKENS_MAX: Final = 2048  # Longer samples are cut; attention to itself would otherwise dominate the run.
TEXT_TOKENS: Final = 512  # Plain text is cut into pieces of this length, as the vendor's perplexity example cuts its text.
TOKENS_MAX: Final = 1 << 17  # GPTQ's own setting, 128 pieces of 2048 tokens, is twice this; moments have converged before.
ROWS_OF_PIECE: Final = 24  # Of every piece, evenly spread; the first pieces fill what is kept.
MOMENTS_BYTES_MAX: Final = 1 << 30  # Beside the model in float32, which is larger for all models where this limit matters.

Progress = Callable[[str, int, int], None]
"""Told what is done, how much of it is, and of how much."""


class CalibrationSample(msgspec.Struct, frozen=True):
    """One entry of the vendor's file.

    Attributes:
        input: The question, with the chat template applied.
        target: The answer.
    """

    input: str
    target: str = ""


def read_samples(path: Path) -> tuple[bytes, tuple[CalibrationSample, ...]]:
    """Return the bytes of a calibration file, and its samples; a plain text is one sample without an answer.

    Raises:
        NotFound: There is no such file.
        Invalid: It is too large, empty, or JSON of another form.
    """
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise NotFound(f"calibration file {str(path)!r} cannot be read: {error.strerror or error}") from error
    if len(content) > FILE_BYTES_MAX:
        raise Invalid(f"calibration file {str(path)!r} has more than {FILE_BYTES_MAX} bytes; some 20 samples are enough")
    if content.lstrip()[:1] == b"[":
        try:
            samples = msgspec.json.decode(content, type=tuple[CalibrationSample, ...])
        except msgspec.MsgspecError as error:
            raise Invalid(f'calibration file {str(path)!r} is no list of {{"input": …, "target": …}}: {error}') from error
    else:
        samples = (CalibrationSample(content.decode(errors="replace")),)
    samples = tuple(sample for sample in samples if sample.input or sample.target)
    if not 0 < len(samples) <= SAMPLES_MAX:
        raise Invalid(f"calibration file {str(path)!r} has {len(samples)} samples that are not empty; from 1 to {SAMPLES_MAX} are taken")
    return content, samples


def tokenize(samples: Sequence[CalibrationSample], tokenizer: Tokenizer, tokens_max: int = TOKENS_MAX) -> list[list[int]]:
    """Return the token ids that are run: a sample without an answer in pieces of TEXT_TOKENS, others whole, up to `tokens_max` together."""
    pieces: list[list[int]] = []
    left = tokens_max
    for sample in samples:
        ids = tokenizer.encode(sample.input + sample.target, special=True)
        size = SAMPLE_TOKENS_MAX if sample.target else TEXT_TOKENS
        ids = ids[:SAMPLE_TOKENS_MAX] if sample.target else ids
        pieces.extend(ids[start : min(start + size, left)] for start in range(0, min(len(ids), left), size))
        left -= min(len(ids), left)
    return [piece for piece in pieces if piece]


def rounds(source: ModelSource, names: Sequence[str]) -> list[list[str]]:
    """Return layers in groups whose moments fit MOMENTS_BYTES_MAX together, each at least one layer."""
    groups: list[list[str]] = []
    room = 0
    for name in names:
        needed = 4 * source.tensors[_weight_of(source, name)].shape[1] ** 2
        if not groups or needed > room:
            groups.append([])
            room = MOMENTS_BYTES_MAX
        groups[-1].append(name)
        room -= needed
    return groups


def observe(
    source: ModelSource, names: Sequence[str], pieces: Sequence[Sequence[int]], progress: Progress | None = None
) -> dict[str, Inputs]:
    """Run a model over pieces of text and return what the named layers were given.

    Raises:
        Invalid: A token is outside the vocabulary, or there is none.
    """
    if not any(pieces):
        raise Invalid("the calibration text has no tokens")
    largest = max(max(piece) for piece in pieces if piece)
    if largest >= source.hyperparameters.vocabulary:
        raise Invalid(f"the calibration text has token {largest}; the model has {source.hyperparameters.vocabulary}: wrong tokenizer?")
    observer = _Observer(frozenset(names))
    network = Network(source, source.family, observer.make)
    cache = KvCache(source.hyperparameters, max(len(piece) for piece in pieces))
    for done, piece in enumerate(pieces):
        cache.truncate(0)
        hidden = network.hidden(network.embed(list(piece)), cache)
        if OUTPUT in observer.names:
            network.logits(hidden)
        if progress is not None:
            progress("calibrating", done + 1, len(pieces))
    return {name: observer.inputs[observer.same.get(name, name)] for name in names if observer.same.get(name, name) in observer.inputs}


class _Observer:
    """Sums up what layers are given. Layers that are given the very same array, as query, key and value are, share one sum.

    Attributes:
        names: Layers that are looked at.
        same: Layer whose sum stands for another's.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self.names: Final = names
        self.inputs: Final[dict[str, Inputs]] = {}
        self.same: Final[dict[str, str]] = {}
        self._last: tuple[str, Array] | None = None

    def make(self, name: str, weight: Array, bias: Array | None) -> Linear:
        """Return a layer that looks at its input; of the output layer nobody wants the result."""
        dense = Dense(name, weight, bias)
        if name not in self.names:
            return dense

        def watched(x: Array) -> Array:
            self.look(name, x)
            return np.zeros((x.shape[0], 1), np.float32) if name == OUTPUT else dense(x)

        return watched

    def look(self, name: str, x: Array) -> None:
        """Add tokens."""
        first, last = self._last or ("", None)
        if last is x and self.same.get(name, first) == first and name not in self.inputs:
            self.same[name] = first
            return
        assert name not in self.same, f"layer {name} shares its input with {self.same.get(name)} only at times"
        self._last = name, x
        seen = self.inputs.get(name)
        maxima = np.abs(x).max(axis=0)
        rows = x[:: -(-x.shape[0] // ROWS_OF_PIECE)].copy()
        if seen is None:
            self.inputs[name] = Inputs(x.T @ x, maxima, x.shape[0], rows)
            return
        np.add(seen.moments, x.T @ x, out=seen.moments)
        rows = np.concatenate([seen.rows, rows])[:ROWS_MAX]
        self.inputs[name] = Inputs(seen.moments, np.maximum(seen.maxima, maxima), seen.tokens + x.shape[0], rows)


def _weight_of(source: ModelSource, name: str) -> str:
    return f"{name}.weight" if f"{name}.weight" in source.tensors else "token_embd.weight"
