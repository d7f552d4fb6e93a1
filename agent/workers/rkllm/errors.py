"""What goes wrong between rkfleet and the vendor's runtime, as types.

    RkllmError
    ├── UnknownRuntime      the file is no runtime, or nobody can say which generation it speaks
    ├── LibraryUnusable     it cannot be mapped, or does not behave as its generation
    ├── Unsupported         asked for something that this generation cannot do, or that rkfleet refuses
    ├── Misuse              a call at the wrong time: our own mistake
    └── CallFailed          a function returned anything but 0; `call` and `code` say which and what
        ├── InitFailed
        ├── RunFailed       also a run that reported an error by its callback and then returned 0
        ├── AbortFailed
        ├── DestroyFailed
        ├── AdapterFailed
        ├── PromptCacheFailed
        ├── KvCacheFailed
        └── TemplateFailed  chat template or function tools

Raised by `identify.py` and `library.py`. The library gives no reasons, only -1; they stand in the lines that it printed before.
"""

from __future__ import annotations

from typing import Final

from rkfleet.errors import FleetError

__all__ = [
    "AbortFailed",
    "AdapterFailed",
    "CallFailed",
    "DestroyFailed",
    "InitFailed",
    "KvCacheFailed",
    "LibraryUnusable",
    "Misuse",
    "PromptCacheFailed",
    "RkllmError",
    "RunFailed",
    "TemplateFailed",
    "UnknownRuntime",
    "Unsupported",
]


class RkllmError(FleetError):
    """Something between rkfleet and librkllmrt.so went wrong."""


class UnknownRuntime(RkllmError):
    """The file is no runtime, or nobody can say which generation it speaks."""

    http_status = 409
    http_reason = "Conflict"
    grpc_code = 9
    exit_status = 1


class LibraryUnusable(UnknownRuntime):
    """The library cannot be mapped, or does not behave as its generation."""


class Unsupported(RkllmError):
    """The generation of the library cannot do what was asked."""

    http_status = 422
    http_reason = "Invalid"
    grpc_code = 3
    exit_status = 1


class Misuse(RkllmError):
    """A call at the wrong time: a second run, or any after destroy."""


class CallFailed(RkllmError):
    """A function of the library returned anything but 0.

    Attributes:
        call: Name of the function.
        code: What it returned.
    """

    def __init__(self, call: str, code: int, about: str = "") -> None:
        super().__init__(f"{call} returned {code}{about and f': {about}'}", call=call, code=code)
        self.call: Final = call
        self.code: Final = code


class InitFailed(CallFailed):
    """rkllm_init: the model is not loaded."""


class RunFailed(CallFailed):
    """rkllm_run: the request failed; `code` is 0 when only its callback said so."""


class AbortFailed(CallFailed):
    """rkllm_abort: the run goes on."""


class DestroyFailed(CallFailed):
    """rkllm_destroy: memory of the NPU may still be held."""


class AdapterFailed(CallFailed):
    """rkllm_load_lora."""


class PromptCacheFailed(CallFailed):
    """rkllm_load_prompt_cache or rkllm_release_prompt_cache."""


class KvCacheFailed(CallFailed):
    """rkllm_clear_kv_cache or rkllm_get_kv_cache_size."""


class TemplateFailed(CallFailed):
    """rkllm_set_chat_template or rkllm_set_function_tools."""
