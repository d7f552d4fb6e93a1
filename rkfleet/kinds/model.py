"""Model: a language model as a set of variants, each one artifact for a kind of board."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from rkfleet.kinds.base import Column, Condition, Object, Resource, Rule, StatusOwner
from rkfleet.kinds.board import Quantity
from rkfleet.meta import Struct

__all__ = ["Artifact", "ArtifactFile", "Model", "ModelSpec", "ModelStatus", "Reference", "Requires", "Variant"]

Digest = Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}$")]
FILE_SIZE_BYTES_MAX = 2**43  # 8 TiB: far above any model, below where arithmetic on JSON numbers loses bits.


class ArtifactFile(Struct, frozen=True, kw_only=True):
    """One file of an artifact."""

    path: Annotated[
        str,
        Meta(
            description="Name of the file below the model's directory; relative, without '..'.",
            pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$",
            max_length=255,
        ),
    ]
    digest: Annotated[Digest, Meta(description="sha256 of the bytes.")]
    size_bytes: Annotated[int, Meta(description="Length of the file in bytes.", ge=1, le=FILE_SIZE_BYTES_MAX)]
    role: Annotated[
        Literal["weight", "config", "tokenizer", "template", "doc", "adapter", "encoder"],
        Meta(
            description="What the file is for; one file is the weight. An adapter is a LoRA that requests choose by the file's name without"
            " its ending (<model>:<adapter>), an encoder turns images into embeddings."
        ),
    ] = "weight"
    scale_percent: Annotated[int, Meta(description="For an adapter: its weight in the joint inference, in percent.", ge=0, le=1000)] = 100


class Artifact(Struct, frozen=True, kw_only=True):
    """The files of one variant."""

    files: Annotated[tuple[ArtifactFile, ...], Meta(description="Files that boards fetch and verify.", min_length=1, max_length=64)]
    manifest_digest: Annotated[
        str, Meta(description="Digest of the OCI manifest, for OCI tools; boards use files.", pattern="^(sha256:[0-9a-f]{64})?$")
    ] = ""


class Requires(Struct, frozen=True, kw_only=True):
    """What a board must have to run the variant."""

    memory: Annotated[Quantity, Meta(description="Memory that is reserved while the variant is loaded.")] = "0"
    npu_cores: Annotated[int, Meta(description="NPU cores that the artifact was built for.", ge=0, le=16)] = 0
    runtime_version: Annotated[
        str, Meta(description="Comma-separated comparisons that the runtime's version must meet, for example >=1.1.0,<1.4.", max_length=128)
    ] = ""
    driver_version: Annotated[
        str, Meta(description="Comparisons that the NPU driver's version must meet, for example >=0.9.7.", max_length=128)
    ] = ""


class Reference(Struct, frozen=True, kw_only=True):
    """A row of the vendor's benchmark table that says what speed to expect."""

    model: Annotated[str, Meta(description="Model name in the table, for example Qwen2-1.5B.")]
    sdk_version: Annotated[str, Meta(description="Release of the RKLLM SDK that the row belongs to.")] = ""


class Variant(Struct, frozen=True, kw_only=True):
    """One artifact of the model for one kind of board."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.soc == oldSelf.soc && self.dtype == oldSelf.dtype && self.runtime == oldSelf.runtime"
            " && self.contextTokens == oldSelf.contextTokens && self.artifact == oldSelf.artifact",
            "of a variant only requires and reference may change, boards may hold its files; add another variant instead",
        ),
    )

    name: Annotated[str, Meta(description="Name of the variant, unique in the model.", pattern="^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$")]
    soc: Annotated[Literal["rk3588", "rk3576", "any"], Meta(description="Chip that the artifact runs on; any for CPU runtimes.")]
    dtype: Annotated[
        str, Meta(description="Quantization, for example w8a8, w4a16_g128, q4_k_m or f16.", pattern="^[a-z0-9][a-z0-9_]{0,31}$")
    ]
    runtime: Annotated[Literal["rkllm", "rknn", "llamacpp"], Meta(description="Runtime that loads the artifact.")]
    artifact: Annotated[Artifact, Meta(description="Files of the variant.")]
    context_tokens: Annotated[int, Meta(description="Largest context that the artifact was built for.", ge=16, le=1048576)] = 4096
    requires: Annotated[Requires, Meta(description="What a board must have.")] = Requires()
    reference: Annotated[Reference | None, Meta(description="Row of the benchmark table.")] = None


class ModelSpec(Struct, frozen=True, kw_only=True):
    """What the model is. Variants may be added, never changed."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "oldSelf.variants.all(o, self.variants.exists(n, n.name == o.name))",
            "variants may be added, never removed; make a new Model instead",
            ".variants",
        ),
    )

    variants: Annotated[
        tuple[Variant, ...],
        Meta(
            description="Artifacts of the model, one for each kind of board.",
            min_length=1,
            max_length=64,
            extra_json_schema={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ]
    family: Annotated[str, Meta(description="Family of the architecture, for example qwen2 or llama.", max_length=63)] = ""
    parameters: Annotated[str, Meta(description="Number of parameters, for example 1.5B.", max_length=31)] = ""
    license: Annotated[str, Meta(description="SPDX identifier of the licence.", max_length=127)] = ""


class ModelStatus(Struct, frozen=True, kw_only=True):
    """What is known about a model."""

    observed_generation: Annotated[int, Meta(description="Generation of the spec that the conditions are about.")] = 0
    conditions: Annotated[tuple[Condition, ...], Meta(description="Observations about the model.", max_length=32)] = ()


class Model(Object, frozen=True, kw_only=True):
    """A language model: variants, one artifact for each kind of board, with what it requires."""

    resource: ClassVar[Resource] = Resource(
        kind="Model",
        plural="models",
        singular="model",
        short_names=("mdl",),
        categories=("all", "rkfleet"),
        columns=(
            Column("Status", '.status.conditions[?(@.type=="Ready")].reason', "Reason of the Ready condition."),
            Column("Family", ".spec.family", "Family of the architecture."),
            Column("Parameters", ".spec.parameters", "Number of parameters."),
            Column("Variants", ".spec.variants[*].name", "Names of the variants."),
            Column("License", ".spec.license", "SPDX identifier of the licence.", priority=1),
            Column("Age", ".metadata.creationTimestamp", "Time since creation.", "date"),
        ),
        owners={"model": StatusOwner(fields=("observedGeneration",), conditions=("Ready",))},
    )

    spec: Annotated[ModelSpec, Meta(description="What the model is.")]
    status: Annotated[ModelStatus, Meta(description="What is known about the model.")] = ModelStatus()
