"""`RKLLM` with the documented functions of each release; a parameter that a release lacks is a TypeError, as it would be there."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

from faults import fault

RELEASE = tuple(int(part) for part in metadata.version("rkllm-toolkit").split("."))

# As in the guide of each release, written down apart from the toolkit's own tables.
LOAD = {"model", "model_lora", "device"} | ({"dtype", "custom_config", "load_weight"} if RELEASE >= (1, 2, 0) else set())
BUILD = {
    *("do_quantization", "optimization_level", "quantized_dtype", "quantized_algorithm", "num_npu_core", "extra_qparams", "dataset"),
    *("hybrid_rate", "target_platform"),
    *(("max_context",) if RELEASE >= (1, 2, 0) else ()),
}
EXPORT = {"export_path"} | ({"export_tokenizer", "export_embedding"} if RELEASE >= (1, 3, 0) else set())


def known(function: str, given: dict, names: set) -> None:
    """Raise as Python does where a function has no such parameter."""
    if unknown := sorted(given.keys() - names):
        raise TypeError(f"{function}() got an unexpected keyword argument {unknown[0]!r}")


class RKLLM:
    def __init__(self) -> None:
        self.calls: list = []
        print("INFO: rkllm-toolkit version: " + metadata.version("rkllm-toolkit"))
        fault("import")

    def load_huggingface(self, **given) -> int:
        known("load_huggingface", given, LOAD)
        return self._do("load", "load_huggingface", given)

    def load_gguf(self, **given) -> int:
        known("load_gguf", given, {"model", "model_lora"})
        return self._do("load", "load_gguf", given)

    def build(self, **given) -> int:
        known("build", given, BUILD)
        for done in range(3):
            sys.stderr.write(f"\rBuilding model: {100 * done // 2:3d}%|####| {done}/2 [00:00<00:00,  9.99it/s]")
        sys.stderr.write("\n")
        if given["quantized_algorithm"].startswith(("gdq", "grq")) and not given["extra_qparams"]:
            Path("gdq.qparams").write_bytes(b"QPARAMS")
        return self._do("build", "build", given)

    def export_rkllm(self, **given) -> int:
        known("export_rkllm", given, EXPORT)
        word = fault("export")
        path = Path(given["export_path"])
        if word not in ("nothing", "-1"):
            path.write_bytes(b"" if word == "empty" else b"FAKE" + json.dumps([*self.calls, ["export_rkllm", given]]).encode())
        arguments = {name: value for _, call in self.calls for name, value in call.items()}
        if arguments.get("model_lora") or "_r" in arguments["quantized_algorithm"]:
            path.with_name(path.stem + "_lora.rkllm").write_bytes(b"LORA")
        return -1 if word == "-1" else 0

    def _do(self, stage: str, name: str, given: dict) -> int:
        self.calls.append([name, given])
        return -1 if fault(stage) == "-1" else 0
