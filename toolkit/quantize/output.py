"""From what was asked for to files: calibrate, quantize, write, and say what came of it.

In: a `Request`. Out: the model in its form, its `recipe.json`, and an `Outcome` of lines for a person. Called by
`toolkit.commands.quantize`; everything it does is in the modules beside this one.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal, cast

import msgspec

from rkfleet.errors import FailedPrecondition, Invalid
from toolkit.loading import ModelSource, open_model
from toolkit.quantize.apply import layer_dtypes, quantize_layers, refused_widths
from toolkit.quantize.calibration import Progress, read_samples, tokenize
from toolkit.quantize.checkpoint import read_layers, write_checkpoint, write_layers
from toolkit.quantize.gguf_output import ACTIVATIONS, Difference, write_gguf
from toolkit.quantize.options import Options, OutputLayer, parse_algorithm
from toolkit.recipe import Calibration, Recipe, SourceFile
from toolkit.tokens.open import open_tokenizer

__all__ = ["Outcome", "Request", "progress_bar", "quantize_model"]

HASH_BYTES: Final = 1 << 20
DIFFERENCES_SHOWN: Final = 5


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a person asked for, in their words.

    Attributes:
        qparams: Cache of quantized layers, read if it is there and made of the same recipe, else written.
    """

    source: Path
    output: Path
    dtype: str
    algorithm: str = "normal"
    calibration: Path | None = None
    optimization_level: int = 0
    hybrid_rate: float = 0.0
    output_layer: str = "w8a8"
    form: Literal["gguf", "safetensors"] = "gguf"
    qparams: Path | None = None


class Outcome(msgspec.Struct, frozen=True):
    """What was made.

    Attributes:
        lines: For a person.
    """

    recipe: Recipe
    differences: tuple[Difference, ...]
    lines: tuple[str, ...]


def quantize_model(request: Request) -> Outcome:
    """Do it.

    Raises:
        NotFound: The model or the calibration file is not there.
        Invalid: Options do not go together, or a file is damaged.
        FailedPrecondition: Calibration is needed and missing, or the output exists.
    """
    algorithm, rank = parse_algorithm(request.algorithm)
    options = Options(
        dtype=request.dtype,
        algorithm=algorithm,
        low_rank=rank,
        optimization_level=request.optimization_level,
        hybrid_rate=request.hybrid_rate,
        output_layer=cast("OutputLayer", request.output_layer),
    ).check()
    if request.output.exists():
        raise FailedPrecondition(f"{str(request.output)!r} exists: remove it or name another output")
    if options.needs_calibration and request.calibration is None:
        raise FailedPrecondition(
            f"algorithm {request.algorithm!r} with optimization level {options.optimization_level} needs a calibration file: pass"
            " --calibration FILE; `rkfleet toolkit calibrate` makes one"
        )
    source = open_model(request.source)
    pieces: list[list[int]] = []
    calibration = None
    if request.calibration is not None:
        content, samples = read_samples(request.calibration)
        pieces = tokenize(samples, open_tokenizer(source))
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        calibration = Calibration(sha256=digest, samples=len(samples), tokens=sum(len(piece) for piece in pieces))
    recipe = Recipe(
        maker=f"rkfleet {version('rkfleet')}",
        sources=tuple(_digest(file) for file in _files(request.source)),
        output=request.form,
        dtype=options.dtype,
        algorithm=options.algorithm,
        low_rank=options.low_rank,
        optimization_level=options.optimization_level,
        hybrid_rate=options.hybrid_rate,
        output_layer=options.output_layer,
        calibration=calibration,
        scheme=options.scheme,
    )
    with progress_bar() as progress:
        layers = quantize_layers(source, options, pieces, progress)
        if request.qparams is not None:
            if not request.qparams.exists():
                write_layers(request.qparams, layers, recipe)
            layers = read_layers(request.qparams, recipe)
        differences: list[Difference] = []
        if request.form == "gguf":
            differences = write_gguf(request.output, source, layers, recipe)
            request.output.with_name(f"{request.output.stem}.recipe.json").write_bytes(recipe.encode() + b"\n")
        else:
            write_checkpoint(request.output, source, layers, recipe)
    return Outcome(recipe, tuple(differences), tuple(_lines(request, source, options, recipe, differences)))


def _lines(request: Request, source: ModelSource, options: Options, recipe: Recipe, differences: list[Difference]) -> Iterator[str]:
    yield f"wrote {request.output} ({options.dtype}, {request.algorithm}; {recipe.scheme})"
    yield f"recipe {recipe.digest}"
    for sentence in refused_widths(source, layer_dtypes(source, msgspec.structs.replace(options, hybrid_rate=0.0))):
        yield f"warning: {sentence}"
    if request.form == "gguf":
        yield f"not in the file: {ACTIVATIONS}"
        if not differences:
            yield "weights: every value is as quantized"
        for one in sorted(differences, key=lambda one: -one.relative)[:DIFFERENCES_SHOWN]:
            yield f"differs: {one.name} as {one.type} by {one.relative:.2e} of its norm"
        if len(differences) > DIFFERENCES_SHOWN:
            yield f"differs: {len(differences) - DIFFERENCES_SHOWN} further tensors by less"
        if options.low_rank:
            yield f"the correction of rank {options.low_rank} is {request.output.stem}-lora.gguf beside it: load both"


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]


def _digest(path: Path) -> SourceFile:
    hashed = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(HASH_BYTES):
                hashed.update(piece)
    except OSError as error:
        raise Invalid(f"model file {str(path)!r} cannot be read: {error.strerror or error}") from error
    return SourceFile(path=path.name, sha256=f"sha256:{hashed.hexdigest()}", size_bytes=path.stat().st_size)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on a terminal's standard error; nothing where that is piped."""
    from rich.console import Console  # noqa: PLC0415 (only commands draw)
    from rich.progress import Progress as Bars  # noqa: PLC0415
    from rich.progress import TaskID  # noqa: PLC0415

    console = Console(file=sys.stderr)
    tasks: dict[str, TaskID] = {}
    with Bars(console=console, disable=not console.is_terminal) as bars:

        def show(what: str, done: int, whole: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=whole)
            bars.update(tasks[what], completed=done)

        yield show
