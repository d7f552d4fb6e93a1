"""ModelPack packages: the exact layout that other tools read, and the same bytes for the same facts."""

from __future__ import annotations

import json

from rkfleet.kinds.model import ArtifactFile
from rkfleet.packaging import PackageFacts, build_package, default_memory_bytes

FACTS = PackageFacts(
    name="qwen2-1.5b", variant="rk3588-w8a8", soc="rk3588", dtype="w8a8", runtime="rkllm", context_tokens=4096, family="qwen2",
    parameters="1.5B", license="Apache-2.0",
)  # fmt: skip
WEIGHT = ArtifactFile(path="model.rkllm", digest=f"sha256:{1:064x}", size_bytes=10)
TOKENIZER = ArtifactFile(path="tokenizer.json", digest=f"sha256:{2:064x}", size_bytes=3, role="tokenizer")


def test_a_package_has_the_modelpack_layout() -> None:
    package = build_package(FACTS, (WEIGHT, TOKENIZER))
    assert json.loads(package.config.body) == {
        "descriptor": {"name": "qwen2-1.5b", "family": "qwen2", "title": "qwen2-1.5b rk3588-w8a8", "licenses": ["Apache-2.0"]},
        "config": {
            "format": "rkllm",
            "paramSize": "1.5B",
            "quantization": "w8a8",
            "capabilities": {"inputTypes": ["text"], "outputTypes": ["text"]},
        },
        "modelfs": {"type": "layers", "diffIds": [WEIGHT.digest, TOKENIZER.digest]},
    }
    manifest = json.loads(package.manifest.body)
    assert manifest == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.cncf.model.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.cncf.model.config.v1+json",
            "digest": package.config.digest,
            "size": len(package.config.body),
        },
        "layers": [
            {
                "mediaType": "application/vnd.cncf.model.weight.v1.raw",
                "digest": WEIGHT.digest,
                "size": 10,
                "annotations": {"org.cncf.model.filepath": "model.rkllm", "org.opencontainers.image.title": "model.rkllm"},
            },
            {
                "mediaType": "application/vnd.cncf.model.weight.config.v1.raw",
                "digest": TOKENIZER.digest,
                "size": 3,
                "annotations": {"org.cncf.model.filepath": "tokenizer.json", "org.opencontainers.image.title": "tokenizer.json"},
            },
        ],
        "annotations": {
            "dev.rkfleet.variant": "rk3588-w8a8",
            "dev.rkfleet.target-soc": "rk3588",
            "dev.rkfleet.dtype": "w8a8",
            "dev.rkfleet.runtime": "rkllm",
            "dev.rkfleet.max-context": "4096",
        },
    }


def test_the_digest_of_a_package_is_the_same_today_and_tomorrow() -> None:
    """A changed digest would make the same push a changed Model: change it only together with a way to tell old from new."""
    assert build_package(FACTS, (WEIGHT,)).manifest.digest == "sha256:50204c823c4b23c3a6dbf282fdedad3a050184100b8e06094d507fa3bfa10481"


def test_the_default_memory_is_above_what_known_models_take() -> None:
    """Weights, a 16 bit key-value cache (2 x layers x heads x width x 2 bytes), and a worker with its buffers."""
    gibibyte, mebibyte = 1 << 30, 1 << 20
    for size, context, bytes_per_token in (
        (98362432, 8192, 23040),
        (int(1.6 * gibibyte), 4096, 28672),
        (int(4.7 * gibibyte), 8192, 131072),
    ):
        needed = size + context * bytes_per_token + 128 * mebibyte
        assert needed < default_memory_bytes(size, context) < 2 * needed
        assert default_memory_bytes(size, context) % mebibyte == 0
