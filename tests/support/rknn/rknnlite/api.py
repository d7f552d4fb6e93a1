"""A stand-in for rknn-toolkit-lite2 with its Python interface: an NPU that there is none of.

Its embeddings follow from the pixels alone. A `.rknn` file of this stand-in is JSON: `{"tokens": 4, "size": 8, "outputs": 1}`, and faults:
`load`, `init` (return codes), `none_at`, `crash_at`, `crash_above` (mean of the input), `hang_at`, `zero_at`, `reuse` (outputs are views
that the next run overwrites, as with the real library's `reuse_outputs`). Runs are counted from 1, the first is the worker's trial.
`$FAKE_RKNN_LOG` names a file that gets a line for each call.

Source of the interface: rknn-toolkit-lite2 2.5.0, rknnlite/api/rknn_lite.py.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np


class RKNNLite:
    NPU_CORE_AUTO = 0
    NPU_CORE_0 = 1
    NPU_CORE_1 = 2
    NPU_CORE_2 = 4
    NPU_CORE_0_1 = 3
    NPU_CORE_0_1_2 = 7
    NPU_CORE_ALL = 0xFFFF

    def __init__(self, verbose: bool = False, verbose_file: str | None = None) -> None:
        self._model: dict[str, Any] | None = None
        self._running = False
        self._runs = 0
        self._buffers: list[np.ndarray] = []

    def load_rknn(self, path: str, key_path: str | None = None) -> int:
        try:
            model = json.loads(Path(path).read_text())
        except (OSError, ValueError):
            print(f"E RKNN: Invalid RKNN model path: {path}")  # the real one prints to standard output as well
            return -1
        self._model = model
        self._note(f"load_rknn {Path(path).name}")
        return int(model.get("load", 0))

    def init_runtime(
        self, target: str | None = None, device_id: str | None = None, async_mode: bool = False, core_mask: int = NPU_CORE_AUTO
    ) -> int:
        if self._model is None:
            return -1
        self._note(f"init_runtime {core_mask}")
        code = int(self._model.get("init", 0))
        self._running = code == 0
        if code:
            print("E RKNN: failed to open rknn device!", file=sys.stderr)
        return code

    def inference(
        self, inputs: list[np.ndarray], data_type: str | None = None, data_format: list[str] | None = None,
        inputs_pass_through: list[int] | None = None, *, get_frame_id: bool = False, reuse_outputs: bool = False,
    ) -> list[np.ndarray] | None:  # fmt: skip
        if not self._running or self._model is None:
            return None
        self._runs += 1
        model = self._model
        self._note(f"inference {inputs[0].dtype} {'x'.join(map(str, inputs[0].shape))} {data_format or 'nhwc'}")
        if self._runs == model.get("crash_at") or inputs[0].mean() > model.get("crash_above", 255):
            os.kill(os.getpid(), signal.SIGSEGV)
        if self._runs == model.get("hang_at"):
            threading.Event().wait()
        if self._runs == model.get("none_at"):
            print("E RKNN: failed to submit!, op id: 1")
            return None
        outputs = [self._output(inputs[0], layer) for layer in range(model.get("outputs", 1))]
        if self._runs == model.get("zero_at"):
            outputs = [np.zeros_like(output) for output in outputs]
        if model.get("reuse"):
            self._buffers = self._buffers or [np.empty_like(output) for output in outputs]
            for buffer, output in zip(self._buffers, outputs, strict=True):
                buffer[...] = output
            return self._buffers
        return outputs

    def _output(self, image: np.ndarray, layer: int) -> np.ndarray:
        """Return float16[1, tokens, size]: mean and position-weighted sums of the pixels, another for each token, number and layer."""
        assert self._model is not None
        tokens, size = self._model["tokens"], self._model["size"]
        flat = image.astype(np.float64).reshape(-1)
        weights = np.cos(np.arange(flat.size) * 0.37)
        seeds = np.arange(1, tokens * size + 1).reshape(1, tokens, size)
        value = flat.mean() / 256 + (flat * weights).sum() / flat.size
        return (np.sin(seeds * (1 + layer)) + value).astype(np.float16)

    def get_sdk_version(self) -> str:
        return "2.5.0 (stand-in)"

    def release(self) -> None:
        self._note("release")
        self._running = False

    def _note(self, what: str) -> None:
        if path := os.environ.get("FAKE_RKNN_LOG"):
            with Path(path).open("a") as log:
                log.write(f"encoder {what}\n")
