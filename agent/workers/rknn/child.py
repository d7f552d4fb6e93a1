"""The encoder's process: `python -m agent.workers.rknn.child LIFELINE`, started by `agent/workers/rknn/encoder.py`, never forked.

In: frames on standard input (`agent/workers/rknn/frames.py`). Out: one frame for each on what was standard output; what the vendor's
library prints goes to standard error, which is the worker's. `rknnlite` is imported here and nowhere else.

Ending. It ends when its input ends. While the library holds Python's lock in a run that hangs, it cannot see that; so LIFELINE is a file
descriptor of a pipe that the worker holds open and never writes to, and the kernel ends this process when the worker is gone.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agent.workers.child import end_with, prefer_to_be_killed
from agent.workers.rknn import frames, images
from agent.workers.rknn.settings import EncoderSettings
from rkfleet.errors import BadRequest, FailedPrecondition, FleetError, Internal

__all__ = ["RknnEncoder", "main"]

READ_BYTES: Final = 1 << 20

# Cores by number; 0 is all of the chip. Older releases of the library have no word for all, and then choose themselves.
# Source: rknn-toolkit-lite2 2.5.0, rknnlite/api/rknn_lite.py.
_MASKS: Final = {1: ("NPU_CORE_0",), 2: ("NPU_CORE_0_1",), 3: ("NPU_CORE_0_1_2",), 0: ("NPU_CORE_ALL", "NPU_CORE_AUTO")}


class RknnEncoder:
    """A loaded `.rknn` file."""

    def __init__(self, path: Path, settings: EncoderSettings) -> None:
        """Load the file.

        Raises:
            FailedPrecondition: A library is missing, or the file cannot be loaded.
        """
        try:
            library: Any = importlib.import_module("rknnlite.api").RKNNLite
            self._pixels: Final = importlib.import_module("agent.workers.rknn.pixels")
        except ImportError as error:
            raise FailedPrecondition(
                f"images need the extra vision, {error.name} is missing; try, in a checkout: pip install '.[vision]'"
            ) from error
        self._settings: Final = settings
        self._lite: Final[Any] = library()
        if (code := self._lite.load_rknn(str(path))) != 0:
            raise FailedPrecondition(f"the image encoder is no .rknn file that can be read (load_rknn returned {code})")
        mask = next(getattr(library, name) for name in _MASKS[settings.cores] if hasattr(library, name))
        if (code := self._lite.init_runtime(core_mask=mask)) != 0:
            raise FailedPrecondition(f"the image encoder cannot be started on the NPU (init_runtime returned {code})")

    def try_grey(self) -> frames.Opened:
        """Encode a grey image to see that the encoder is what the settings say.

        Raises:
            FailedPrecondition: It is not.
        """
        try:
            made = self._run(self._pixels.grey(self._settings))
        except Internal as error:
            raise FailedPrecondition(f"the image encoder does not encode a grey image: {error.message}") from error
        return frames.Opened(tokens=int(made.shape[0]), embedding_size=int(made.shape[1] * made.shape[2]))

    def encode(self, data: bytes) -> tuple[bytes, int]:
        """Return an image's embedding, float32[tokens, embedding size] in little endian, and its tokens.

        Raises:
            BadRequest: The image cannot be read.
            Internal: The encoder gave no embedding.
        """
        made = self._run(self._pixels.input_of(images.inspect(data), self._settings))
        return made.astype("<f4", copy=False).tobytes(), int(made.shape[0])

    def _run(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """Return float32[tokens, outputs, numbers] of one run, in memory of its own."""
        more = {"data_format": ["nchw"]} if self._settings.layout == "nchw" else {}
        outputs: Sequence[NDArray[Any]] | None = self._lite.inference(inputs=[image], **more)
        if not outputs:
            raise Internal("the library returned nothing; its words are in the worker's log")
        # Several outputs are layers of one embedding, side by side for each token, as the runtime wants them.
        # Source: run_imgenc of the vendor's multimodal demo.
        layers = [np.array(output, dtype=np.float32, copy=True).reshape(-1, output.shape[-1]) for output in outputs]
        if any(layer.shape != layers[0].shape for layer in layers):
            raise Internal(f"outputs of shapes {', '.join(str(output.shape) for output in outputs)} are no layers of one embedding")
        made = np.stack(layers, axis=1)
        tokens, size = self._settings.tokens or made.shape[0], self._settings.embedding_size or made.shape[2]
        if (made.shape[0], made.shape[2]) != (tokens, size):
            raise Internal(f"it gives {made.shape[0]} tokens of {made.shape[2]} numbers; config.json says {tokens} of {size}")
        if not np.isfinite(made).all() or not made.any():
            raise Internal("its numbers are not finite, or all zero")
        return made

    def release(self) -> None:
        """Give the NPU's memory back."""
        self._lite.release()


def main() -> int:
    """Load, then answer until the worker is gone; 1 if the encoder cannot be loaded."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, replies = sys.stdin.fileno(), os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    end_with(int(sys.argv[1]))
    prefer_to_be_killed(Path("/proc/self/oom_score_adj"))
    first, _ = _next(requests)
    assert isinstance(first, frames.Open)
    try:
        encoder = RknnEncoder(Path(first.path), first.settings)
        opened = encoder.try_grey() if first.trial else frames.Opened()
    except FleetError as error:
        _say(replies, frames.Failed(message=error.message))
        return 1
    _say(replies, opened)
    try:
        while True:
            _, body = _next(requests)
            _say(replies, *_answer(encoder, body, first.settings))
    finally:
        encoder.release()


def _answer(encoder: RknnEncoder, image: bytes, settings: EncoderSettings) -> tuple[frames.Reply, bytes]:
    width, height = settings.image_size
    try:
        floats, tokens = encoder.encode(image)
    except BadRequest as error:
        return frames.Refused(message=error.message), b""
    except Internal as error:
        return frames.Broken(message=error.message), b""
    return frames.Embedded(tokens=tokens, width=width, height=height), floats


def _next(requests: int) -> tuple[frames.Request, bytes]:
    head_bytes, body_bytes = frames.frame_sizes(_read(requests, frames.PREFIX_BYTES))
    return frames.decode_request(_read(requests, head_bytes)), _read(requests, body_bytes)


def _read(file: int, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = os.read(file, min(READ_BYTES, count - len(data)))
        if not piece:
            sys.exit(0)  # the worker closed the pipe
        data += piece
    return bytes(data)


def _say(replies: int, message: frames.Reply, body: bytes = b"") -> None:
    for part in frames.encode_frame(message, body):
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(replies, rest) :]


if __name__ == "__main__":
    sys.exit(main())
