"""The control pipe between the agent and a worker process: two messages out, three back, one JSON object per line.

The agent writes one `Load` and then nothing; the worker ends when the pipe ends, whether the agent closed it, crashed or was killed.
The worker answers `Loaded` or `Failed` once and then a `Beat` whenever its runtime proved that it makes progress. Requests and tokens
never travel here, they go over the worker's HTTP listener.

Used by `agent/workers/backends.py` (the agent's end) and `agent/workers/child.py` (the worker's end). It has no I/O of its own.
"""

from __future__ import annotations

from typing import Final

import msgspec

from rkfleet.errors import Internal
from rkfleet.kinds.replica import ExitReason

__all__ = ["LINE_BYTES_MAX", "Adapter", "Beat", "Event", "Failed", "Load", "Loaded", "NpuLoad", "decode_event", "decode_load", "encode"]

LINE_BYTES_MAX: Final = 64 << 10  # A path and a sentence; longer lines are a mistake of ours.


class Adapter(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A LoRA that is loaded with the model: the name that requests choose it by, its file, and its weight (1 = as trained)."""

    name: str
    path: str
    scale: float = 1.0


class NpuLoad(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """What a worker on the NPU is told besides.

    Attributes:
        library: The runtime library's file (`librkllmrt.so`).
        generation: Its ABI generation, decided before (`agent.workers.rkllm.identify`).
        library_version: Its release as far as known; empty for unknown.
        lock_path: File whose lock a worker holds while it uses the NPU: one user at a time on a board.
        base_domain: First IOMMU domain of the NPU that the model uses, 0 to 15; an encoder comes first in it.
        embed_flash: Read word embeddings from storage.
        cpus: CPUs of the runtime; empty for the library's own choice.
        shift: Forget the oldest tokens when the context is full, instead of ending the answer.
        keep_tokens: Tokens at the start that a shift keeps.
        adapters: LoRAs to load.
        encoder_path: Image encoder of a vision model; empty for none.
        template_path: Chat template (Jinja) of the artifact; empty leaves templates to the runtime.
        config_path: The artifact's config.json; empty for none. It says what an image becomes (tokens, size, marks).
        cache_dir: Directory for saved prompts, this worker's own model and runtime; empty saves none.
        cache_bytes: Bytes that saved prompts may take there.
    """

    library: str
    generation: str
    library_version: str = ""
    lock_path: str = ""
    base_domain: int = 0
    embed_flash: bool = False
    cpus: tuple[int, ...] = ()
    shift: bool = False
    keep_tokens: int = 0
    adapters: tuple[Adapter, ...] = ()
    encoder_path: str = ""
    template_path: str = ""
    config_path: str = ""
    cache_dir: str = ""
    cache_bytes: int = 0


class Load(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What to load and how.

    Attributes:
        backend: Name of the backend, a key of `agent.workers.child.RUNTIMES`.
        api_key: Bearer token that the listener must demand. It travels here because arguments and environment can be read by others.
        max_output_tokens: Most tokens of one answer, where the runtime must know before it loads.
        npu: For runtimes on the NPU.
        shift: Forget the oldest tokens when the context is full, instead of ending the answer.
        keep_tokens: Tokens at the start that a shift keeps.
    """

    backend: str
    model_path: str
    context_tokens: int
    max_concurrent: int
    threads: int
    api_key: str
    max_output_tokens: int = 512
    npu: NpuLoad | None = None
    shift: bool = False
    keep_tokens: int = 0


class Loaded(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="loaded"):
    """The model is loaded and the listener answers at `endpoint`, an HTTP base URL on loopback."""

    endpoint: str


class Failed(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="failed"):
    """The model cannot be loaded, or the runtime is beyond help; the worker ends after this."""

    reason: ExitReason
    message: str


class Beat(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="beat"):
    """The runtime's own loop answered a question just now."""


Event = Loaded | Failed | Beat


def encode(message: Load | Event) -> bytes:
    """Return the message as one line."""
    return msgspec.json.encode(message) + b"\n"


def decode_load(line: bytes) -> Load:
    """Read what the agent wrote.

    Raises:
        Internal: The line is not a `Load`.
    """
    try:
        return msgspec.json.decode(line, type=Load)
    except msgspec.MsgspecError as error:
        raise Internal(f"control pipe: {len(line)} bytes are no load message") from error


def decode_event(line: bytes) -> Event:
    """Read what the worker wrote.

    Raises:
        Internal: The line is not an event.
    """
    try:
        event: Event = msgspec.json.decode(line, type=Event)
    except msgspec.MsgspecError as error:
        raise Internal(f"control pipe: {len(line)} bytes are no worker event") from error
    return event
