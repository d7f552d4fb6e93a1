"""What a file becomes as a variant of a Model: what was written, what its recipe and its head say, what the vendor's table expects.

In: `Given`, the words of `rkfleet toolkit publish`. Out: an `Order` for `rkfleet.cli.push`, with every field of the variant filled in.
What a person wrote goes before the recipe, the recipe before the file's head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from rkfleet.benchmarks import MEBIBYTE, load_table
from rkfleet.cli.push import Order
from rkfleet.cli.variants import FurtherFile, VariantWords
from rkfleet.errors import Invalid, NotFound
from rkfleet.packaging import KV_BYTES_PER_TOKEN_MIN, KV_WEIGHT_DIVISOR
from rkfleet.quantity import format_bytes
from toolkit.loading import ModelSource, open_model
from toolkit.performance.facts import Facts, facts_of
from toolkit.performance.model import row_of
from toolkit.platforms import NEWEST, RELEASES, why_not_dtype
from toolkit.recipe import Recipe

__all__ = ["Given", "plan", "read_recipe"]

RECIPE_BYTES_MAX: Final = 1 << 20  # A recipe has some kilobytes; one with a thousand shards has 200.
CONTEXT_TOKENS: Final = 4096  # As the Model kind's own default; a file that was trained for less has less.
RUNTIMES: Final = {".rkllm": "rkllm", ".gguf": "llamacpp", ".rknn": "rknn"}
TOKENIZER_FILES: Final[Mapping[str, str]] = {
    "tokenizer.json": "tokenizer",
    "tokenizer.model": "tokenizer",
    "tokenizer_config.json": "tokenizer",
    "special_tokens_map.json": "tokenizer",
    "chat_template.jinja": "template",
    "config.json": "config",
    "generation_config.json": "config",
}
"""Files of a model's directory that are published, and the role that each has."""
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")  # DNS subdomain, as Kubernetes names objects.
MAKER: Final = "rkllm-toolkit "


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What was written on the command line; empty stands for "find out"."""

    name: str
    file: Path
    recipe: Path | None = None
    model: Path | None = None
    reports: tuple[Path, ...] = ()
    adapters: tuple[Path, ...] = ()
    template: Path | None = None
    license_file: Path | None = None
    license: str = ""
    family: str = ""
    parameters: str = ""
    soc: str = ""
    dtype: str = ""
    context: int = 0
    variant: str = ""
    reference: str = ""
    memory: str = ""
    namespace: str = "default"


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in a file.

    Raises:
        NotFound: It cannot be read.
        Invalid: It is no recipe.
    """
    try:
        with path.open("rb") as file:
            content = file.read(RECIPE_BYTES_MAX + 1)
    except OSError as error:
        raise NotFound(f"recipe {str(path)!r} cannot be read: {error.strerror or error}") from error
    if len(content) > RECIPE_BYTES_MAX:
        raise Invalid(f"recipe {str(path)!r} has more than {RECIPE_BYTES_MAX} bytes")
    try:
        return msgspec.json.decode(content, type=Recipe)
    except msgspec.MsgspecError as error:
        raise Invalid(f"recipe {str(path)!r} is none: {error}") from error


def plan(given: Given) -> Order:
    """Return what is to be pushed.

    Raises:
        NotFound: A file is not there, or the vendor's table has no such row.
        Invalid: Words do not go together, or something that is needed was neither written nor found.
    """
    if _NAME.fullmatch(given.name) is None:
        raise Invalid(
            f"name {given.name!r} is none of an object: lower-case letters, digits, '-' and '.', up to 253, a letter or digit at both ends"
        )
    runtime = RUNTIMES.get(given.file.suffix.lower(), "")
    if not runtime:
        raise Invalid(f"file {str(given.file)!r} ends with none of {', '.join(RUNTIMES)}, by which its runtime is known")
    for path in (given.file, *given.reports, *given.adapters, *(one for one in (given.template, given.license_file) if one)):
        if not path.exists():
            raise NotFound(f"file {str(path)!r} does not exist")
    recipe = read_recipe(given.recipe) if given.recipe else None
    model = _model(given, runtime)
    facts = None if model is None else facts_of(model)
    soc = given.soc or (recipe.soc if recipe else "") or ("any" if runtime == "llamacpp" else "")
    dtype = given.dtype or (recipe.dtype if recipe and runtime != "llamacpp" else "") or _type_of(model, runtime)
    for field, value in (("soc", soc), ("dtype", dtype)):
        if not value:
            raise Invalid(f"{field} of {str(given.file)!r} is not known: give --recipe of its conversion, or --{field}")
    release = recipe.maker.removeprefix(MAKER) if recipe else ""
    if runtime == "rkllm" and (why := why_not_dtype(soc, dtype, release if release in RELEASES else NEWEST)):
        raise Invalid(why)
    words = VariantWords(
        _fields(given, recipe, facts, soc=soc, dtype=dtype, runtime=runtime, context=_context(given, recipe, model)),
        _files(given),
        recipe.digest if recipe else "",
    )
    return Order(
        name=given.name,
        files=(given.file,),
        variants=(words,),
        namespace=given.namespace,
        family=given.family or ("" if model is None else model.hyperparameters.architecture),
        parameters=given.parameters or ("" if facts is None else _short(facts.parameters)),
        license=given.license or ("" if model is None else _license(model)),
    )


def _model(given: Given, runtime: str) -> ModelSource | None:
    """Return what tells about the model: the directory or file that was named, else the published file itself if it is GGUF."""
    if given.model is not None:
        return open_model(given.model)
    return open_model(given.file) if runtime == "llamacpp" else None


def _type_of(model: ModelSource | None, runtime: str) -> str:
    """Return the type that most matrices of a GGUF file have."""
    if model is None or runtime != "llamacpp":
        return ""
    sizes: dict[str, int] = {}
    for info in model.tensors.values():
        if len(info.shape) > 1:
            sizes[info.dtype.lower()] = sizes.get(info.dtype.lower(), 0) + info.size_bytes
    return max(sorted(sizes), key=lambda name: sizes[name], default="")


def _context(given: Given, recipe: Recipe | None, model: ModelSource | None) -> int:
    if given.context:
        return given.context
    if recipe is not None and recipe.max_context:
        return recipe.max_context
    return CONTEXT_TOKENS if model is None else min(CONTEXT_TOKENS, model.hyperparameters.context)


def _fields(
    given: Given, recipe: Recipe | None, facts: Facts | None, *, soc: str, dtype: str, runtime: str, context: int
) -> dict[str, Any]:
    requires: dict[str, Any] = {}
    fields: dict[str, Any] = {
        "name": given.variant or f"{soc}-{dtype}".replace("_", "-"),
        "soc": soc,
        "dtype": dtype,
        "runtime": runtime,
        "contextTokens": context,
    }
    row = None
    if runtime == "rkllm":
        table = load_table()
        if given.reference:
            row = table.get(given.reference, dtype, soc)
        elif facts is not None:
            row = row_of(table, facts, soc, dtype)
    if row is not None:
        fields["reference"] = {"model": row.model, "sdkVersion": row.sdk_version}
        cache = max(KV_BYTES_PER_TOKEN_MIN, row.memory_bytes // KV_WEIGHT_DIVISOR) if facts is None else facts.cache_bytes_per_token
        further = max(context - (row.max_context_tokens or 0), 0) * cache  # The row's memory holds the cache of its own context.
        requires["memory"] = format_bytes(-(-(row.memory_bytes + further) // MEBIBYTE) * MEBIBYTE)
    if given.memory:
        requires["memory"] = given.memory
    if recipe is not None and recipe.npu_cores:
        requires["npuCores"] = recipe.npu_cores
    if runtime == "rkllm" and recipe is not None and recipe.maker.startswith(MAKER):
        requires["runtimeVersion"] = f">={recipe.maker.removeprefix(MAKER)}"  # A runtime reads files of its own release and older ones.
    if requires:
        fields["requires"] = requires
    return fields


def _files(given: Given) -> tuple[FurtherFile, ...]:
    """Return the files that belong to the weights; a report may be a directory."""
    found = [FurtherFile("adapter", str(path)) for path in given.adapters]
    if given.model is not None and given.model.is_dir():
        present = {name: role for name, role in TOKENIZER_FILES.items() if (given.model / name).is_file()}
        present = {name: role for name, role in present.items() if not (role == "template" and given.template)}
        found += [FurtherFile(role, str(given.model / name)) for name, role in present.items()]
    if given.template is not None:
        found.append(FurtherFile("template", str(given.template)))
    if given.recipe is not None:
        found.append(FurtherFile("config", str(given.recipe)))
    for report in given.reports:
        paths = sorted(path for path in report.iterdir() if path.is_file()) if report.is_dir() else [report]
        found += [FurtherFile("doc", str(path)) for path in paths]
    if given.license_file is not None:
        found.append(FurtherFile("doc", str(given.license_file)))
    return tuple(found)


def _short(parameters: int) -> str:
    """Return a number of parameters as models are called by it: 135M, 1.5B."""
    if parameters >= 10**9:
        return f"{parameters / 10**9:.1f}".removesuffix(".0") + "B"
    return f"{round(parameters / 10**6)}M" if parameters >= 10**6 else f"{round(parameters / 10**3)}K"


def _license(model: ModelSource) -> str:
    """Return the licence that a GGUF file names, in SPDX's spelling of the usual ones."""
    said = str(model.metadata.get("general.license", ""))
    return {"apache-2.0": "Apache-2.0", "mit": "MIT", "gpl-3.0": "GPL-3.0-only"}.get(said, said)
