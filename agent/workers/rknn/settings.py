"""What an artifact says about its image encoder: the object `vision` of its config.json.

In: the file with role `config`. Out: `EncoderSettings`. Read by the worker, which also needs the marks that stand around an image in a
prompt, and sent to the encoder's process. `docs/guides/vision.md` explains each field to those who make artifacts.

A `.rknn` file as the vendor's export makes it holds mean and deviation itself and takes bytes: then `mean` and `std` stay empty. Marks are
what the vendor's demo passes to the runtime for each model family.
Source: https://github.com/airockchip/rknn-llm/tree/main/examples/multimodal_model_demo.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from rkfleet.errors import FailedPrecondition

__all__ = ["EncoderSettings", "read_settings"]

# A config.json of a model is a few KiB; with a vocabulary in it some MiB.
CONFIG_BYTES_MAX: Final = 16 << 20

_Side = Annotated[int, Meta(ge=14, le=4096)]  # one patch, and far beyond every encoder
_Colours = tuple[Annotated[float, Meta(ge=0.0, le=1.0)], ...]


class EncoderSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """How images become embeddings.

    Attributes:
        image_size: Width and height of the encoder's input in pixels.
        fit: Pad keeps the proportions and fills up with grey, as the vendor's demo does; Stretch does not keep them.
        mean: Of red, green and blue, from 0 to 1, where the encoder wants numbers; empty where it takes bytes.
        std: Deviation, as `mean`.
        layout: Order of the input's axes: nhwc or nchw.
        tokens: Tokens of an image; 0 takes what the encoder gives.
        embedding_size: Numbers of one token; 0 takes what the encoder gives.
        cores: NPU cores of the encoder, 1 to 3; 0 for all of the chip.
        image_start: Mark before an image in the prompt.
        image_end: Mark after it.
        image_content: Mark that stands for one of its tokens.
    """

    image_size: tuple[_Side, _Side]
    fit: Literal["Pad", "Stretch"] = "Pad"
    mean: Annotated[_Colours, Meta(max_length=3)] = ()
    std: Annotated[_Colours, Meta(max_length=3)] = ()
    layout: Literal["nhwc", "nchw"] = "nhwc"
    tokens: Annotated[int, Meta(ge=0, le=65536)] = 0
    embedding_size: Annotated[int, Meta(ge=0, le=65536)] = 0
    cores: Annotated[int, Meta(ge=0, le=3)] = 0
    image_start: Annotated[str, Meta(max_length=64)] = "<|vision_start|>"
    image_end: Annotated[str, Meta(max_length=64)] = "<|vision_end|>"
    image_content: Annotated[str, Meta(max_length=64)] = "<|image_pad|>"


class _Config(msgspec.Struct, frozen=True):
    vision: EncoderSettings | None = None


def read_settings(path: Path) -> EncoderSettings:
    """Return what `config.json` says about the encoder.

    Raises:
        FailedPrecondition: The file is missing, too long or no JSON, has no `vision`, or a field of it is out of range.
    """
    try:
        with path.open("rb") as file:
            text = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise FailedPrecondition(f"an image encoder needs the artifact's config.json, which cannot be read: {error.strerror}") from error
    if len(text) > CONFIG_BYTES_MAX:
        raise FailedPrecondition(f"config.json: more than {CONFIG_BYTES_MAX} bytes are no config file")
    try:
        found = msgspec.json.decode(text, type=_Config).vision
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"config.json: vision cannot be read: {error}") from error
    if found is None:
        raise FailedPrecondition('config.json: an image encoder needs "vision": {"imageSize": [width, height]}')
    if len(found.mean) != len(found.std) or len(found.mean) not in (0, 3) or 0.0 in found.std:
        given = f"vision.mean {list(found.mean)} and vision.std {list(found.std)}"
        raise FailedPrecondition(f"config.json: {given} are given together, for red, green and blue, and std is above 0")
    return found
