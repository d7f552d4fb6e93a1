"""`rkfleet toolkit publish`: a finished model file, with everything that belongs to it, to the fleet's registry."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rkfleet.client import ApiClient

__all__ = ["command"]


def command(
    name: Annotated[str, typer.Argument(help="Name of the Model, as in kubectl get models.")],
    *,
    file: Annotated[Path, typer.Option(help="The weights: .rkllm, .gguf or .rknn.")],
    recipe: Annotated[Path | None, typer.Option(help="recipe.json of convert or quantize; tells soc, dtype, NPU cores, context.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="The original model: its tokenizer, template and config go along, family and size are read off.")
    ] = None,
    report: Annotated[list[Path] | None, typer.Option(help="Quality report, file or directory of recommend; may be repeated.")] = None,
    adapter: Annotated[list[Path] | None, typer.Option(help="LoRA of the runtime; may be repeated.")] = None,
    template: Annotated[Path | None, typer.Option(help="Chat template (Jinja).")] = None,
    license_file: Annotated[Path | None, typer.Option(help="Text of the licence.")] = None,
    license: Annotated[str, typer.Option(help="SPDX identifier of the licence.")] = "",
    family: Annotated[str, typer.Option(help="Family of the architecture.")] = "",
    parameters: Annotated[str, typer.Option(help="Number of parameters, for example 1.5B.")] = "",
    soc: Annotated[str, typer.Option(help="rk3588, rk3576 or any; without it as the recipe says, any for GGUF.")] = "",
    dtype: Annotated[str, typer.Option(help="Quantization; without it as the recipe or the GGUF file says.")] = "",
    context: Annotated[int, typer.Option(help="Tokens of the largest context; without it as the recipe says, at most 4096.")] = 0,
    variant: Annotated[str, typer.Option(help="Name of the variant; SOC-DTYPE without it.")] = "",
    reference: Annotated[str, typer.Option(help="Model in the vendor's benchmark table that says what speed to expect.")] = "",
    memory: Annotated[str, typer.Option(help="What is reserved on a board, as 2Gi; the vendor's row, or an estimate, without it.")] = "",
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Namespace.")] = "",
    manifest_only: Annotated[
        bool, typer.Option("--manifest-only", help="Send the bytes, but leave the Model to kubectl apply; its manifest is printed.")
    ] = False,
    kubeconfig: Annotated[Path | None, typer.Option(help="Kubeconfig; $RKFLEET_KUBECONFIG or $KUBECONFIG without it.")] = None,
) -> None:
    """Package a model as ModelPack, push it, and print the Model manifest."""
    from rkfleet.cli.model import progress
    from rkfleet.cli.options import with_client
    from rkfleet.cli.push import model_with, send, write_model
    from rkfleet.cli.render import print_yaml
    from rkfleet.clock import SystemClock
    from toolkit.publishing.plan import Given, plan

    given = Given(
        name=name,
        file=file,
        recipe=recipe,
        model=model,
        reports=tuple(report or ()),
        adapters=tuple(adapter or ()),
        template=template,
        license_file=license_file,
        license=license,
        family=family,
        parameters=parameters,
        soc=soc,
        dtype=dtype,
        context=context,
        variant=variant,
        reference=reference,
        memory=memory,
    )
    order = plan(given)

    async def work(api: ApiClient) -> tuple[str, object]:
        import msgspec

        full = msgspec.structs.replace(order, namespace=namespace or api.cluster.namespace)
        with progress() as step:
            pushed = await send(full, api, SystemClock(), step, lambda why: print(why, file=sys.stderr, flush=True))
        manifest = await model_with(api, full, pushed)
        return "sent" if manifest_only else await write_model(api, full, pushed), manifest

    outcome, manifest = with_client(kubeconfig, work)
    print_yaml(manifest)
    print(f"model.rkfleet.dev/{name} {outcome}", file=sys.stderr)
