"""What RKLLM-Toolkit takes, release by release and chip by chip: the vendor's tables as rows, and one check against all of them.

In: a `Request`, what a conversion is to be made with. Out: nothing, or `Invalid` with a cause for every argument that is refused; each
names the row of the table that refuses it. `rkfleet toolkit convert` checks before it starts anything, `recommend` asks which types a chip
has, `rkfleet toolkit platforms` prints the rows. Pure.

Sources: RKLLM SDK user guides 1.1.0 (English), 1.2.0 (English), 1.2.1 to 1.3.0 (Chinese); wheels, requirements files and examples at the
release tags of github.com/airockchip/rknn-llm; its issues where a guide is silent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from rkfleet.errors import Cause, Invalid
from rkfleet.versions import version_order
from toolkit.dtypes import DTYPES, dtype_of

__all__ = [
    "NEWEST",
    "RELEASES",
    "SOCS",
    "Request",
    "Row",
    "algorithms_of",
    "check",
    "dtypes_of",
    "npu_cores_of",
    "parameters_of",
    "python_versions",
    "rows",
    "rows_of",
    "spans",
    "why_not_dtype",
    "why_not_parameter",
    "why_not_width",
]

RELEASES: Final = ("1.1.0", "1.1.1", "1.1.2", "1.1.3", "1.1.4", "1.2.0", "1.2.1", "1.2.2", "1.2.3", "1.3.0")
"""Releases whose files today's runtimes read. What 1.0 made has to be converted anew."""
NEWEST: Final = RELEASES[-1]

CONTEXT_STEP: Final = 32
CONTEXT_MAX: Final = 16384
RANK_MAX: Final = 64
OPTIMIZATION_LEVELS: Final = (0, 1)
BITS_OF_GPTQ: Final = {4: "1.1.4", 8: "1.2.0"}


class Row(msgspec.Struct, frozen=True):
    """One row of a table.

    Attributes:
        table: Name of the argument that the table is about, in the vendor's words.
        key: What the row is for: a chip, an algorithm, a release.
        values: What may stand there, each with the first release that takes it, and, where it was dropped, the first that does not.
    """

    table: str
    key: str
    values: tuple[tuple[str, str, str], ...]

    def taken(self, release: str) -> tuple[str, ...]:
        """Return the values that a release takes."""
        return tuple(value for value, since, until in self.values if _from(release, since) and not (until and _from(release, until)))

    def name(self) -> str:
        """Return what errors call it."""
        return f"row {self.key} of table {self.table}"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a conversion is to be made with, in the vendor's words; None is "not given".

    Attributes:
        source: `huggingface`, or `gguf` with the types of its tensors in `tensor_types`.
        architecture: Name in `architectures` of config.json; only shown.
        widths: Output widths of the model's linear layers by name.
        gptq: Bits and group of a GPTQ checkpoint.
    """

    release: str = NEWEST
    soc: str
    dtype: str
    algorithm: str = "normal"
    npu_cores: int | None = None
    max_context: int | None = None
    hybrid_rate: float = 0.0
    optimization_level: int = 0
    source: str = "huggingface"
    tensor_types: tuple[str, ...] = ()
    widths: dict[str, int] = {}
    gptq: tuple[int, int] | None = None
    has_adapter: bool = False
    has_gpu: bool = True
    has_calibration: bool = False
    python: str = ""


def _since(release: str, *values: str) -> tuple[tuple[str, str, str], ...]:
    return tuple((value, release, "") for value in values)


_G8: Final = ("w8a8_g128", "w8a8_g256", "w8a8_g512")
_G4: Final = ("w4a16_g32", "w4a16_g64", "w4a16_g128")

_DTYPES: Final = (
    Row("quantized_dtype", "RK3588", _since("1.1.0", "w8a8", *_G8)),
    Row("quantized_dtype", "RK3576", _since("1.1.0", "w8a8", "w4a16", *_G4)),
    Row("quantized_dtype", "RK3562", _since("1.2.0", "w8a8", *_G4, "w4a8_g32")),
    Row("quantized_dtype", "RV1126B", _since("1.2.1", "w8a8", "w4a16", *_G4)),
)
_CORES: Final = (
    Row("num_npu_core", "RK3588", _since("1.1.0", "1", "2", "3")),
    Row("num_npu_core", "RK3576", _since("1.1.0", "1", "2")),
    Row("num_npu_core", "RK3562", _since("1.2.0", "1")),
    Row("num_npu_core", "RV1126B", _since("1.2.1", "1")),
)
_ALGORITHMS: Final = (
    Row("quantized_algorithm", "w8a8*", _since("1.1.0", "normal") + _since("1.2.1", "normal_rN")),
    Row(
        "quantized_algorithm",
        "w4a16*",
        (
            *_since("1.1.0", "normal"),
            ("gdq", "1.1.0", "1.3.0"),
            *_since("1.2.0", "grq"),
            ("gdq_rN", "1.2.1", "1.3.0"),
            *_since("1.2.1", "normal_rN", "grq_rN"),
        ),
    ),
    Row("quantized_algorithm", "w4a8*", _since("1.2.0", "normal") + _since("1.2.1", "normal_rN")),
)
_PYTHONS: Final = (
    Row("python", "1.1.0", _since("1.1.0", "3.8")),
    Row("python", "1.1.1 to 1.1.4", _since("1.1.1", "3.8", "3.10")),
    Row("python", "1.2.0 to 1.2.2", _since("1.2.0", "3.8", "3.9", "3.10", "3.11", "3.12")),
    Row("python", "1.2.3 and 1.3.0", _since("1.2.3", "3.9", "3.10", "3.11", "3.12")),
)
_GGUF_TYPES: Final = Row("load_gguf", "tensor types", _since("1.1.0", "Q4_0", "F16"))
_PARAMETERS: Final = (
    Row("load_huggingface", "parameters", _since("1.1.0", "model", "model_lora", "device") + _since("1.2.0", "dtype", "custom_config")),
    Row("load_gguf", "parameters", _since("1.1.0", "model", "model_lora")),
    Row(
        "build",
        "parameters",
        (
            *_since("1.1.0", "do_quantization", "optimization_level", "quantized_dtype", "quantized_algorithm", "num_npu_core"),
            *_since("1.1.0", "extra_qparams", "dataset", "hybrid_rate", "target_platform"),
            *_since("1.2.0", "max_context"),
        ),
    ),
    Row("export_rkllm", "parameters", _since("1.1.0", "export_path") + _since("1.3.0", "export_tokenizer", "export_embedding")),
)
_LIMITS: Final = (
    Row("load_huggingface", "device", _since("1.1.0", "cpu", "cuda")),
    Row("load_huggingface", "dtype", _since("1.2.0", "float32", "float16", "bfloat16")),
    Row("load_huggingface", "GPTQ", tuple((f"{bits} bits", since, "") for bits, since in BITS_OF_GPTQ.items())),
    Row("build", "optimization_level", _since("1.1.0", *map(str, OPTIMIZATION_LEVELS))),
    Row("build", "hybrid_rate", _since("1.1.0", "0 up to, not with, 1")),
    Row("build", "max_context", _since("1.2.0", f"multiples of {CONTEXT_STEP} up to {CONTEXT_MAX}")),
)
"""Rows of one value each, which `check` has in its code."""
_GGUF_ALWAYS: Final = ("F32",)  # Norms of every file are.

SOCS: Final = tuple(row.key.lower() for row in _DTYPES)
_ALGORITHM: Final = re.compile(r"(normal|gdq|grq)(?:_r([0-9]+))?")


def rows() -> Iterator[Row]:
    """Return every row, table by table."""
    yield from (*_DTYPES, *_CORES, *_ALGORITHMS, *_PYTHONS, _GGUF_TYPES, *_LIMITS, *_PARAMETERS)


def spans(row: Row) -> tuple[str, ...]:
    """Return a row's values, each with the releases that take it where those are not all of them: `w4a8_g32 (from 1.2.0)`."""
    return tuple(f"{value}{_span(since, until)}" for value, since, until in row.values)


def _span(since: str, until: str) -> str:
    begins = f"from {since}" if since != RELEASES[0] else ""
    ends = f"not from {until} on" if until else ""
    return f" ({', '.join(filter(None, (begins, ends)))})" if begins or ends else ""


def dtypes_of(soc: str, release: str = NEWEST) -> tuple[str, ...]:
    """Return the quantized types of a chip, none for a chip that the release does not know."""
    return next((row.taken(release) for row in _DTYPES if row.key == soc.upper()), ())


def npu_cores_of(soc: str, release: str = NEWEST) -> tuple[int, ...]:
    """Return the numbers of NPU cores that a file can be made for, the most last."""
    return next((tuple(int(one) for one in row.taken(release)) for row in _CORES if row.key == soc.upper()), ())


def algorithms_of(dtype: str, release: str = NEWEST) -> tuple[str, ...]:
    """Return the algorithms for a quantized type; `_rN` stands for `_r1` to `_r64`."""
    return _row_of_algorithms(dtype).taken(release)


def rows_of(*, soc: str = "", release: str = "") -> Iterator[tuple[Row, tuple[str, ...]]]:
    """Yield the rows that say something of a chip and a release, with what they take; without a release, with the releases that take it.

    Raises:
        Invalid: There is no such chip, or no such release.
    """
    if soc and soc.lower() not in SOCS:
        raise Invalid(f"soc {soc!r} has no row in table quantized_dtype; there are {', '.join(SOCS)}")
    if release and release not in RELEASES:
        raise Invalid(f"release {release!r} is not in table releases, which has {', '.join(RELEASES)}")
    for row in rows():
        if soc and row.key.lower() in SOCS and row.key.lower() != soc.lower():
            continue
        if release and row.table == "python" and row != _row_of_python(release):
            continue
        if taken := row.taken(release) if release else spans(row):
            yield row, taken


def python_versions(release: str) -> tuple[str, ...]:
    """Return the Python versions that have a wheel of a release."""
    return _row_of_python(release).taken(release)


def parameters_of(function: str, release: str) -> tuple[str, ...]:
    """Return the parameters that a function of the vendor's API takes."""
    return _row_of_parameters(function).taken(release)


def why_not_parameter(function: str, parameter: str, release: str) -> str:
    """Return the sentence that says why a release's function does not take a parameter, or the empty one."""
    row = _row_of_parameters(function)
    since = next((since for value, since, _ in row.values if value == parameter), "")
    if since and _from(release, since):
        return ""
    when = f"has it from release {since} on" if since else "does not have it"
    return f"{function} of release {release} takes no {parameter}: {row.name()} {when}"


def why_not_dtype(soc: str, dtype: str, release: str = NEWEST) -> str:
    """Return the sentence that says why a chip does not take a type, or the empty one."""
    row = next((row for row in _DTYPES if row.key == soc.upper()), None)
    if row is None:
        return f"soc {soc!r} has no row in table quantized_dtype; there are {', '.join(SOCS)}"
    taken = row.taken(release)
    if dtype in taken:
        return ""
    if not taken:
        return f"soc {soc!r} came after release {release}: {row.name()} begins with release {row.values[0][1]}"
    if dtype not in DTYPES:
        return f"dtype {dtype!r} is in no row of table quantized_dtype; {row.name()} (release {release}) has {', '.join(taken)}"
    return f"dtype {dtype!r} is not in {row.name()} (release {release}), which has {', '.join(taken)}"


def why_not_width(dtype: str, name: str, width: int) -> str:
    """Return the sentence that says why a layer of that output width cannot be quantized, or the empty one."""
    group = dtype_of(dtype).group
    if not group or width % group == 0:
        return ""
    return f"layer {name} is {width} wide, which is no multiple of the {group} of {dtype}: the vendor's build refuses it"


def check(request: Request) -> None:
    """Check a request against every table.

    Raises:
        Invalid: Something is refused; there is a cause for each argument, in the order of the arguments.
    """
    causes = [Cause(field, message) for field, message in _refusals(request)]
    if causes:
        more = f" (and {len(causes) - 1} more)" if len(causes) > 1 else ""
        raise Invalid(f"{causes[0].field}: {causes[0].message}{more}", tuple(causes))


def _refusals(request: Request) -> Iterator[tuple[str, str]]:
    release = request.release
    if release not in RELEASES:
        yield "release", f"release {release!r} is not in table releases, which has {', '.join(RELEASES)}"
        return
    if request.python and request.python not in python_versions(release):
        row = _row_of_python(release)
        yield "python", f"Python {request.python} is not in {row.name()}, which has wheels for {', '.join(row.taken(release))}"
    if request.soc.lower() not in SOCS or not dtypes_of(request.soc, release):
        yield "soc", why_not_dtype(request.soc, request.dtype, release)
    elif why := why_not_dtype(request.soc, request.dtype, release):
        yield "dtype", why
    else:
        yield from _of_algorithm(request)
        yield from _of_npu(request)
    yield from _of_numbers(request)
    yield from _of_source(request)
    if request.dtype in DTYPES:
        for name, width in request.widths.items():
            if why := why_not_width(request.dtype, name, width):
                yield "dtype", why
                break  # The others are refused for the same reason.


def _of_algorithm(request: Request) -> Iterator[tuple[str, str]]:
    row, release = _row_of_algorithms(request.dtype), request.release
    taken = ", ".join(row.taken(release))
    found = _ALGORITHM.fullmatch(request.algorithm)
    if found is None:
        yield "algorithm", f"algorithm {request.algorithm!r} is not in {row.name()} (release {release}), which has {taken}"
        return
    name, rank = found[1], found[2]
    if (f"{name}_rN" if rank else name) not in row.taken(release):
        yield "algorithm", f"algorithm {request.algorithm!r} is not in {row.name()} (release {release}), which has {taken}"
    elif rank and not 1 <= int(rank) <= RANK_MAX:
        yield "algorithm", f"rank {rank} of {request.algorithm!r} is not from 1 to {RANK_MAX}, as {row.name()} has it"
    elif rank and request.has_adapter:
        yield "algorithm", f"algorithm {request.algorithm!r} makes an adapter itself, so {row.name()} takes it only without another one"
    elif name in ("gdq", "grq") and not request.has_gpu:
        yield "algorithm", f"algorithm {request.algorithm!r} of {row.name()} needs a GPU (device cuda); normal needs none"


def _of_npu(request: Request) -> Iterator[tuple[str, str]]:
    if request.npu_cores is None or request.npu_cores in npu_cores_of(request.soc, request.release):
        return
    row = next(row for row in _CORES if row.key == request.soc.upper())
    yield "npuCores", f"npu cores {request.npu_cores} is not in {row.name()}, which has {', '.join(row.taken(request.release))}"


def _of_numbers(request: Request) -> Iterator[tuple[str, str]]:
    context = request.max_context
    if context is not None and not _from(request.release, "1.2.0"):
        yield "maxContext", f"max context {context} cannot be given: row max_context of table build begins with release 1.2.0"
    elif context is not None and (not CONTEXT_STEP <= context <= CONTEXT_MAX or context % CONTEXT_STEP):
        limits = f"row max_context of table build takes multiples of {CONTEXT_STEP} up to {CONTEXT_MAX}"
        yield "maxContext", f"max context {context} is refused: {limits}"
    if not 0.0 <= request.hybrid_rate < 1.0:
        yield "hybridRate", f"hybrid rate {request.hybrid_rate} is refused: row hybrid_rate of table build takes 0 up to, not with, 1"
    if request.optimization_level not in OPTIMIZATION_LEVELS:
        level = request.optimization_level
        yield "optimizationLevel", f"optimization level {level} is refused: row optimization_level of table build takes 0 or 1"


def _of_source(request: Request) -> Iterator[tuple[str, str]]:
    if request.source == "gguf":
        taken = _GGUF_TYPES.taken(request.release)
        if other := sorted({one for one in request.tensor_types if one.upper() not in (*taken, *_GGUF_ALWAYS)}):
            yield "source", f"tensor types {', '.join(other)} are not in {_GGUF_TYPES.name()}, which has {', '.join(taken)}"
    if request.gptq is None:
        return
    bits, group = request.gptq
    since = BITS_OF_GPTQ.get(bits)
    if since is None or not _from(request.release, since):
        yield "source", f"GPTQ with {bits} bits is refused: row GPTQ of table load_huggingface takes 4 bits from 1.1.4, 8 bits from 1.2.0"
    elif request.dtype in DTYPES and (dtype_of(request.dtype).weight_bits, dtype_of(request.dtype).group) != (bits, group):
        yield (
            "dtype",
            f"dtype {request.dtype!r} is refused: row GPTQ of table load_huggingface wants the {bits} bits and group {group} of the file",
        )
    elif request.algorithm != "normal" or request.has_calibration:
        yield (
            "algorithm",
            "a GPTQ checkpoint is quantized already: row GPTQ of table load_huggingface takes algorithm normal and no dataset",
        )


def _row_of_algorithms(dtype: str) -> Row:
    return next(row for row in _ALGORITHMS if dtype.startswith(row.key.removesuffix("*")))


def _row_of_parameters(function: str) -> Row:
    return next(row for row in _PARAMETERS if row.table == function)


def _row_of_python(release: str) -> Row:
    return next(row for row in reversed(_PYTHONS) if _from(release, row.values[0][1]))


def _from(release: str, since: str) -> bool:
    return version_order(release) >= version_order(since)
