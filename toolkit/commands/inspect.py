"""`rkfleet toolkit inspect`: what a model file is, without loading it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rkfleet.errors import FleetError, Invalid

if TYPE_CHECKING:
    from toolkit.loading import ModelSource

__all__ = ["command"]


def command(
    source: Annotated[Path, typer.Argument(help="GGUF file, or directory of a Hugging Face model.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor with type, shape and bytes.")] = False,
    output: Annotated[str, typer.Option("--output", "-o", help="table or json.")] = "table",
) -> None:
    """Show a model's family, sizes, tokenizer and tensors; only heads of files are read."""
    import msgspec

    from toolkit.loading import open_model

    if output not in ("table", "json"):
        raise Invalid(f"--output {output!r} is unknown; known are table, json")
    model = open_model(source)
    facts = _facts(model)
    if output == "json":
        if tensors:
            facts["tensors"] = list(model.tensors.values())
        print(msgspec.json.encode(facts).decode())
        return
    types = facts.pop("types")
    for name, value in facts.items():
        print(f"{name:<13}{value}")
    print(f"\n{'TYPE':<10}{'TENSORS':>9}{'PARAMETERS':>16}{'BYTES':>16}")
    for kind, sums in types.items():
        print(f"{kind:<10}{sums['tensors']:>9}{sums['parameters']:>16}{sums['bytes']:>16}")
    if tensors:
        width = max(map(len, model.tensors), default=0)
        print(f"\n{'TENSOR':<{width}}  {'TYPE':<8}{'SHAPE':<20}{'BYTES':>14}")
        for info in model.tensors.values():
            print(f"{info.name:<{width}}  {info.dtype:<8}{'x'.join(map(str, info.shape)):<20}{info.size_bytes:>14}")


def _facts(model: ModelSource) -> dict[str, Any]:
    """Return what is shown, in its order."""
    sizes = model.hyperparameters
    types: dict[str, dict[str, int]] = {}
    for info in model.tensors.values():
        sums = types.setdefault(info.dtype, {"tensors": 0, "parameters": 0, "bytes": 0})
        sums["tensors"] += 1
        sums["parameters"] += info.elements
        sums["bytes"] += info.size_bytes
    tokenizer, template = _words(model)
    return {
        "family": sizes.architecture,
        "layers": sizes.layers,
        "hidden": sizes.hidden,
        "vocabulary": sizes.vocabulary,
        "context": sizes.context,
        "parameters": sum(sums["parameters"] for sums in types.values()),
        "bytes": sum(sums["bytes"] for sums in types.values()),
        "tokenizer": tokenizer,
        "template": template,
        "types": types,
    }


def _words(model: ModelSource) -> tuple[str, str]:
    """Return the kind of the tokenizer, and whether there is a chat template; a directory may lack both."""
    try:
        metadata = model.metadata
    except FleetError as error:
        return f"none: {error.message}", "no"
    kind = metadata.get("tokenizer.ggml.model", "none")
    return str(kind), "yes" if "tokenizer.chat_template" in metadata else "no"
