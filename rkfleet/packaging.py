"""Model files as OCI artifacts in the CNCF ModelPack layout: facts in, exact bytes of config and manifest out.

`rkfleet model push` builds packages, the registry only stores them, and any OCI tool can pull them. One variant is one artifact: one
uncompressed layer for each file, so that a board can fetch ranges of the very bytes it will load and so that equal files are stored
once. What ModelPack has no field for (the chip, the runtime) stands in manifest annotations with our own prefix, never in the config,
whose schema is closed. Pure, and free of times and names of machines: the same files and facts always give the same digests, which is
how a second push can say "unchanged".

Source: modelpack/model-spec `docs/{spec,config,annotations}.md`, `schema/config-schema.json`; OCI image-spec 1.1 `manifest.md`,
"Guidelines for Artifact Usage"; OCI distribution-spec for names and tags.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

import msgspec

from rkfleet.errors import Invalid
from rkfleet.kinds.model import ArtifactFile

__all__ = [
    "CONFIG_MEDIA_TYPE",
    "MANIFEST_MEDIA_TYPE",
    "Blob",
    "Package",
    "PackageFacts",
    "blob_of",
    "build_package",
    "check_digest",
    "default_memory_bytes",
    "layer_media_type",
    "repository_name",
]

MANIFEST_MEDIA_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE: Final = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_MEDIA_TYPE: Final = "application/vnd.cncf.model.config.v1+json"
FILE_PATH_ANNOTATION: Final = "org.cncf.model.filepath"
TITLE_ANNOTATION: Final = "org.opencontainers.image.title"  # What oras names the pulled file.
PREFIX: Final = "dev.rkfleet."

MEBIBYTE: Final = 1 << 20
RUNTIME_BYTES: Final = 256 * MEBIBYTE  # A worker process with llama.cpp, its compute buffers for a batch of 256, and Python.
KV_BYTES_PER_TOKEN_MIN: Final = 32 << 10
KV_WEIGHT_DIVISOR: Final = 32768

_LAYER_OF_ROLE: Final = {
    "weight": "weight",
    "config": "weight.config",
    "tokenizer": "weight.config",
    "template": "weight.config",
    "doc": "doc",
    "adapter": "weight",
    "encoder": "weight",
}
_FORMATS: Final = {".gguf": "gguf", ".rkllm": "rkllm", ".rknn": "rknn", ".safetensors": "safetensors", ".onnx": "onnx"}
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


class Blob(msgspec.Struct, frozen=True):
    """Bytes with their name."""

    digest: str
    body: bytes


class PackageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a package says about its model; the fields are those of the Model kind.

    Attributes:
        context_tokens: Largest context that the artifact was built for; 0 leaves it out.
        recipe: Digest of the recipe that the weights were made by.
    """

    name: str
    variant: str
    soc: str
    dtype: str
    runtime: str
    context_tokens: int = 0
    family: str = ""
    parameters: str = ""
    license: str = ""
    recipe: str = ""


class Package(msgspec.Struct, frozen=True):
    """An artifact without its layers: those are the files as they are."""

    config: Blob
    manifest: Blob


def blob_of(body: bytes) -> Blob:
    """Return the bytes with their digest."""
    return Blob(f"sha256:{hashlib.sha256(body).hexdigest()}", body)


def check_digest(digest: str) -> str:
    """Return the hex part of a sha256 digest.

    Raises:
        Invalid: It is not `sha256:` and 64 lower-case hex digits.
    """
    if _DIGEST.fullmatch(digest) is None:
        raise Invalid(f"digest {digest[:80]!r} is not sha256:<64 hex digits>")
    return digest.removeprefix("sha256:")


def repository_name(namespace: str, model: str) -> str:
    """Return the repository in which the artifacts of a Model live: `<namespace>/<model>`."""
    return f"{namespace}/{model}"


def layer_media_type(role: str) -> str:
    """Return the media type of the layer for a file of this role; never compressed, as ModelPack advises for weights."""
    return f"application/vnd.cncf.model.{_LAYER_OF_ROLE[role]}.v1.raw"


def default_memory_bytes(size_bytes: int, context_tokens: int) -> int:
    """Return what to reserve for a loaded variant when nobody measured it, rounded up to a mebibyte.

    The weights as they are, a key-value cache over the whole context, and the runtime with its buffers. A token's share of the cache grows
    with the model: 32 KiB up to 1 GiB of weights, then a 32768th of them, which is above what 0.1B to 8B models with grouped queries take
    in 16 bits (23 KiB for SmolLM2-135M, 28 KiB for Qwen2-1.5B, 128 KiB for Llama-3-8B). Whoever has measured says `memory=`.
    """
    cache = context_tokens * max(KV_BYTES_PER_TOKEN_MIN, size_bytes // KV_WEIGHT_DIVISOR)
    return -(-(size_bytes + cache + RUNTIME_BYTES) // MEBIBYTE) * MEBIBYTE


def build_package(facts: PackageFacts, files: tuple[ArtifactFile, ...]) -> Package:
    """Return config and manifest of one variant; layers are in the order of `files`."""
    config = blob_of(_encode(_config(facts, files)))
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_MEDIA_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": CONFIG_MEDIA_TYPE, "digest": config.digest, "size": len(config.body)},
        "layers": [_layer(file) for file in files],
        "annotations": _annotations(facts),
    }
    return Package(config, blob_of(_encode(manifest)))


def _config(facts: PackageFacts, files: tuple[ArtifactFile, ...]) -> dict[str, Any]:
    descriptor = {
        "name": facts.name,
        "family": facts.family,
        "title": f"{facts.name} {facts.variant}",
        "licenses": [facts.license] if facts.license else [],
    }
    config = {
        "format": _format(files),
        "paramSize": facts.parameters,
        "quantization": facts.dtype,
        "capabilities": {"inputTypes": ["text"], "outputTypes": ["text"]},
    }
    return {
        "descriptor": {key: value for key, value in descriptor.items() if value},
        "config": {key: value for key, value in config.items() if value},
        "modelfs": {"type": "layers", "diffIds": [file.digest for file in files]},
    }


def _format(files: tuple[ArtifactFile, ...]) -> str:
    weight = next((file.path for file in files if file.role == "weight"), "")
    return next((name for suffix, name in _FORMATS.items() if weight.lower().endswith(suffix)), "")


def _layer(file: ArtifactFile) -> dict[str, Any]:
    return {
        "mediaType": layer_media_type(file.role),
        "digest": file.digest,
        "size": file.size_bytes,
        "annotations": {FILE_PATH_ANNOTATION: file.path, TITLE_ANNOTATION: file.path},
    }


def _annotations(facts: PackageFacts) -> dict[str, str]:
    said = {
        "variant": facts.variant,
        "target-soc": facts.soc,
        "dtype": facts.dtype,
        "runtime": facts.runtime,
        "max-context": str(facts.context_tokens or ""),
        "recipe": facts.recipe,
    }
    return {f"{PREFIX}{key}": value for key, value in said.items() if value}


def _encode(value: Any) -> bytes:
    return msgspec.json.encode(value, order="sorted")
