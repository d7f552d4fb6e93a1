"""`rkfleet toolkit gguf`: a model as one GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    source: Annotated[Path, typer.Argument(help="Directory of a Hugging Face model, or GGUF file.")],
    output: Annotated[Path, typer.Option("--output-file", "-o", help="File to write.")],
    kind: Annotated[
        str, typer.Option("--type", help="Type of the matrices: f32, f16, bf16, q8_0, q4_0, q4_1. Without it they stay what they are.")
    ] = "",
    lora: Annotated[list[str] | None, typer.Option(help="Adapter to join into the weights, PATH[@SCALE]. May be given again.")] = None,
) -> None:
    """Write a model as a GGUF file with its tokenizer and chat template, which llama.cpp and CPU boards run."""
    import rich.console
    import rich.progress

    from toolkit.adapters.open import open_adapter, parse_adapter
    from toolkit.conversion.gguf import write_gguf
    from toolkit.loading import open_model

    model = open_model(source)
    adapters = [(open_adapter(path, model), scale) for path, scale in map(parse_adapter, lora or ())]
    console = rich.console.Console(stderr=True)
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(f"writing {output.name}", total=None)
        written = write_gguf(
            model, output, kind=kind or None, adapters=adapters, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    types = ", ".join(f"{count} {name}" for name, count in sorted(written.types.items()))
    print(f"{written.path}: {written.size_bytes} bytes, {written.tensors} tensors ({types})")
