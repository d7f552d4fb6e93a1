"""A model for the NPU by RKLLM-Toolkit: what is asked for, checked against every table, as calls of `rkllm.api`.

In: a `Conversion`. Out: `check` (which raises before anything starts), `plan_of` (calls with the parameters that the release knows) and
`recipe_of`. Called by `toolkit.commands.convert`.

Source: RKLLM SDK user guides 1.1.0 to 1.3.0, load_huggingface, load_gguf, build, export_rkllm; the tables are `toolkit.platforms`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from rkfleet.errors import Cause, Invalid, NotFound
from toolkit import platforms
from toolkit.checkpoint.json_file import read_json
from toolkit.conversion.convert import Plan, check_output
from toolkit.conversion.interpreter import RKLLM
from toolkit.conversion.sources import Source, check_calibration, digest_of, files_of, look_at
from toolkit.recipe import Algorithm, Calibration, Recipe

__all__ = ["DEVICES", "LOAD_DTYPES", "Checked", "Conversion", "check", "made_of", "plan_of", "recipe_of"]

DEVICES: Final = ("cpu", "cuda")
LOAD_DTYPES: Final = ("float32", "float16", "bfloat16")
SUFFIX: Final = ".rkllm"
SCHEME: Final = "RKLLM-Toolkit's own, which is not published"


class Conversion(msgspec.Struct, frozen=True, kw_only=True):
    """What a person asked for, in the vendor's words.

    Attributes:
        release: Of RKLLM-Toolkit.
        npu_cores: 0 is as many as the chip has.
        max_context: Tokens; 0 leaves it to the vendor's default.
        qparams: Cache of an earlier gdq or grq run.
        custom_config: JSON that names the layers of a custom model.
    """

    source: Path
    output: Path
    soc: str
    dtype: str
    release: str = platforms.NEWEST
    algorithm: str = "normal"
    npu_cores: int = 0
    optimization_level: int = 0
    hybrid_rate: float = 0.0
    max_context: int = 0
    calibration: Path | None = None
    lora: Path | None = None
    qparams: Path | None = None
    device: str = "cpu"
    load_dtype: str = ""
    tokenizer: bool = True
    embedding: bool = True
    custom_config: Path | None = None


class Checked(msgspec.Struct, frozen=True):
    """A conversion that the tables take, and what was seen on the way.

    Attributes:
        samples: In the calibration file.
        notes: What a person should know, though nothing is refused.
    """

    conversion: Conversion
    source: Source
    samples: int
    notes: tuple[str, ...]


def check(conversion: Conversion, *, python: str = "") -> Checked:
    """Check everything that can be checked without the vendor's toolkit.

    Args:
        conversion: What is asked for.
        python: Version of the interpreter, as 3.10; empty for none yet.

    Raises:
        Invalid: The tables refuse something; there is a cause for each argument, and each names its row.
        NotFound: A file is not there.
        FailedPrecondition: The output exists.
    """
    one = conversion
    check_output(one.output, SUFFIX, others=made_of(one)[1:])
    source = look_at(one.source)
    causes = [Cause(field, message) for field, message in _refusals(one, source)]
    try:
        platforms.check(_request(one, source, python))
    except Invalid as error:
        causes[:0] = error.causes
    if causes:
        more = f" (and {len(causes) - 1} more)" if len(causes) > 1 else ""
        raise Invalid(f"{causes[0].field}: {causes[0].message}{more}", tuple(causes))
    _check_files(one, source)
    samples = check_calibration(one.calibration) if one.calibration is not None else 0
    return Checked(one, source, samples, tuple(_notes(one, source)))


def made_of(conversion: Conversion) -> tuple[str, ...]:
    """Return the names of the files that a conversion makes, the model first; an adapter is a file of its own."""
    stem = conversion.output.stem
    apart = conversion.lora is not None or "_r" in conversion.algorithm
    return (f"{stem}{SUFFIX}", f"{stem}_lora{SUFFIX}") if apart else (f"{stem}{SUFFIX}",)


def plan_of(checked: Checked) -> Plan:
    """Return the calls, each with the parameters that the release's function has."""
    one = checked.conversion
    names = made_of(one)
    load = f"load_{checked.source.kind}"
    steps = [
        _step(one, "load", load, _load_arguments(one, checked.source)),
        _step(one, "build", "build", _build_arguments(one)),
        _step(
            one,
            "export",
            "export_rkllm",
            {"export_path": f"./{names[0]}", "export_tokenizer": one.tokenizer, "export_embedding": one.embedding},
        ),
    ]
    job = {"module": "rkllm.api", "class": "RKLLM", "arguments": {}, "steps": steps}
    return Plan(maker=f"{RKLLM} {one.release}", job=job, made=names, kept=(".qparams",))


def recipe_of(checked: Checked) -> Recipe:
    """Return the recipe; every file that goes in is read for its digest."""
    one = checked.conversion
    name, _, rank = one.algorithm.partition("_r")
    calibration = None
    if one.calibration is not None:
        calibration = Calibration(sha256=digest_of(one.calibration).sha256, samples=checked.samples, tokens=0)
    more = [path for path in (one.qparams, one.custom_config) if path is not None]
    return Recipe(
        maker=f"{RKLLM} {one.release}",
        sources=tuple(digest_of(path) for path in (*files_of(one.source), *more)),
        output="rkllm",
        dtype=one.dtype,
        soc=one.soc.lower(),
        algorithm=cast("Algorithm", name),
        low_rank=int(rank or 0),
        optimization_level=one.optimization_level,
        hybrid_rate=one.hybrid_rate,
        npu_cores=_cores(one),
        max_context=one.max_context,
        adapters=tuple(digest_of(path) for path in files_of(one.lora)) if one.lora is not None else (),
        calibration=calibration,
        load_dtype=_load_dtype(one, checked.source),
        left_out=tuple(name for name, there in (("tokenizer", one.tokenizer), ("embedding", one.embedding)) if not there),
        scheme=SCHEME,
    )


def _request(one: Conversion, source: Source, python: str) -> platforms.Request:
    return platforms.Request(
        release=one.release,
        soc=one.soc,
        dtype=one.dtype,
        algorithm=one.algorithm,
        npu_cores=one.npu_cores or None,
        max_context=one.max_context or None,
        hybrid_rate=one.hybrid_rate,
        optimization_level=one.optimization_level,
        source=source.kind,
        tensor_types=source.tensor_types,
        widths=source.widths,
        gptq=source.gptq,
        has_adapter=one.lora is not None,
        has_gpu=one.device == "cuda",
        has_calibration=one.calibration is not None,
        python=python,
    )


def _refusals(one: Conversion, source: Source) -> Iterator[tuple[str, str]]:
    """Yield what the tables of values do not look at: words of the command line, and parameters that a release does not have."""
    if one.device not in DEVICES:
        yield "device", f"device {one.device!r} is refused: row device of table load_huggingface takes {' or '.join(DEVICES)}"
    if one.load_dtype and one.load_dtype not in LOAD_DTYPES:
        yield "loadDtype", f"load dtype {one.load_dtype!r} is refused: row dtype of table load_huggingface takes {', '.join(LOAD_DTYPES)}"
    if one.release not in platforms.RELEASES:
        return  # Is refused already.
    load = f"load_{source.kind}"
    wanted = (
        ("device", load, "device", one.device == "cuda"),
        ("loadDtype", load, "dtype", bool(one.load_dtype)),
        ("customConfig", load, "custom_config", one.custom_config is not None),
        ("tokenizer", "export_rkllm", "export_tokenizer", not one.tokenizer),
        ("embedding", "export_rkllm", "export_embedding", not one.embedding),
    )
    for field, function, parameter, asked in wanted:
        if asked and (why := platforms.why_not_parameter(function, parameter, one.release)):
            yield field, why


def _check_files(one: Conversion, source: Source) -> None:
    """Check that every further file is there and is what it is taken for."""
    if one.custom_config is not None:
        read_json(one.custom_config)
    if one.qparams is not None and not one.qparams.is_file():
        raise NotFound(f"--qparams {str(one.qparams)!r} is no file; give the .qparams that an earlier gdq or grq conversion left")
    if one.lora is None:
        return
    if source.kind == "gguf":
        if not one.lora.is_file():
            raise NotFound(f"--lora {str(one.lora)!r} is no file: a GGUF model takes an adapter that is a GGUF file")
    elif not (one.lora / "adapter_config.json").is_file():
        raise NotFound(f"--lora {str(one.lora)!r} has no adapter_config.json: give the directory of a PEFT adapter")


def _notes(one: Conversion, source: Source) -> Iterator[str]:
    if one.calibration is None and source.gptq is None:
        yield "no --calibration: the vendor's toolkit quantizes without seeing text; `rkfleet toolkit calibrate` makes a file for it"
    if one.algorithm == "normal" and one.dtype.startswith("w4a16"):
        yield "the vendor advises grq for w4a16 types; it needs a GPU"
    if len(made_of(one)) > 1:
        yield f"two files come of it, {' and '.join(made_of(one))}; a board has to load both"


def _step(one: Conversion, stage: str, function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    taken = platforms.parameters_of(function, one.release)
    return {"stage": stage, "call": function, "arguments": {name: value for name, value in arguments.items() if name in taken}}


def _load_arguments(one: Conversion, source: Source) -> dict[str, Any]:
    arguments: dict[str, Any] = {"model": _path(one.source), "device": one.device, "dtype": _load_dtype(one, source)}
    if one.lora is not None:
        arguments["model_lora"] = _path(one.lora)
    if one.custom_config is not None:
        arguments["custom_config"] = _path(one.custom_config)
    return arguments


def _build_arguments(one: Conversion) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "do_quantization": True,
        "optimization_level": one.optimization_level,
        "quantized_dtype": one.dtype,
        "quantized_algorithm": one.algorithm,
        "num_npu_core": _cores(one),
        "extra_qparams": _path(one.qparams) if one.qparams is not None else None,
        "dataset": _path(one.calibration) if one.calibration is not None else None,
        "hybrid_rate": one.hybrid_rate,
        "target_platform": one.soc.lower(),
    }
    return arguments | ({"max_context": one.max_context} if one.max_context else {})


def _cores(one: Conversion) -> int:
    return one.npu_cores or max(platforms.npu_cores_of(one.soc, one.release), default=0)


def _load_dtype(one: Conversion, source: Source) -> str:
    """Return the type that weights are loaded as; empty where the release or the kind of file has no say."""
    known = not platforms.why_not_parameter(f"load_{source.kind}", "dtype", one.release)
    return (one.load_dtype or LOAD_DTYPES[0]) if known else ""


def _path(path: Path) -> str:
    return str(path.absolute())
