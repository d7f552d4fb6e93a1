"""Fixtures of tests/oracles/transformers_logits.py, opened through a family's `from_config` and `origins`, and as GGUF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from toolkit.checkpoint.base import Array, TensorInfo
from toolkit.simulate.cache import KvCache
from toolkit.simulate.families.registry import family_of_config
from toolkit.simulate.hyperparameters import to_gguf
from toolkit.simulate.network import Network

DATA = Path(__file__).parents[1] / "data/toolkit/families"
NAMES = tuple(sorted(path.name.removesuffix(".logits.npz") for path in DATA.glob("*.logits.npz")))
CAPACITY = 48


def fields(name: str) -> dict[str, Any]:
    return dict(json.loads((DATA / f"{name}.json").read_text()))


class Fixture:
    """A tiny checkpoint in the house's form; `changes` replace fields of its config.json."""

    def __init__(self, name: str, **changes: Any) -> None:
        config = fields(name) | changes
        self.theirs = {key: values.astype(np.float32) for key, values in load_file(DATA / f"{name}.safetensors").items()}
        self.family = family_of_config(config["architectures"])
        self.hyperparameters = self.family.from_config(config)
        self.origins = self.family.origins(self.hyperparameters, {key: values.shape for key, values in self.theirs.items()})
        self.tensors = {key: TensorInfo(key, origin.shape, "F32", 0) for key, origin in self.origins.items()}

    def read(self, name: str) -> Array:
        origin = self.origins[name]
        sources = [self.theirs[source] for source in origin.sources]
        return sources[0] if origin.make is None else origin.make(sources)


def run(network: Network, prompt: NDArray[np.int64], sizes: list[int], capacity: int = CAPACITY) -> Array:
    """Return logits after every token, run in chunks of these sizes over one cache."""
    cache = KvCache(network.hyperparameters, capacity)
    parts = np.split(prompt, np.cumsum(sizes)[:-1])
    return np.concatenate([network.logits(network.hidden(network.embed(part), cache)) for part in parts])


def write_gguf(fixture: Fixture, path: Path) -> None:
    """Write the model with the keys that the toolkit gives it, and a vocabulary of letters."""
    sizes = fixture.hyperparameters
    writer = gguf.GGUFWriter(path, fixture.family.architecture)
    for key, value in (to_gguf(sizes) | fixture.family.to_gguf(sizes)).items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case list():
                writer.add_array(key, value)
            case _ if key != "general.architecture":
                writer.add_string(key, value)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(chr(ord("A") + index) for index in range(sizes.vocabulary - 3))])
    writer.add_token_scores([0.0] * sizes.vocabulary)
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (sizes.vocabulary - 3)
    writer.add_token_types([int(kind) for kind in kinds])
    for name in fixture.tensors:
        writer.add_tensor(name, np.ascontiguousarray(fixture.read(name)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
