"""A recipe: everything that decided the bytes of a quantized model, typed and hashed, and kept with it.

In: what `rkfleet toolkit quantize` or `convert` was asked for, and digests of what it read. Out: JSON and its sha256. Two models with one
recipe digest were made of the same files in the same way. Pure.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

__all__ = ["Algorithm", "Calibration", "Recipe", "SourceFile"]

Algorithm = Literal["normal", "gdq", "grq"]


class SourceFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that went in."""

    path: str
    sha256: str
    size_bytes: int


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """The text that scales were fitted to.

    Attributes:
        sha256: Of the file as it was read.
        tokens: That were run; 0 where another program ran them and does not say.
    """

    sha256: str
    samples: int
    tokens: int


class Recipe(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How a model was made.

    Attributes:
        maker: Program and release: `rkfleet 0.1.0` or `rkllm-toolkit 1.2.3`.
        sources: Files that went in, by path.
        soc: Chip that the artifact is for; empty for any.
        output: `rkllm`, `gguf`, `safetensors` or `rknn`.
        output_layer: What became of the last layer: `w8a8`, `same` as the dtype, or `float`; empty where another program decides.
        hybrid_rate: Share of layers that take the other grouping.
        low_rank: Rank of the correction of the error (`_rN` of the vendor's algorithms); 0 for none.
        load_dtype: What the weights were computed with before they were quantized, where another program was told.
        left_out: What the artifact is without: `tokenizer`, `embedding`.
        scheme: What the algorithm is built on, with its source.
        seed: Of whatever is drawn by chance.
    """

    maker: str
    sources: tuple[SourceFile, ...]
    output: str
    dtype: str
    soc: str = ""
    algorithm: Algorithm = "normal"
    low_rank: int = 0
    optimization_level: int = 0
    hybrid_rate: float = 0.0
    output_layer: str = ""
    npu_cores: int = 0
    max_context: int = 0
    adapters: tuple[SourceFile, ...] = ()
    calibration: Calibration | None = None
    load_dtype: str = ""
    left_out: tuple[str, ...] = ()
    scheme: str = ""
    seed: int = 0

    def encode(self) -> bytes:
        """Return the recipe as JSON, always the same bytes for the same recipe."""
        return msgspec.json.encode(self, order="deterministic")

    @property
    def digest(self) -> str:
        """sha256 of `encode`, as `sha256:<hex>`."""
        return f"sha256:{hashlib.sha256(self.encode()).hexdigest()}"
