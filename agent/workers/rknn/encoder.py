"""The worker's side of an image encoder: starts its process, sends it images, and outlives its crashes.

In: what the agent said about the NPU (`NpuLoad`) and image files. Out: embeddings. Used by the worker of a vision model, from one thread
at a time; every call blocks, for a bounded time, and belongs inside the lock that the worker holds while it uses the NPU, because encoder
and language model must not run together.

`start` comes before the language model is loaded, so that the encoder is the first in its IOMMU domain, where it must lie as a whole; it
encodes a grey image to see what the encoder gives. A process that is started again does not, because a language model may be running.
A process that crashes or hangs is ended and started again at once; the request that met it fails, and the next ones are told to come
again until it is loaded. After `CRASHES_MAX` in a row without an answer between, it rests for `REST_SECONDS`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from agent.workers.pipe import NpuLoad
from agent.workers.rkllm.vision import ImageEmbedding
from agent.workers.rknn import frames, images
from agent.workers.rknn.settings import EncoderSettings, read_settings
from rkfleet.clock import Clock, SystemClock
from rkfleet.errors import BadRequest, FailedPrecondition, Internal, Unavailable

__all__ = ["ChildEncoder", "Limits", "open_encoder"]

READ_BYTES: Final = 1 << 20
# Each crash costs the load of an encoder of up to 2 GB; one image that kills it must not do so in a loop.
CRASHES_MAX: Final = 3
REST_SECONDS: Final = 60.0
STANDARD_ERROR: Final = 2
# A killed process is gone when the driver has let go of its memory.
GONE_SECONDS: Final = 10.0
# One that is asked to end gives the NPU's memory back first, in milliseconds unless it is in the middle of a run.
RELEASE_SECONDS: Final = 1.0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long the worker waits.

    Attributes:
        load_seconds: For the encoder to be loaded: 1.4 GB from an SD card at 20 MB/s take 70 s, and its first run some more.
        encode_seconds: For one image. The slowest of the vendor's table takes 3.6 s (Qwen2-VL-2B on RK3576); a board that throttles, and
            a photo that is decoded before, fit in ten times that. It stays below what a worker's own watch allows.
            Source: https://github.com/airockchip/rknn-llm/blob/main/benchmark.md.
    """

    load_seconds: float = 300.0
    encode_seconds: float = 45.0


class _Lost(Exception):
    """The process ended, hangs, or broke the pipe."""


class _Process:
    """One encoder process and the two ends of its pipe."""

    def __init__(self, python: str, environ: Mapping[str, str], log: int, clock: Clock) -> None:
        self._clock: Final = clock
        watched, self._lifeline = os.pipe()
        try:
            self._child: Final = subprocess.Popen(
                [python, "-m", "agent.workers.rknn.child", str(watched)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environ, pass_fds=(watched,), bufsize=0,
            )  # fmt: skip
        except OSError:
            os.close(self._lifeline)
            raise
        finally:
            os.close(watched)
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._requests: Final = self._child.stdin.fileno()
        self._replies: Final = self._child.stdout.fileno()
        os.set_blocking(self._requests, False)
        os.set_blocking(self._replies, False)
        self.began: Final = clock.monotonic()

    @property
    def pid(self) -> int:
        return self._child.pid

    def send(self, message: frames.Request, body: bytes, deadline: float) -> None:
        """Write a frame until the deadline.

        Raises:
            _Lost: It could not be written.
        """
        for part in frames.encode_frame(message, body):
            rest = memoryview(part)
            while rest:
                self._wait(self._requests, select.POLLOUT, deadline)
                try:
                    rest = rest[os.write(self._requests, rest) :]
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise _Lost(self._how()) from error

    def receive(self, deadline: float) -> tuple[frames.Reply, bytes]:
        """Read a frame until the deadline.

        Raises:
            _Lost: None came.
        """
        try:
            head_bytes, body_bytes = frames.frame_sizes(self._read(frames.PREFIX_BYTES, deadline))
            return frames.decode_reply(self._read(head_bytes, deadline)), self._read(body_bytes, deadline)
        except Internal as error:
            raise _Lost(error.message) from error

    def ready(self, deadline: float) -> bool:
        """Return whether a reply, or the end, comes before the deadline."""
        try:
            self._wait(self._replies, select.POLLIN, deadline)
        except _Lost:
            return False
        return True

    def stop(self) -> None:
        """Let it give back what it holds, and end it."""
        if self._child.stdin is not None:
            self._child.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(RELEASE_SECONDS)
        self.end()

    def end(self) -> None:
        """Kill it and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self._child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(GONE_SECONDS)
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                stream.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def _read(self, count: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < count:
            self._wait(self._replies, select.POLLIN, deadline)
            try:
                piece = os.read(self._replies, min(READ_BYTES, count - len(data)))
            except BlockingIOError:
                continue
            if not piece:
                raise _Lost(self._how())
            data += piece
        return bytes(data)

    def _wait(self, file: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(file, event)
        left = deadline - self._clock.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise _Lost("did not answer in time")

    def _how(self) -> str:
        try:
            status = self._child.wait(GONE_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        if status < 0:
            with contextlib.suppress(ValueError):
                return f"was ended by {signal.Signals(-status).name}"
        return f"ended with status {status}"


class ChildEncoder:
    """The image encoder of one vision model, in a process of its own."""

    def __init__(
        self,
        npu: NpuLoad,
        clock: Clock,
        *,
        limits: Limits = Limits(),
        environ: Mapping[str, str] = os.environ,
        python: str = sys.executable,
    ) -> None:
        """Read what the artifact says about its encoder.

        Args:
            npu: `encoder_path` and `config_path` are read.
            clock: Monotonic time for limits.
            limits: How long to wait for what.
            environ: Environment of the process.
            python: Its interpreter.

        Raises:
            FailedPrecondition: The artifact has no config file, or `vision` in it is missing or out of range.
        """
        if not npu.config_path:
            raise FailedPrecondition('an image encoder needs a file with role config that has "vision": {"imageSize": [width, height]}')
        self.settings: Final[EncoderSettings] = read_settings(Path(npu.config_path))
        self._path: Final = npu.encoder_path
        self._clock: Final = clock
        self._limits: Final = limits
        self._environ: Final = environ
        self._python: Final = python
        # Where standard error goes now: the worker may later read its own, to tell what its library says, and this is not part of it.
        self._log: Final = os.dup(STANDARD_ERROR)
        self._calls: Final = threading.Lock()
        self._process: _Process | None = None
        self._is_loaded = False
        self._is_closed = False
        self._gives = frames.Opened()
        self._crashes = 0
        self._rests_until = 0.0

    @property
    def pid(self) -> int:
        """Return the process id; 0 without a process."""
        return self._process.pid if self._process else 0

    @property
    def embedding_size(self) -> int:
        """Return the numbers of one token; 0 until it is loaded."""
        return self._gives.embedding_size

    def start(self) -> None:
        """Load the encoder; returns when it has encoded its first, grey image.

        Raises:
            FailedPrecondition: It cannot be loaded; the message says why.
            Unavailable: Its process cannot be started, crashed or took too long.
        """
        with self._calls:
            try:
                process = self._begin(trial=True)
                self._gives = self._await_load(process, process.began + self._limits.load_seconds)
            except _Lost as lost:
                self._end()
                raise Unavailable(f"the image encoder {lost} while it was loading") from lost
            except FailedPrecondition:
                self._end()
                raise

    def encode(self, image: bytes) -> ImageEmbedding:
        """Encode an image file.

        Raises:
            BadRequest: It is no PNG, JPEG or WebP within the limits, or damaged.
            Unavailable: The encoder crashed or hung with this image, or is being started again; `retry_after_seconds` says when to come.
            Internal: It gave no embedding for a good image, or it cannot be loaded any more.
        """
        images.inspect(image)  # refused here, an image does not even travel
        with self._calls:
            deadline = self._clock.monotonic() + self._limits.encode_seconds
            process = self._loaded(deadline)
            try:
                process.send(frames.Encode(), image, deadline)
                reply, body = process.receive(deadline)
            except _Lost as lost:
                after = self._crashed()
                raise Unavailable(f"the image encoder {lost}; {after}", retry_after_seconds=self._retry_after()) from lost
            self._crashes = 0
            return self._embedding(reply, body)

    def close(self) -> None:
        """End the process, for good."""
        with self._calls:
            if self._process is not None:
                self._process.stop()
            self._process, self._is_loaded = None, False
            if not self._is_closed:
                os.close(self._log)
            self._is_closed = True

    def _embedding(self, reply: frames.Reply, body: bytes) -> ImageEmbedding:
        gives = self._gives
        match reply:
            case frames.Embedded(tokens=tokens, width=width, height=height):
                if tokens != gives.tokens or len(body) != 4 * tokens * gives.embedding_size:
                    raise Internal(f"the image encoder sent {len(body)} bytes for {tokens} tokens")
                return ImageEmbedding(floats=body, tokens=tokens, width=width, height=height)
            case frames.Refused(message=message):
                raise BadRequest(message)
            case frames.Broken(message=message):
                raise Internal(f"the image encoder gave no embedding: {message}")
            case frames.Opened() | frames.Failed():
                raise Internal("the image encoder answered out of turn")

    def _loaded(self, deadline: float) -> _Process:
        """Return the process once it is loaded, started anew where it ended."""
        if self._is_closed:
            raise Unavailable("the image encoder was ended with its model")
        now = self._clock.monotonic()
        if now < self._rests_until:
            why = f"the image encoder crashed {CRASHES_MAX} times in a row and rests"
            raise Unavailable(why, retry_after_seconds=self._retry_after())
        try:
            process = self._process or self._begin(trial=False)
            if not self._is_loaded:
                until = process.began + self._limits.load_seconds
                if until > deadline and not process.ready(deadline):
                    raise Unavailable("the image encoder is loading", retry_after_seconds=self._retry_after())
                self._await_load(process, until)
        except _Lost as lost:
            after = self._crashed()
            raise Unavailable(f"the image encoder {lost} while it was loading; {after}", retry_after_seconds=self._retry_after()) from lost
        except FailedPrecondition as error:
            self._crashed()
            raise Internal(f"the image encoder cannot be loaded any more: {error.message}") from error
        return process

    def _begin(self, *, trial: bool) -> _Process:
        self._is_loaded = False
        try:
            self._process = process = _Process(self._python, self._environ, self._log, self._clock)
        except OSError as error:
            raise _Lost(f"cannot be started ({error})") from error
        request = frames.Open(path=self._path, settings=self.settings, trial=trial)
        process.send(request, b"", process.began + self._limits.load_seconds)
        return process

    def _await_load(self, process: _Process, deadline: float) -> frames.Opened:
        reply, _ = process.receive(deadline)
        match reply:
            case frames.Opened():
                self._is_loaded = True
                return reply
            case frames.Failed(message=message):
                raise FailedPrecondition(message)
            case _:
                raise _Lost("answered out of turn")

    def _crashed(self) -> str:
        """End what is left of it and start it again, unless it has crashed too often; return which of the two."""
        self._end()
        self._crashes += 1
        if self._crashes >= CRASHES_MAX:
            self._rests_until = self._clock.monotonic() + REST_SECONDS
            self._crashes = CRASHES_MAX - 1  # one more after the rest, and it rests again
            return f"it crashed {CRASHES_MAX} times in a row and rests for {REST_SECONDS:.0f} s"
        with contextlib.suppress(_Lost):  # the next call meets it
            self._begin(trial=False)
        return "it is started again"

    def _end(self) -> None:
        if self._process is not None:
            self._process.end()
        self._process, self._is_loaded = None, False

    def _retry_after(self) -> int:
        return max(1, round(self._rests_until - self._clock.monotonic()))


def open_encoder(npu: NpuLoad) -> ChildEncoder:
    """Return the encoder of an artifact, loaded; call it before the language model is loaded, holding the lock of the NPU.

    Raises:
        FailedPrecondition: The artifact or the board cannot have it; the message says why.
        Unavailable: Its process crashed or took too long.
    """
    encoder = ChildEncoder(npu, SystemClock())
    encoder.start()
    return encoder
