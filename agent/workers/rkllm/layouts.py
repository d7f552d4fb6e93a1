"""The structs, enums and callbacks of `rkllm.h`, one table per generation of its binary interface.

In: a generation. Out: `Layout`, the ctypes types that belong together. Used by `library.py`. The types are native ones, so that a 32-bit
process gets the layout of the armhf library without a second table; `tests/unit/test_rkllm_layouts.py` holds sizes and offsets against
what a C compiler makes of them.

Four generations are in the field. Between neighbours fields move without a change of name or of exported symbols, so a struct of one
generation given to a library of another is read as something else: booleans as counts, flags as pointers.

    G1  1.1.0 to 1.1.4
    G2  1.2.0, 1.2.1b1   n_keep, CPU mask, keep_history, logits. 1.2.0 knows one image only; the fields that 1.2.1b1 added stand at the end
                         of a struct that is passed by pointer, so both get the longer one.
    G3  1.2.1 to 1.2.3   role and enable_thinking in front of the input, batches, cross attention, counters in the result
    G4  1.3.0            a struct of callbacks, images and video in the input, sampling per request

Source: `rkllm.h` at each release tag of https://github.com/airockchip/rknn-llm.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import POINTER, Structure, Union, c_bool, c_char_p, c_float, c_int, c_int8, c_int32, c_size_t, c_uint8, c_uint32, c_void_p
from typing import Any, Final, TypeAlias

import msgspec

from agent.workers.rkllm.identify import Generation

__all__ = [
    "INFER_GENERATE",
    "INFER_HIDDEN",
    "INFER_LOGITS",
    "INPUT_EMBED",
    "INPUT_MULTIMODAL",
    "INPUT_PROMPT",
    "INPUT_TOKEN",
    "LAYOUTS",
    "STATE_ERROR",
    "STATE_FINISH",
    "STATE_HIDDEN",
    "STATE_NORMAL",
    "STATE_WAITING",
    "Layout",
    "ResultCallback",
]

# LLMCallState. STATE_HIDDEN is of G1 alone; later generations send hidden states with STATE_NORMAL.
STATE_NORMAL: Final = 0
STATE_WAITING: Final = 1  # an incomplete UTF-8 character: more bytes come
STATE_FINISH: Final = 2
STATE_ERROR: Final = 3
STATE_HIDDEN: Final = 4

# RKLLMInputType.
INPUT_PROMPT: Final = 0
INPUT_TOKEN: Final = 1
INPUT_EMBED: Final = 2
INPUT_MULTIMODAL: Final = 3

# RKLLMInferMode. INFER_LOGITS from G2.
INFER_GENERATE: Final = 0
INFER_HIDDEN: Final = 1
INFER_LOGITS: Final = 2

# LLMResultCallback. G1 and G2 declare it void; they ignore the register that the others read (0 goes on, 1 pauses, 2 frees the buffer).
ResultCallback = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_int)

# LLMTokenizerCallback and LLMGetEmbedCallback of G4.
TokenizerCallback = ctypes.CFUNCTYPE(c_int, c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32)
EmbedCallback = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(c_int32), ctypes.c_uint64, c_void_p, ctypes.c_uint64)

Fields: TypeAlias = tuple[tuple[str, Any], ...]


class Layout(msgspec.Struct, frozen=True):
    """The types of one generation; None where the generation does not know the struct. Fields have the header's names."""

    generation: Generation
    extend: type[Structure]
    parameters: type[Structure]
    multimodal: type[Structure]
    payload: type[Union]
    input: type[Structure]
    infer: type[Structure]
    result: type[Structure]
    sampling: type[Structure] | None = None
    callbacks: type[Structure] | None = None
    cross_attention: type[Structure] | None = None


def _struct(name: str, fields: Fields) -> type[Structure]:
    return type(name, (Structure,), {"_fields_": list(fields)})


# The same in every generation.


class LoraAdapter(Structure):
    """RKLLMLoraAdapter."""

    _fields_ = (("lora_adapter_path", c_char_p), ("lora_adapter_name", c_char_p), ("scale", c_float))


class EmbedInput(Structure):
    """RKLLMEmbedInput."""

    _fields_ = (("embed", POINTER(c_float)), ("n_tokens", c_size_t))


class TokenInput(Structure):
    """RKLLMTokenInput."""

    _fields_ = (("input_ids", POINTER(c_int32)), ("n_tokens", c_size_t))


class LoraParam(Structure):
    """RKLLMLoraParam."""

    _fields_ = (("lora_adapter_name", c_char_p),)


class PromptCacheParam(Structure):
    """RKLLMPromptCacheParam."""

    _fields_ = (("save_prompt_cache", c_int), ("prompt_cache_path", c_char_p))


class HiddenStates(Structure):
    """RKLLMResultLastHiddenLayer."""

    _fields_ = (("hidden_states", POINTER(c_float)), ("embd_size", c_int), ("num_tokens", c_int))


class Logits(Structure):
    """RKLLMResultLogits, from G2."""

    _fields_ = (("logits", POINTER(c_float)), ("vocab_size", c_int), ("num_tokens", c_int))


class PerfStat(Structure):
    """RKLLMPerfStat, from G3."""

    _fields_ = (
        ("prefill_time_ms", c_float),
        ("prefill_tokens", c_int),
        ("generate_time_ms", c_float),
        ("generate_tokens", c_int),
        ("memory_usage_mb", c_float),
    )


class CrossAttention(Structure):
    """RKLLMCrossAttnParam, from G3; laid out, never passed."""

    _fields_ = (
        ("encoder_k_cache", POINTER(c_float)),
        ("encoder_v_cache", POINTER(c_float)),
        ("encoder_mask", POINTER(c_float)),
        ("encoder_pos", POINTER(c_int32)),
        ("num_tokens", c_int),
    )


# What RKLLMParam and RKLLMSamplingParam share.
_PENALTIES: Final[Fields] = (
    ("repeat_penalty", c_float),
    ("frequency_penalty", c_float),
    ("presence_penalty", c_float),
    ("mirostat", c_int32),
    ("mirostat_tau", c_float),
    ("mirostat_eta", c_float),
)
_LIMITS: Final[Fields] = (("model_path", c_char_p), ("max_context_len", c_int32), ("max_new_tokens", c_int32), ("top_k", c_int32))
_CHOICE: Final[Fields] = (("top_p", c_float), ("temperature", c_float), *_PENALTIES)
_KEEP: Final[Fields] = (("n_keep", c_int32),)
_IMAGE_MARKS: Final[Fields] = (("img_start", c_char_p), ("img_end", c_char_p), ("img_content", c_char_p))

_EXTEND_G1: Final[Fields] = (("base_domain_id", c_int32), ("reserved", c_uint8 * 112))
_EXTEND_COMMON: Final[Fields] = (
    ("base_domain_id", c_int32),
    ("embed_flash", c_int8),
    ("enabled_cpus_num", c_int8),
    ("enabled_cpus_mask", c_uint32),
)
_EXTEND_G2: Final[Fields] = (*_EXTEND_COMMON, ("reserved", c_uint8 * 106))
_EXTEND_G3: Final[Fields] = (*_EXTEND_COMMON, ("n_batch", c_uint8), ("use_cross_attn", c_int8), ("reserved", c_uint8 * 104))

_BOOLEANS: Final[Fields] = (("skip_special_token", c_bool), ("is_async", c_bool))
_BOOLEANS_G4: Final[Fields] = (("skip_special_token", c_bool), ("ignore_eos_token", c_bool), ("is_async", c_bool))

_IMAGE: Final[Fields] = (("image_embed", POINTER(c_float)), ("n_image_tokens", c_size_t))
_IMAGES: Final[Fields] = (*_IMAGE, ("n_image", c_size_t))
_IMAGE_SIZE: Final[Fields] = (("image_width", c_size_t), ("image_height", c_size_t))
_IMAGE_G4: Final[Fields] = (*_IMAGES, ("image_start", c_char_p), ("image_end", c_char_p), ("image_content", c_char_p), *_IMAGE_SIZE)
_VIDEO_G4: Final[Fields] = (
    ("video_embed", POINTER(c_float)),
    ("n_frame_tokens", c_size_t),
    ("n_frame_per_video", c_size_t),
    ("n_video", c_size_t),
    ("video_start", c_char_p),
    ("video_end", c_char_p),
    ("video_content", c_char_p),
    ("frame_width", c_size_t),
    ("frame_height", c_size_t),
)

_MODE: Final[Fields] = (("mode", c_int), ("lora_params", POINTER(LoraParam)), ("prompt_cache_params", POINTER(PromptCacheParam)))
_HISTORY: Final[Fields] = (("keep_history", c_int),)

_PIECE: Final[Fields] = (("text", c_void_p), ("token_id", c_int32), ("last_hidden_layer", HiddenStates))
_LOGITS: Final[Fields] = (("logits", Logits),)
_PERF: Final[Fields] = (("perf", PerfStat),)


def _layout(
    generation: Generation,
    *,
    extend: Fields,
    parameters: Fields,
    multimodal: Fields,
    before_input: Fields,
    infer: Fields,
    result: Fields,
    sampling: type[Structure] | None = None,
    callbacks: type[Structure] | None = None,
    cross_attention: type[Structure] | None = None,
) -> Layout:
    extend_type = _struct("RKLLMExtendParam", extend)
    multimodal_type = _struct("RKLLMMultiModalInput", multimodal)
    payload = type(
        "RKLLMInputUnion",
        (Union,),
        {
            "_fields_": [
                ("prompt_input", c_char_p),
                ("embed_input", EmbedInput),
                ("token_input", TokenInput),
                ("multimodal_input", multimodal_type),
            ]
        },
    )
    return Layout(
        generation=generation,
        extend=extend_type,
        parameters=_struct("RKLLMParam", (*parameters, ("extend_param", extend_type))),
        multimodal=multimodal_type,
        payload=payload,
        input=_struct("RKLLMInput", (*before_input, ("input_type", c_int), ("payload", payload))),
        infer=_struct("RKLLMInferParam", infer),
        result=_struct("RKLLMResult", result),
        sampling=sampling,
        callbacks=callbacks,
        cross_attention=cross_attention,
    )


_SAMPLING_G4: Final = _struct("RKLLMSamplingParam", (("top_k", c_int32), *_CHOICE))

LAYOUTS: Final[Mapping[Generation, Layout]] = {
    "G1": _layout(
        "G1",
        extend=_EXTEND_G1,
        parameters=(*_LIMITS, *_CHOICE, *_BOOLEANS, *_IMAGE_MARKS),
        multimodal=(("prompt", c_char_p), *_IMAGE),
        before_input=(),
        infer=_MODE,
        result=_PIECE,
    ),
    "G2": _layout(
        "G2",
        extend=_EXTEND_G2,
        parameters=(*_LIMITS, *_KEEP, *_CHOICE, *_BOOLEANS, *_IMAGE_MARKS),
        multimodal=(("prompt", c_char_p), *_IMAGES, *_IMAGE_SIZE),
        before_input=(),
        infer=(*_MODE, *_HISTORY),
        result=(*_PIECE, *_LOGITS),
    ),
    "G3": _layout(
        "G3",
        extend=_EXTEND_G3,
        parameters=(*_LIMITS, *_KEEP, *_CHOICE, *_BOOLEANS, *_IMAGE_MARKS),
        multimodal=(("prompt", c_char_p), *_IMAGES, *_IMAGE_SIZE),
        before_input=(("role", c_char_p), ("enable_thinking", c_bool)),
        infer=(*_MODE, *_HISTORY),
        result=(*_PIECE, *_LOGITS, *_PERF),
        cross_attention=CrossAttention,
    ),
    "G4": _layout(
        "G4",
        extend=_EXTEND_G3,
        parameters=(*_LIMITS, *_KEEP, *_CHOICE, *_BOOLEANS_G4),
        multimodal=(("prompt", c_char_p), ("image", _struct("RKLLMImages", _IMAGE_G4)), ("video", _struct("RKLLMVideos", _VIDEO_G4))),
        before_input=(("role", c_char_p), ("enable_thinking", c_bool)),
        infer=(*_MODE, ("sampling_params", POINTER(_SAMPLING_G4)), *_HISTORY, ("max_new_tokens", c_int32)),
        result=(*_PIECE, *_LOGITS, *_PERF),
        sampling=_SAMPLING_G4,
        callbacks=_struct(
            "RKLLMCallback",
            (
                ("result_callback", ResultCallback),
                ("result_userdata", c_void_p),
                ("tokenizer_callback", TokenizerCallback),
                ("tokenizer_userdata", c_void_p),
                ("embed_callback", EmbedCallback),
                ("embed_userdata", c_void_p),
            ),
        ),
        cross_attention=CrossAttention,
    ),
}
