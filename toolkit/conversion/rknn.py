"""An ONNX model for the NPU by rknn-toolkit2: image encoders and other networks beside a language model, and its simulator on the PC.

In: an `OnnxConversion`. Out: `check`, `plan_of` and `recipe_of`, as in `rkllm` beside this file. Called by `toolkit.commands.convert_onnx`.

Source: RKNN SDK user guide, rknn.api.RKNN: config, load_onnx, build, export_rknn, init_runtime (without a target it is the simulator),
inference. The first bytes of a file were read off what rknn-toolkit2 2.5.0 wrote.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import msgspec

from rkfleet.errors import FailedPrecondition, Invalid, NotFound
from toolkit import platforms
from toolkit.conversion.convert import Plan, check_output
from toolkit.conversion.interpreter import RKNN
from toolkit.conversion.sources import digest_of
from toolkit.recipe import Calibration, Recipe

__all__ = ["DTYPES", "SOCS", "CheckedOnnx", "OnnxConversion", "check", "plan_of", "recipe_of"]

DTYPES: Final = ("i8", "fp16")
SOCS: Final = (*platforms.SOCS, "rk3566", "rk3568")  # Chips of rknn-toolkit2 that are no line of language models besides.
SUFFIX: Final = ".rknn"
MAGIC: Final = b"RKNN"
LIST_BYTES_MAX: Final = 16 << 20  # A hundred thousand paths; the vendor takes 20 to 500 samples.
INPUTS_MAX: Final = 64
NPY_MAGIC: Final = b"\x93NUMPY"


class OnnxConversion(msgspec.Struct, frozen=True, kw_only=True):
    """What a person asked for.

    Attributes:
        calibration_list: Text file with the paths of a sample's inputs in each line, relative to itself.
        simulate: One .npy file for each input, run through the simulator once it is built.
    """

    source: Path
    output: Path
    soc: str
    dtype: str = "fp16"
    calibration_list: Path | None = None
    simulate: tuple[Path, ...] = ()


class CheckedOnnx(msgspec.Struct, frozen=True):
    """A conversion that can begin.

    Attributes:
        samples: Lines of absolute paths.
        dimensions: Number of dimensions of each simulated input.
    """

    conversion: OnnxConversion
    samples: tuple[tuple[Path, ...], ...]
    dimensions: tuple[int, ...]

    @property
    def simulated(self) -> str:
        """Name of the file with the simulator's outputs."""
        return _simulated(self.conversion.output)


def check(one: OnnxConversion) -> CheckedOnnx:
    """Check everything that can be checked without the vendor's toolkit.

    Raises:
        Invalid: A word is unknown, or a file is of another form.
        NotFound: A file is not there.
        FailedPrecondition: The output exists.
    """
    check_output(one.output, SUFFIX, others=(_simulated(one.output),) if one.simulate else ())
    if one.soc.lower() not in SOCS:
        raise Invalid(f"soc: {one.soc!r} is no chip of {RKNN}; there are {', '.join(SOCS)}")
    if one.dtype not in DTYPES:
        raise Invalid(f"dtype: {one.dtype!r} is unknown; there are {', '.join(DTYPES)}")
    if not one.source.is_file():
        raise NotFound(f"model {str(one.source)!r} is no file; give an ONNX file")
    if one.source.suffix != ".onnx":
        raise Invalid(f"model {str(one.source)!r} does not end in .onnx; {RKNN} is driven here for ONNX files only")
    if one.dtype == "i8" and one.calibration_list is None:
        raise FailedPrecondition("dtype: i8 fits its scales to samples: pass --calibration-list FILE, or --dtype fp16")
    if one.dtype != "i8" and one.calibration_list is not None:
        raise Invalid(f"calibrationList: {one.dtype} has no scales to fit; leave --calibration-list out, or pass --dtype i8")
    if len(one.simulate) > INPUTS_MAX:
        raise Invalid(f"simulate: {len(one.simulate)} inputs are more than {INPUTS_MAX}")
    samples = _samples(one.calibration_list) if one.calibration_list is not None else ()
    return CheckedOnnx(one, samples, tuple(_dimensions(path) for path in one.simulate))


def plan_of(checked: CheckedOnnx, release: str) -> Plan:
    """Return the calls.

    Args:
        checked: As `check` found it.
        release: Of rknn-toolkit2 in the interpreter.
    """
    one = checked.conversion
    quantize = one.dtype == "i8"
    build: dict[str, Any] = {"do_quantization": quantize}
    if quantize:
        build["dataset"] = _path(one.calibration_list) if one.calibration_list is not None else None
    steps: list[dict[str, Any]] = [
        {"stage": "configure", "call": "config", "arguments": {"target_platform": one.soc.lower()}},
        {"stage": "load", "call": "load_onnx", "arguments": {"model": _path(one.source)}},
        {"stage": "build", "call": "build", "arguments": build},
        {"stage": "export", "call": "export_rknn", "arguments": {"export_path": f"./{one.output.name}"}},
    ]
    made = [one.output.name]
    if one.simulate:
        # Arrays are in the order of the ONNX file; the vendor's own default for four dimensions is the other one.
        order = {"data_format": ["nchw"] * len(one.simulate)} if 4 in checked.dimensions else {}
        inputs = [_path(path) for path in one.simulate]
        steps += [
            {"stage": "start simulator", "call": "init_runtime", "arguments": {}},
            {"stage": "simulate", "call": "inference", "arguments": order, "inputs": inputs, "output": f"./{checked.simulated}"},
        ]
        made.append(checked.simulated)
    job = {"module": "rknn.api", "class": "RKNN", "arguments": {"verbose": False}, "steps": steps}
    return Plan(maker=f"{RKNN} {release}".strip(), job=job, made=tuple(made), magic=MAGIC)


def recipe_of(checked: CheckedOnnx, release: str) -> Recipe:
    """Return the recipe; every file that goes in is read for its digest."""
    one = checked.conversion
    calibration = None
    if one.calibration_list is not None:
        digest = digest_of(one.calibration_list).sha256
        calibration = Calibration(sha256=digest, samples=len(checked.samples), tokens=0)
    samples = sorted({path for sample in checked.samples for path in sample})
    return Recipe(
        maker=f"{RKNN} {release}".strip(),
        sources=tuple(digest_of(path) for path in (one.source, *samples)),
        output="rknn",
        dtype=one.dtype,
        soc=one.soc.lower(),
        calibration=calibration,
        scheme=f"{RKNN}'s own",
    )


def _samples(path: Path) -> tuple[tuple[Path, ...], ...]:
    try:
        with path.open("rb") as file:
            text = file.read(LIST_BYTES_MAX + 1)
        lines = text.decode().splitlines()
    except OSError as error:
        raise NotFound(f"calibrationList: {str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"calibrationList: {str(path)!r} is no text; write the paths of a sample's inputs in each line") from error
    if len(text) > LIST_BYTES_MAX:
        raise Invalid(f"calibrationList: {str(path)!r} has more than {LIST_BYTES_MAX} bytes; some 100 samples are enough")
    samples = tuple(tuple(Path(os.path.abspath(path.parent / word)) for word in line.split()) for line in lines if line.strip())
    if not samples:
        raise Invalid(f"calibrationList: {str(path)!r} is empty; write the paths of a sample's inputs in each line")
    for number, sample in enumerate(samples, 1):
        for one in sample:
            if not one.is_file():
                raise NotFound(f"calibrationList: {str(path)!r} names {str(one)!r} as sample {number}, which is no file")
    return samples


def _dimensions(path: Path) -> int:
    """Return the number of dimensions of an array in a file, by its head."""
    import numpy as np  # noqa: PLC0415 (only where something is simulated)

    try:
        with path.open("rb") as file:
            if file.read(len(NPY_MAGIC)) != NPY_MAGIC:
                raise Invalid(f"simulate: {str(path)!r} is no .npy file; write it with numpy.save")
        return int(np.load(path, mmap_mode="r", allow_pickle=False).ndim)
    except OSError as error:
        raise NotFound(f"simulate: {str(path)!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Invalid(f"simulate: {str(path)!r} is damaged: {error}") from error


def _simulated(output: Path) -> str:
    return f"{output.stem}.simulated.npz"


def _path(path: Path) -> str:
    return str(path.absolute())
