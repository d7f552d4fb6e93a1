"""A worker process of the NPU runtime with an image encoder that needs no NPU, and with limits that a test can wait for.

`python -m tests.support.npu_child JSON`: options are those of `Options`; the rest is `agent.workers.child`.
"""

import struct
import sys
import zlib
from collections.abc import Mapping

import msgspec

from agent.workers import child
from agent.workers.pipe import Load
from agent.workers.rkllm import worker
from agent.workers.rkllm.vision import ImageEmbedding
from agent.workers.rkllm.watch import Limits
from tests.support.runtimes import WIDTH


class Options(msgspec.Struct):
    limits: Limits = Limits()
    beat_seconds: float = child.BEAT_SECONDS


def floats_of(image: bytes) -> bytes:
    """Return two tokens that are another image's only by chance."""
    one = zlib.crc32(image) % 1000
    return struct.pack(f"<{2 * WIDTH}f", *[float(one)] * WIDTH, *[float(one + 1)] * WIDTH)


class Encoder:
    """Two tokens for each image."""

    def encode(self, image: bytes) -> ImageEmbedding:
        return ImageEmbedding(floats=floats_of(image), tokens=2, width=8, height=8)


def load(load: Load) -> worker.Rkllm:
    return worker.load(load, open_encoder=lambda _npu: Encoder(), limits=OPTIONS.limits)


if __name__ == "__main__":
    OPTIONS = msgspec.json.decode(sys.argv[1], type=Options)
    sys.modules["tests.support.npu_child"] = sys.modules["__main__"]
    runtimes: Mapping[str, str] = {"rkllm": "tests.support.npu_child"}
    child.RUNTIMES = runtimes  # type: ignore[misc]
    child.BEAT_SECONDS = OPTIONS.beat_seconds  # type: ignore[misc]
    sys.exit(child.main())
