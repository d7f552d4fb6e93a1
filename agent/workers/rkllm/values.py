"""What goes into the library and what comes out of it, as frozen values of every generation.

Used by `library.py`, which hands them on under its own name, and by whoever calls it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import msgspec

__all__ = [
    "Embedding",
    "Floats",
    "Input",
    "LoadParameters",
    "Mode",
    "Multimodal",
    "Perf",
    "Prompt",
    "Result",
    "RunOptions",
    "Sampling",
    "State",
    "Tensor",
    "Tokens",
]

# float32 in the byte order of this machine; never copied on the way in.
Floats: TypeAlias = bytes | bytearray | memoryview | array  # type: ignore[type-arg]  # msgspec reads it at run time

Mode = Literal["generate", "hidden", "logits"]
State = Literal["normal", "waiting", "finish", "error"]


class LoadParameters(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is loaded; None leaves what the library has by default.

    Attributes:
        max_context_tokens: At most what the model file was made for; the library refuses more.
        max_new_tokens: Of one answer; -1 is no limit.
        keep_tokens: Tokens at the beginning that stay when the window shifts (n_keep, from G2); -1 as the vendor's demo passes.
        skip_special_token: Do not send special tokens as text.
        ignore_eos: Go on after the end-of-answer token (G4).
        base_domain_id: First IOMMU domain of the NPU that the model is put into.
        embed_flash: Read word embeddings from storage instead of memory (from G2).
        cpu_count: Cores for the CPU's part (from G2); 0 leaves the default. At least as many as the model has NPU cores.
        cpu_mask: Which cores, bit i is core i (from G2); 0 leaves the default.
        image_start: Text before the images of a multimodal prompt; also `image_end`, `image_content` (stands for one image). In G4 they go
            with each input, those here are what it gets when it names none.
    """

    model_path: str
    max_context_tokens: int
    max_new_tokens: int = -1
    keep_tokens: int = 0
    top_k: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    repeat_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    skip_special_token: bool = True
    ignore_eos: bool = False
    base_domain_id: int = 0
    embed_flash: bool = False
    cpu_count: int = 0
    cpu_mask: int = 0
    image_start: str = ""
    image_end: str = ""
    image_content: str = ""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """RKLLMSamplingParam of one request (G4); None is what was loaded."""

    top_k: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    repeat_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None


class Prompt(msgspec.Struct, frozen=True):
    """Text. From G2 the library wraps it with the model's chat template; G1 takes it as it is.

    Attributes:
        role: `user` or `tool` (from G3).
        enable_thinking: False asks a thinking model not to (from G3).
    """

    text: str
    role: str = "user"
    enable_thinking: bool = True


class Tokens(msgspec.Struct, frozen=True):
    """Token ids of the model's own vocabulary; no template is put around them."""

    ids: Sequence[int]


class Embedding(msgspec.Struct, frozen=True):
    """Word embeddings: `floats` is float32[tokens, width of the model]."""

    floats: Floats
    tokens: int


class Multimodal(msgspec.Struct, frozen=True, kw_only=True):
    """Text with images that an encoder has turned into embeddings.

    Attributes:
        prompt: Text with a marker where each image goes.
        image_embeds: float32[images, tokens_per_image, width of the model].
        images: More than one from G2 (1.2.1b1).
        width: Pixels of the encoder's input, also `height`; 0 is not said.
        start: Text before an image (G4; before it, of the load); also `end`, and `content`, which stands for one image.
    """

    prompt: str
    image_embeds: Floats
    tokens_per_image: int
    images: int = 1
    width: int = 0
    height: int = 0
    start: str = ""
    end: str = ""
    content: str = ""
    role: str = "user"
    enable_thinking: bool = True


Input: TypeAlias = Prompt | Tokens | Embedding | Multimodal


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How one request runs. Nothing of it is left for the next.

    Attributes:
        mode: What to return: text, the last hidden layer, or logits (from G2).
        keep_history: Go on with what the KV cache holds (from G2).
        adapter: Name of a loaded LoRA adapter; empty is none.
        save_prompt_cache: File to write the KV state of the prompt to; empty is none.
        sampling: For this request (G4).
        max_new_tokens: For this request (G4); before it the caller counts and aborts.
    """

    mode: Mode = "generate"
    keep_history: bool = False
    adapter: str = ""
    save_prompt_cache: str = ""
    sampling: Sampling | None = None
    max_new_tokens: int | None = None


class Tensor(NamedTuple):
    """Numbers out of the library: float32[tokens, width], little endian as every machine with such a library is.

    Attributes:
        width: Of the model for hidden states, of its vocabulary for logits.
    """

    data: bytes
    width: int
    tokens: int


class Perf(msgspec.Struct, frozen=True, gc=False):
    """RKLLMPerfStat (from G3). The library has no time to the first token; `prefill_ms` is the nearest."""

    prefill_ms: float
    prefill_tokens: int
    generate_ms: float
    generate_tokens: int
    memory_mb: float


class Result(msgspec.Struct, frozen=True, gc=False):
    """One call of the library's callback; nothing in it points into the library.

    Attributes:
        request: The id that `run` was called with.
        text: UTF-8, which may end within a character when `state` is waiting; empty when the library gave none.
        token_id: As the library gave it; it means nothing with finish and error.
        perf: With finish, from G3.
    """

    request: int
    state: State
    text: bytes
    token_id: int
    hidden: Tensor | None = None
    logits: Tensor | None = None
    perf: Perf | None = None
