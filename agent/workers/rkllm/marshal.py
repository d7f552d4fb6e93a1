"""Values to structs and back: what `library.py` passes by pointer, and what keeps alive what it points to.

In: a layout and frozen values. Out: a zeroed struct with its fields set, and a list that must live until the call has returned. Texts and
buffers are checked here: the library reads as many bytes as the struct says, whatever the buffer has.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Final

from agent.workers.rkllm import layouts
from agent.workers.rkllm.errors import LibraryUnusable, Unsupported
from agent.workers.rkllm.layouts import Layout
from agent.workers.rkllm.releases import Generation
from agent.workers.rkllm.values import Embedding, Floats, Input, LoadParameters, Multimodal, Prompt, RunOptions, Sampling, Tensor, Tokens

__all__ = ["TENSOR_BYTES_MAX", "fields", "fill_parameters", "hidden", "infer_struct", "input_struct", "logits", "text"]

# Logits of 512 tokens of a vocabulary of 152,000 are 311 MB; beyond this a size is a misread struct.
TENSOR_BYTES_MAX: Final = 1 << 30
FLOAT_BYTES: Final = 4

_MODES: Final = {"generate": layouts.INFER_GENERATE, "hidden": layouts.INFER_HIDDEN, "logits": layouts.INFER_LOGITS}

# Names that LoadParameters, Sampling, RKLLMParam and RKLLMSamplingParam share.
_SAMPLING: Final = Sampling.__struct_fields__


def text(value: str, what: str) -> bytes:
    """Return UTF-8 for a C string; half surrogates become question marks.

    Raises:
        Unsupported: It holds a NUL, where C would end it.
    """
    if "\0" in value:
        raise Unsupported(f"{what} holds a NUL character at {value.index(chr(0))}: the library would end it there")
    return value.encode(errors="replace")


def fields(struct: Any) -> dict[str, Any]:
    """Return a struct's fields by name, nested ones in place, reserved ones left out."""
    values: dict[str, Any] = {}
    for name, *_ in struct._fields_:
        value = getattr(struct, name)
        if isinstance(value, ctypes.Structure):
            values.update(fields(value))
        elif isinstance(value, bytes):
            values[name] = value.decode(errors="replace")
        elif name != "reserved":
            values[name] = value
    return values


def fill_parameters(struct: Any, parameters: LoadParameters, generation: Generation) -> list[Any]:
    """Set what is asked for; return what must outlive init.

    Raises:
        Unsupported: The generation has no such parameter.
    """
    keep: list[Any] = []

    def put(target: Any, name: str, value: Any, what: str, default: Any) -> None:
        if value == default:
            return
        if not hasattr(type(target), name):
            raise Unsupported(f"{what} {value!r}: a library of {generation} has no {name}")
        keep.append(value)
        setattr(target, name, value)

    struct.model_path = text(parameters.model_path, "model path")
    struct.max_context_len = parameters.max_context_tokens
    struct.max_new_tokens = parameters.max_new_tokens
    for name in _SAMPLING:
        put(struct, name, getattr(parameters, name), name, None)
    put(struct, "n_keep", parameters.keep_tokens, "keep_tokens", 0)
    struct.skip_special_token = parameters.skip_special_token
    put(struct, "ignore_eos_token", parameters.ignore_eos, "ignore_eos", False)
    struct.is_async = False
    if generation != "G4":  # there they go with each input
        marks = (("img_start", parameters.image_start), ("img_end", parameters.image_end), ("img_content", parameters.image_content))
        for name, mark in marks:
            put(struct, name, text(mark, name), name, b"")
    extend = struct.extend_param
    extend.base_domain_id = parameters.base_domain_id
    put(extend, "embed_flash", int(parameters.embed_flash), "embed_flash", 0)
    put(extend, "enabled_cpus_num", parameters.cpu_count or parameters.cpu_mask.bit_count(), "cpu_count", 0)
    put(extend, "enabled_cpus_mask", parameters.cpu_mask, "cpu_mask", 0)
    return [*keep, struct]


def input_struct(layout: Layout, value: Input, loaded: LoadParameters) -> tuple[Any, list[Any]]:
    """Return RKLLMInput and what it points to.

    Raises:
        Unsupported: A text holds NUL, or a buffer has not the size that it must have.
    """
    struct: Any = layout.input()
    keep: list[Any] = []
    if isinstance(value, Prompt | Multimodal) and hasattr(type(struct), "role"):
        struct.role = text(value.role, "role")
        struct.enable_thinking = value.enable_thinking
    elif hasattr(type(struct), "role"):
        struct.role = b"user"
    if isinstance(value, Prompt):
        struct.input_type = layouts.INPUT_PROMPT
        struct.payload.prompt_input = text(value.text, "prompt")
    elif isinstance(value, Tokens):
        ids = _ids(value.ids)
        keep.append(ids)
        struct.input_type = layouts.INPUT_TOKEN
        struct.payload.token_input = layouts.TokenInput(ctypes.cast(ids, ctypes.POINTER(ctypes.c_int32)), len(ids))
    elif isinstance(value, Embedding):
        pointer = _floats(value.floats, value.tokens, "embedding", keep)
        struct.input_type = layouts.INPUT_EMBED
        struct.payload.embed_input = layouts.EmbedInput(pointer, value.tokens)
    else:
        struct.input_type = layouts.INPUT_MULTIMODAL
        images = _multimodal(layout, value, loaded, keep)
        keep.append(images)
        struct.payload.multimodal_input = images
    return struct, keep


def infer_struct(layout: Layout, options: RunOptions, loaded: LoadParameters, defaults: Callable[[], Any]) -> tuple[Any, list[Any]]:
    """Return RKLLMInferParam and what it points to; `defaults` returns RKLLMParam as the library makes it."""
    struct: Any = layout.infer(mode=_MODES[options.mode])
    keep: list[Any] = []
    if options.adapter:
        adapter = layouts.LoraParam(text(options.adapter, "adapter"))
        keep.append(adapter)
        struct.lora_params = ctypes.pointer(adapter)
    if options.save_prompt_cache:
        cache = layouts.PromptCacheParam(1, text(options.save_prompt_cache, "prompt cache path"))
        keep.append(cache)
        struct.prompt_cache_params = ctypes.pointer(cache)
    if options.keep_history:
        struct.keep_history = 1
    if layout.sampling is not None:
        struct.max_new_tokens = options.max_new_tokens or 0  # 0, as the vendor's demo leaves it, is what was loaded
        if options.sampling is not None:
            sampling = _sampling(layout.sampling(), options.sampling, loaded, defaults())
            keep.append(sampling)
            struct.sampling_params = ctypes.pointer(sampling)
    return struct, keep


def hidden(result: Any) -> Tensor | None:
    """Copy the hidden states of a result; None when there are none."""
    layer = result.last_hidden_layer
    return _tensor(layer.hidden_states, layer.embd_size, layer.num_tokens)


def logits(result: Any) -> Tensor | None:
    """Copy the logits of a result; None when there are none."""
    return _tensor(result.logits.logits, result.logits.vocab_size, result.logits.num_tokens)


def _tensor(pointer: Any, width: int, tokens: int) -> Tensor | None:
    if not pointer or width == 0 or tokens == 0:
        return None
    if width < 0 or tokens < 0 or width * tokens * FLOAT_BYTES > TENSOR_BYTES_MAX:
        raise LibraryUnusable(f"a result claims {tokens} tokens of {width} numbers: it is not of the generation that it was taken for")
    return Tensor(ctypes.string_at(pointer, width * tokens * FLOAT_BYTES), width, tokens)


def _sampling(struct: Any, wanted: Sampling, loaded: LoadParameters, defaults: Any) -> Any:
    for name in _SAMPLING:
        for value in (getattr(wanted, name), getattr(loaded, name), getattr(defaults, name)):
            if value is not None:
                setattr(struct, name, value)
                break
    return struct


def _multimodal(layout: Layout, value: Multimodal, loaded: LoadParameters, keep: list[Any]) -> Any:
    pointer = _floats(value.image_embeds, value.tokens_per_image * value.images, "image embedding", keep)
    struct: Any = layout.multimodal(prompt=text(value.prompt, "prompt"))
    numbers = {"n_image_tokens": value.tokens_per_image, "n_image": value.images, "image_width": value.width, "image_height": value.height}
    target = struct.image if hasattr(type(struct), "image") else struct
    target.image_embed = pointer
    for name, number in numbers.items():
        if hasattr(type(target), name):  # 1.1 knows one image and no sizes
            setattr(target, name, number)
    if hasattr(type(target), "image_start"):
        target.image_start = text(value.start or loaded.image_start, "image start")
        target.image_end = text(value.end or loaded.image_end, "image end")
        target.image_content = text(value.content or loaded.image_content, "image content")
    return struct


def _floats(buffer: Floats, tokens: int, what: str, keep: list[Any]) -> Any:
    size = buffer.nbytes if isinstance(buffer, memoryview) else len(buffer) * (buffer.itemsize if isinstance(buffer, array) else 1)
    if tokens <= 0 or size == 0 or size % (tokens * FLOAT_BYTES):
        raise Unsupported(f"{what} has {size} bytes: that is no whole number of float32 for each of {tokens} tokens")
    view = memoryview(buffer)
    if view.readonly or not view.contiguous:
        owner: Any = ctypes.c_char_p(buffer if isinstance(buffer, bytes) else view.tobytes())
    else:
        owner = (ctypes.c_char * size).from_buffer(view)
    keep.extend((owner, buffer))
    return ctypes.cast(owner, ctypes.POINTER(ctypes.c_float))


def _ids(ids: Sequence[int]) -> Any:
    if not len(ids):
        raise Unsupported("a run needs at least one token")
    if isinstance(ids, array) and ids.typecode == "i":
        return (ctypes.c_int32 * len(ids)).from_buffer(ids)
    return (ctypes.c_int32 * len(ids))(*ids)
