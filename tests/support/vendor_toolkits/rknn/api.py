"""`RKNN` with the functions that a conversion calls; its simulator returns its inputs doubled."""

from __future__ import annotations

import json
from pathlib import Path

from faults import fault


class RKNN:
    def __init__(self, verbose: bool = True, verbose_file: object = None) -> None:
        self.calls: list = []
        self.simulates = False

    def config(self, target_platform: str) -> int:
        return self._do("configure", target_platform)

    def load_onnx(self, model: str) -> int:
        return self._do("load", model)

    def build(self, do_quantization: bool = True, dataset: object = None) -> int:
        return self._do("build", [do_quantization, dataset])

    def export_rknn(self, export_path: str) -> int:
        Path(export_path).write_bytes((b"DAMAGED" if fault("export") == "damage" else b"RKNN") + json.dumps(self.calls).encode())
        return 0

    def init_runtime(self, target: object = None) -> int:
        self.simulates = target is None
        return 0

    def inference(self, inputs: list, data_format: object = None) -> object:
        assert self.simulates
        return None if fault("simulate") == "nothing" else [2 * one for one in inputs]

    def _do(self, stage: str, what: object) -> int:
        self.calls.append([stage, what])
        return -1 if fault(stage) == "-1" else 0
