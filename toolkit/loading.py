"""From a path to a model in the house's form: `open_model`.

In: a GGUF file, or a directory with config.json and safetensors or PyTorch files. Out: a `ModelSource`: hyperparameters, tensors under
GGUF names, the family, and the metadata of a GGUF file. Nothing is read but heads until a tensor is asked for, and then that one alone, so
that memory is bounded by the largest tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol

from rkfleet.errors import Invalid, NotFound
from toolkit.checkpoint.base import Array, Checkpoint, TensorInfo
from toolkit.checkpoint.gguf import GgufCheckpoint
from toolkit.checkpoint.json_file import read_json
from toolkit.checkpoint.open import open_checkpoint
from toolkit.checkpoint.quantized import METADATA, QuantizedCheckpoint
from toolkit.layout import check_layout
from toolkit.simulate.families.base import Family, Origin
from toolkit.simulate.families.registry import family_of, family_of_config
from toolkit.simulate.hyperparameters import Hyperparameters, from_gguf, to_gguf
from toolkit.simulate.network import EMBEDDING
from toolkit.tokens.hugging_face import vocabulary_from_directory
from toolkit.tokens.template import source_from_directory

__all__ = ["GgufSource", "HuggingFaceSource", "ModelSource", "open_model"]

# Tensors that checkpoints carry and no family computes with: tables that follow from config.json, masks of training code.
_WITHOUT_WEIGHT: Final = (".rotary_emb.inv_freq", ".rotary_pos_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.masked_bias")
_NAMED: Final = 3  # Tensors that an error names; the rest are counted.


class ModelSource(Protocol):
    """A model that is not loaded yet."""

    @property
    def path(self) -> Path:
        """File or directory."""

    @property
    def family(self) -> Family:
        """Its family."""

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Its sizes."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Metadata of a GGUF file, or what it would be."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by their GGUF names."""

    def read(self, name: str) -> Array:
        """Return one tensor as float32."""


class GgufSource:
    """A GGUF file, or a directory of our own quantized form: both are in the house's form already."""

    def __init__(self, checkpoint: GgufCheckpoint | QuantizedCheckpoint) -> None:
        self.checkpoint: Final = checkpoint
        self.path: Final = checkpoint.path
        self.metadata: Final = checkpoint.metadata
        self.tensors: Final = checkpoint.tensors
        self.family: Final = family_of(str(self.metadata.get("general.architecture", "")))
        if f"{EMBEDDING}.weight" not in self.tensors:
            raise Invalid(f"model file {str(self.path)!r} has no tensor {EMBEDDING}.weight")
        general = from_gguf(self.metadata, vocabulary=self.tensors[f"{EMBEDDING}.weight"].shape[0])
        self.hyperparameters: Final = self.family.from_gguf(general, self.metadata)
        check_layout(self.path, self.hyperparameters, self.tensors)

    def read(self, name: str) -> Array:
        """Return one tensor as float32."""
        return self.checkpoint.read(name)


class HuggingFaceSource:
    """A directory with config.json and a checkpoint, seen in the house's form.

    Attributes:
        checkpoint: The files, under their own names.
    """

    def __init__(self, directory: Path) -> None:
        config = read_json(directory / "config.json")
        self.path: Final = directory
        self.family: Final = family_of_config(config.get("architectures"))
        _refuse_packed(directory, config)
        self.hyperparameters: Final = self.family.from_config(config)
        self.checkpoint: Final[Checkpoint] = open_checkpoint(directory)
        there = self.checkpoint.tensors
        if self.hyperparameters.layers > len(there):
            raise Invalid(f"{str(directory)!r}: config.json has {self.hyperparameters.layers} layers, the checkpoint {len(there)} tensors")
        self._origins: Final = _origins(self.path, self.family, self.hyperparameters, there)
        self.tensors: Final[Mapping[str, TensorInfo]] = {name: _described(name, origin, there) for name, origin in self._origins.items()}
        check_layout(directory, self.hyperparameters, self.tensors)

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata of a GGUF file of it, with its tokenizer and its chat template if there is one.

        Raises:
            NotFound: The directory has no tokenizer.
            Invalid: Its tokenizer has no form in GGUF.
        """
        keys = to_gguf(self.hyperparameters) | self.family.to_gguf(self.hyperparameters)
        keys = {"general.architecture": self.family.architecture, "general.type": "model", "general.name": self.path.resolve().name} | keys
        keys |= vocabulary_from_directory(self.path).to_metadata(self.hyperparameters.vocabulary)
        try:
            keys["tokenizer.chat_template"] = source_from_directory(self.path)
        except NotFound:  # A base model has none.
            return keys
        return keys

    def read(self, name: str) -> Array:
        """Return one tensor as float32.

        Raises:
            NotFound: There is no such tensor.
            Invalid: What the family makes of the checkpoint's tensors has not the shape that it was announced with.
        """
        origin = self._origins.get(name)
        if origin is None:
            raise NotFound(f"model {str(self.path)!r} has no tensor {name!r}")
        if origin.make is None:
            return self.checkpoint.read(origin.sources[0])
        value = origin.make([self.checkpoint.read(source) for source in origin.sources])
        if value.shape != origin.shape:
            raise Invalid(f"model {str(self.path)!r}: {name} of {', '.join(origin.sources)} has shape {value.shape}, not {origin.shape}")
        return value


def open_model(path: Path) -> ModelSource:
    """Open a model.

    Raises:
        NotFound: There is nothing at the path, or the directory lacks config.json or weights.
        Invalid: It is no model, of a family that is unknown, or its files do not fit each other.
    """
    if not path.exists():
        raise NotFound(f"model {str(path)!r} does not exist")
    if not path.is_dir():
        return GgufSource(GgufCheckpoint(path))
    if (path / METADATA).is_file():
        return GgufSource(QuantizedCheckpoint(path))
    if not (path / "config.json").is_file():
        raise NotFound(f"directory {str(path)!r} is no model: it has no config.json. Give a Hugging Face model's directory or a GGUF file")
    return HuggingFaceSource(path)


def _refuse_packed(directory: Path, config: Mapping[str, Any]) -> None:
    """Refuse weights that are packed by a quantizer: under their names are codes, not weights."""
    packed = config.get("quantization_config")
    if packed:
        method = packed.get("quant_method") if isinstance(packed, Mapping) else packed
        raise Invalid(
            f"{str(directory)!r}: config.json has quantization_config {method!r}: its weights are packed; take the model they are of"
        )


def _origins(path: Path, family: Family, hyperparameters: Hyperparameters, there: Mapping[str, TensorInfo]) -> Mapping[str, Origin]:
    """Return where every tensor comes from; what is missing or left over is named."""
    try:
        origins = family.origins(hyperparameters, {name: info.shape for name, info in there.items()})
    except KeyError as error:
        raise Invalid(f"model {str(path)!r} has no tensor {error.args[0]!r}, which {family.architecture} needs") from error
    except Invalid as error:
        raise Invalid(f"model {str(path)!r}: {error.message}") from error
    needed = {source for origin in origins.values() for source in origin.sources}
    missing = sorted(needed.difference(there))
    if missing:
        raise Invalid(f"model {str(path)!r} lacks {_names(missing)}, which {family.architecture} needs")
    unused = sorted(name for name in there.keys() - needed if not name.endswith(_WITHOUT_WEIGHT))
    if origins.keys() >= {"token_embd.weight"} and "output.weight" not in origins:
        unused = [name for name in unused if name != "lm_head.weight"]  # Tied weights are written twice by some.
    if unused:
        raise Invalid(f"model {str(path)!r} has {_names(unused)}, which {family.architecture} has no place for; it is another model")
    return origins


def _described(name: str, origin: Origin, there: Mapping[str, TensorInfo]) -> TensorInfo:
    sources = [there[source] for source in origin.sources]
    dtype = sources[0].dtype if sources else "F32"  # Made of config.json alone, as rotary factors are.
    return TensorInfo(name, origin.shape, dtype, sum(source.size_bytes for source in sources))


def _names(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more tensors" if more > 0 else "")
