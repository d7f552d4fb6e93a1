"""A worker process of the NPU runtime with an image encoder that needs no NPU, and with limits that a test can wait for.

`python -m tests.support.npu_child JSON`: options are those of `Options`; the rest is `agent.workers.child`.
"""

import struct
import sys
from collections.abc import Mapping

import msgspec

from agent.workers import child
from agent.workers.pipe import Load
from agent.workers.rkllm import worker
from agent.workers.rkllm.vision import ImageEmbedding
from agent.workers.rkllm.watch import Limits
from rkfleet.errors import BadRequest
from tests.support.runtimes import WIDTH


class Options(msgspec.Struct):
    limits: Limits = Limits()
    beat_seconds: float = child.BEAT_SECONDS


class Encoder:
    """Two tokens for each image: the first byte in all of one, the last in all of the other."""

    def encode(self, image: bytes) -> ImageEmbedding:
        if image == b"no image":
            raise BadRequest("the image is neither JPEG nor PNG")
        numbers = [float(image[0])] * WIDTH + [float(image[-1])] * WIDTH
        return ImageEmbedding(floats=struct.pack(f"<{2 * WIDTH}f", *numbers), tokens=2, width=8, height=8)


def load(load: Load) -> worker.Rkllm:
    return worker.load(load, open_encoder=lambda _npu: Encoder(), limits=OPTIONS.limits)


if __name__ == "__main__":
    OPTIONS = msgspec.json.decode(sys.argv[1], type=Options)
    sys.modules["tests.support.npu_child"] = sys.modules["__main__"]
    runtimes: Mapping[str, str] = {"rkllm": "tests.support.npu_child"}
    child.RUNTIMES = runtimes  # type: ignore[misc]
    child.BEAT_SECONDS = OPTIONS.beat_seconds  # type: ignore[misc]
    sys.exit(child.main())
