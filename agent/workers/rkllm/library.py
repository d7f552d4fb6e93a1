"""The runtime library as Python calls it: one class for every generation, whose differences end here.

In: a file and its generation. Out: a `Library`, and from it a `Model` that runs one request at a time in the caller's thread and gives
each result to a function. Imported by worker processes only; HTTP, queues and deadlines are theirs.

What the interface of the library demands and this module keeps:

- Structs are those of the generation and begin as `rkllm_createDefaultParam` returns them; every other one begins as zeros.
- The callback returns an int, 0, in every generation. Exceptions in it never reach C: they end the run and are raised by `run`.
- What a struct points to lives until the call has returned. What a result points to is copied before the callback returns.
- Adapter, prompt cache and sampling of a request are made anew for it, so nothing of one request reaches the next.
- The request's id travels as userdata: a late result cannot be taken for another request's.
- No return code is ignored. `rkllm_is_running` is not called at all: its meaning was turned round in 1.3.0.

Left out on purpose, though laid out: batches (n_batch above 1), cross attention and video; `Model.require` says so. Runtimes of the 1.1
line can fail to load and return 0: whoever calls `init` reads the lines that the library printed as well.

Source: `rkllm.h` and the manual of https://github.com/airockchip/rknn-llm.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from agent.workers.rkllm import layouts, marshal
from agent.workers.rkllm.errors import (
    AbortFailed,
    AdapterFailed,
    CallFailed,
    DestroyFailed,
    InitFailed,
    KvCacheFailed,
    LibraryUnusable,
    Misuse,
    PromptCacheFailed,
    RunFailed,
    TemplateFailed,
    Unsupported,
)
from agent.workers.rkllm.identify import PROBE_BYTES, Generation, generation_of_defaults
from agent.workers.rkllm.values import (
    Embedding,
    Input,
    LoadParameters,
    Mode,
    Multimodal,
    Perf,
    Prompt,
    Result,
    RunOptions,
    Sampling,
    State,
    Tensor,
    Tokens,
)

__all__ = [
    "SUPPORTS",
    "Embedding",
    "Generation",
    "Input",
    "Library",
    "LoadParameters",
    "Mode",
    "Model",
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

_G1: Final = frozenset({"hidden", "adapter", "prompt_cache"})
_G2: Final = _G1 | {
    "built_in_chat_template",
    "chat_template",
    "clear_kv_cache",
    "cpus",
    "embed_flash",
    "images",
    "keep_history",
    "keep_tokens",
    "logits",
}
_G3: Final = _G2 | {"enable_thinking", "function_tools", "kv_cache_tokens", "perf", "role"}
_G4: Final = _G3 | {"ignore_eos", "image_marks_per_request", "max_new_tokens", "sampling"}

# What each generation can do. `images` is more than one image in a prompt; with 1.2.0, which is of G2 too, only the first one counts.
SUPPORTS: Final[Mapping[Generation, frozenset[str]]] = {"G1": _G1, "G2": _G2, "G3": _G3, "G4": _G4}

# Laid out and refused: their results come as arrays, in an order that no public page defines, or need encoders that rkfleet does not run.
REFUSED: Final = frozenset({"batch", "cross_attention", "video"})

# Userdata is a pointer, and 0 would be NULL: 1.3.0 then takes another one instead.
REQUEST_MAX: Final = (1 << 31) - 1

_FUNCTIONS: Final[Mapping[Generation, frozenset[str]]] = {
    "G1": frozenset({"createDefaultParam", "init", "load_lora", "load_prompt_cache", "release_prompt_cache", "destroy", "run", "abort"}),
    "G2": frozenset({"clear_kv_cache", "set_chat_template"}),
    "G3": frozenset({"get_kv_cache_size", "set_function_tools"}),
    "G4": frozenset(),
}

_STATES: Final[Mapping[int, State]] = {
    layouts.STATE_NORMAL: "normal",
    layouts.STATE_WAITING: "waiting",
    layouts.STATE_FINISH: "finish",
    layouts.STATE_ERROR: "error",
    layouts.STATE_HIDDEN: "normal",
}


class Library:
    """A mapped library of a known generation."""

    def __init__(self, handle: ctypes.CDLL, path: Path, generation: Generation) -> None:
        """Take the mapped library; use `open`."""
        self._handle: Final = handle
        self._path: Final = path
        self.generation: Final[Generation] = generation
        self.layout: Final = layouts.LAYOUTS[generation]

    @classmethod
    def open(cls, path: Path, generation: Generation) -> Library:
        """Map a library and check that it behaves as its generation, as far as this can be seen before init.

        Raises:
            LibraryUnusable: It cannot be mapped, lacks a function, or its default parameters are those of another generation.
        """
        try:
            handle = ctypes.CDLL(str(path))
        except OSError as error:
            raise LibraryUnusable(f"runtime library {path} cannot be mapped: {error}") from error
        library = cls(handle, path, generation)
        missing = sorted(f"rkllm_{name}" for one in SUPPORTS if one <= generation for name in _FUNCTIONS[one] if not library.exports(name))
        if missing:
            raise LibraryUnusable(f"runtime library {path} is used as {generation} but does not export {', '.join(missing)}")
        room = type("Room", (ctypes.Structure,), {"_fields_": [("bytes", ctypes.c_uint8 * PROBE_BYTES)]})
        seen = generation_of_defaults(bytes(library.function("createDefaultParam", room)()), ctypes.sizeof(ctypes.c_void_p))
        if seen not in {None, generation}:
            raise LibraryUnusable(
                f"runtime library {path} is used as {generation}, and its default parameters are those of {seen}: it was not initialized"
            )
        return library

    def exports(self, name: str) -> bool:
        """Return whether rkllm_`name` is there."""
        try:
            self._handle[f"rkllm_{name}"]
        except AttributeError:
            return False
        return True

    def function(self, name: str, result: Any = ctypes.c_int) -> Any:
        """Return rkllm_`name`, as a callable of its own with this result type."""
        function = self._handle[f"rkllm_{name}"]
        function.restype = result
        return function

    def default_parameters(self) -> Any:
        """Return RKLLMParam with the library's defaults."""
        return self.function("createDefaultParam", self.layout.parameters)()

    def defaults(self) -> dict[str, Any]:
        """Return the default parameters by the header's names, without reserved bytes."""
        return marshal.fields(self.default_parameters())

    def init(self, parameters: LoadParameters, on_result: Callable[[Result], None]) -> Model:
        """Load a model; blocks for as long as that takes.

        Args:
            parameters: What to load, and how.
            on_result: Called in the thread of `Model.run`, for each result.

        Raises:
            Unsupported: A parameter is one that this generation does not have.
            InitFailed: The library refused; it printed why.
        """
        filled = self.default_parameters()
        keep = marshal.fill_parameters(filled, parameters, self.generation)
        model = Model(self, parameters, on_result)
        handle = ctypes.c_void_p()
        code = self.function("init")(ctypes.byref(handle), ctypes.byref(filled), model.callback_argument)
        del keep  # only here may it go: `filled` points to it
        if code != 0:
            raise InitFailed("rkllm_init", code, f"model {parameters.model_path}")
        if not handle.value:
            raise LibraryUnusable(f"rkllm_init of {self._path} returned 0 and no handle")
        model.attach(handle)
        return model


class Model:
    """A loaded model. One run at a time, from one thread; `abort` from any other.

    Attributes:
        supports: What can be asked of it, words of `SUPPORTS`.
    """

    def __init__(self, library: Library, loaded: LoadParameters, on_result: Callable[[Result], None]) -> None:
        """Take what `Library.init` was given; it is not usable before `attach`."""
        self.supports: Final = SUPPORTS[library.generation]
        self._library: Final = library
        self._loaded: Final = loaded
        self._on_result: Final = on_result
        self._lock: Final = threading.Lock()
        self._handle: ctypes.c_void_p | None = None
        self._running = 0
        self._mode: Mode = "generate"
        self._failure: BaseException | None = None
        self._reported_error = False
        self._adapters: Final[set[str]] = set()
        self._callback: Final = layouts.ResultCallback(self._receive)
        self._callbacks: Final[Any] = library.layout.callbacks and library.layout.callbacks(result_callback=self._callback)

    @property
    def callback_argument(self) -> Any:
        """Return the third argument of rkllm_init; it must live as long as the model."""
        return self._callback if self._callbacks is None else ctypes.byref(self._callbacks)

    def attach(self, handle: ctypes.c_void_p) -> None:
        """Take the handle of a successful init."""
        self._handle = handle

    def require(self, word: str) -> None:
        """Return if the model can do this.

        Raises:
            Unsupported: It cannot; the message says which generations can, or that rkfleet refuses it.
        """
        if word in self.supports:
            return
        if word in REFUSED:
            raise Unsupported(f"{word}: laid out in rkfleet, and not passed to any library yet")
        able = [generation for generation, words in SUPPORTS.items() if word in words]
        raise Unsupported(f"{word}: this library is {self._library.generation}; {' and '.join(able) or 'no generation'} can")

    def run(self, input: Input, options: RunOptions, request: int) -> None:
        """Run one request; blocks until its last result was handed on.

        Args:
            input: What to run.
            options: How.
            request: Id from 1 to REQUEST_MAX that every result carries.

        Raises:
            Unsupported: The generation cannot do what is asked, or a text or a buffer is not what it says.
            Misuse: Another run goes on, or the model is destroyed.
            RunFailed: The library returned an error, or its callback reported one.
            BaseException: What `on_result` raised; the run was aborted for it.
        """
        assert 0 < request <= REQUEST_MAX, f"request id {request}"
        self._require(input, options)
        filled_input, keep_input = marshal.input_struct(self._library.layout, input, self._loaded)
        filled_infer, keep_infer = marshal.infer_struct(self._library.layout, options, self._loaded, self._library.default_parameters)
        with self._lock:
            handle = self._idle("rkllm_run")
            self._running, self._mode, self._failure, self._reported_error = request, options.mode, None, False
        try:
            code = self._library.function("run")(handle, ctypes.byref(filled_input), ctypes.byref(filled_infer), ctypes.c_void_p(request))
        finally:
            with self._lock:  # waits for an abort that is under way, so that it cannot meet the next request
                self._running = 0
        del keep_input, keep_infer  # only here may they go: the structs point to them
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        if code != 0:
            raise RunFailed("rkllm_run", code, f"request {request}")
        if self._reported_error:
            raise RunFailed("rkllm_run", 0, f"request {request}: its callback reported an error")

    def abort(self, request: int = 0) -> bool:
        """End the run that goes on, from any thread; return whether one did.

        An abort may come before the library has begun the run and be lost there: call again until `run` has returned.

        Args:
            request: Only if this one runs; 0 is whichever.

        Raises:
            AbortFailed: The library refused.
        """
        with self._lock:
            if not self._running or request not in {0, self._running}:
                return False
            code = self._library.function("abort")(self._handle)
        if code != 0:
            raise AbortFailed("rkllm_abort", code)
        return True

    def destroy(self) -> None:
        """Give everything back; a second time does nothing.

        Raises:
            Misuse: A run goes on.
            DestroyFailed: The library refused.
        """
        with self._lock:
            if self._handle is None:
                return
            handle = self._idle("rkllm_destroy")
            self._handle = None
            code = self._library.function("destroy")(handle)
        if code != 0:
            raise DestroyFailed("rkllm_destroy", code)

    def load_adapter(self, name: str, path: str, scale: float = 1.0) -> None:
        """Load a LoRA adapter; requests name it in `RunOptions.adapter`.

        Raises:
            AdapterFailed: The library refused.
        """
        adapter = layouts.LoraAdapter(marshal.text(path, "adapter path"), marshal.text(name, "adapter name"), scale)
        self._call(AdapterFailed, "load_lora", ctypes.byref(adapter), about=f"adapter {name} from {path}")
        self._adapters.add(name)

    def load_prompt_cache(self, path: str) -> None:
        """Load the KV state that a run saved; the next run begins with it.

        Raises:
            PromptCacheFailed: The library refused.
        """
        self._call(PromptCacheFailed, "load_prompt_cache", ctypes.c_char_p(marshal.text(path, "prompt cache path")), about=path)

    def release_prompt_cache(self) -> None:
        """Forget the loaded prompt cache.

        Raises:
            PromptCacheFailed: The library refused.
        """
        self._call(PromptCacheFailed, "release_prompt_cache")

    def clear_kv_cache(self, keep_system_prompt: bool = False) -> None:
        """Forget what was said.

        Raises:
            Unsupported: Before G2; there every run begins with an empty cache.
            KvCacheFailed: The library refused.
        """
        self.require("clear_kv_cache")
        # From G3 two pointers name a range; NULL is everything.
        rest = () if self._library.generation == "G2" else (ctypes.c_void_p(), ctypes.c_void_p())
        self._call(KvCacheFailed, "clear_kv_cache", ctypes.c_int(keep_system_prompt), *rest)

    def kv_cache_tokens(self) -> int | None:
        """Return how many tokens the KV cache holds; None before G3, which cannot tell.

        Raises:
            KvCacheFailed: The library refused.
        """
        if "kv_cache_tokens" not in self.supports:
            return None
        sizes = (ctypes.c_int * 1)()  # n_batch is 1
        self._call(KvCacheFailed, "get_kv_cache_size", sizes)
        return int(sizes[0])

    def set_chat_template(self, system: str, prefix: str, postfix: str) -> None:
        """Put these around prompts instead of the template in the model; thinking mode is then off.

        Raises:
            Unsupported: Before G2; the caller writes the whole prompt.
            TemplateFailed: The library refused.
        """
        self.require("chat_template")
        words = (marshal.text(system, "system prompt"), marshal.text(prefix, "prefix"), marshal.text(postfix, "postfix"))
        self._call(TemplateFailed, "set_chat_template", *map(ctypes.c_char_p, words))

    def set_function_tools(self, system: str, tools_json: str, response_tag: str) -> None:
        """Tell the model which functions it may call.

        Raises:
            Unsupported: Before G3.
            TemplateFailed: The library refused.
        """
        self.require("function_tools")
        words = (marshal.text(system, "system prompt"), marshal.text(tools_json, "tools"), marshal.text(response_tag, "response tag"))
        self._call(TemplateFailed, "set_function_tools", *map(ctypes.c_char_p, words))

    def _require(self, input: Input, options: RunOptions) -> None:
        if isinstance(input, Prompt | Multimodal):
            if input.role != "user":
                self.require("role")
            if not input.enable_thinking:
                self.require("enable_thinking")
        if isinstance(input, Multimodal):
            if input.images > 1:
                self.require("images")
            loaded = self._loaded
            wanted = ((input.start, loaded.image_start), (input.end, loaded.image_end), (input.content, loaded.image_content))
            if any(mark and mark != had for mark, had in wanted):
                self.require("image_marks_per_request")
        if options.mode == "logits":
            self.require("logits")
        if options.keep_history:
            self.require("keep_history")
        if options.sampling is not None:
            self.require("sampling")
        if options.max_new_tokens is not None:
            self.require("max_new_tokens")
        if options.adapter and options.adapter not in self._adapters:
            raise Unsupported(f"adapter {options.adapter!r} is not loaded; there are {', '.join(sorted(self._adapters)) or 'none'}")

    def _idle(self, call: str) -> ctypes.c_void_p:
        """Return the handle if nothing runs; the lock is held."""
        if self._handle is None:
            raise Misuse(f"{call}: the model is destroyed")
        if self._running:
            raise Misuse(f"{call}: request {self._running} is running")
        return self._handle

    def _call(self, failure: type[CallFailed], name: str, *arguments: Any, about: str = "") -> None:
        with self._lock:
            code = self._library.function(name)(self._idle(f"rkllm_{name}"), *arguments)
        if code != 0:
            raise failure(f"rkllm_{name}", code, about)

    def _receive(self, result: int | None, userdata: int | None, state: int) -> int:
        """Take one result from the library, in the thread of `run`; always return 0."""
        if self._failure is None:
            try:
                self._on_result(self._copy(result, userdata or 0, state))
            except BaseException as failure:  # noqa: BLE001 (nothing may cross into C; `run` raises it)
                self._failure = failure
                # No page says that the library may be called from its own callback. Late, this finds another request, or none.
                threading.Thread(target=self._try_abort, args=(self._running,), name="abort of a failed request", daemon=True).start()
        return 0

    def _try_abort(self, request: int) -> None:
        with contextlib.suppress(AbortFailed):  # then the run goes to its own end, and its results are dropped
            self.abort(request)

    def _copy(self, address: int | None, request: int, code: int) -> Result:
        state = _STATES.get(code)
        if state is None:
            raise LibraryUnusable(f"the callback got state {code}, which no generation has")
        if state == "error":
            self._reported_error = True
        if address is None or state == "error":
            return Result(request=request, state=state, text=b"", token_id=0)
        result: Any = self._library.layout.result.from_address(address)
        if state == "finish":  # only counters are defined here
            return Result(request=request, state=state, text=b"", token_id=0, perf=self._perf(result))
        return Result(
            request=request,
            state=state,
            text=ctypes.string_at(result.text) if result.text else b"",
            token_id=result.token_id,
            hidden=marshal.hidden(result) if self._mode == "hidden" else None,
            logits=marshal.logits(result) if self._mode == "logits" else None,
        )

    def _perf(self, result: Any) -> Perf | None:
        if "perf" not in self.supports:
            return None
        perf = result.perf
        return Perf(perf.prefill_time_ms, perf.prefill_tokens, perf.generate_time_ms, perf.generate_tokens, perf.memory_usage_mb)
