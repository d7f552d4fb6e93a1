"""An image file becomes the encoder's input. Imports the imaging library, so only the encoder's process imports this.

In: a `Picture` that is within the limits, and the settings. Out: an array of one image, red, green, blue, in the encoder's size, layout
and numbers. The picture is turned as its camera says, laid on white where it is transparent, and only its first frame is read.
"""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from agent.workers.rknn.images import Picture
from agent.workers.rknn.settings import EncoderSettings
from rkfleet.errors import BadRequest

__all__ = ["grey", "input_of"]

# What the vendor's demo fills a square up with: 127.5, cut.
PADDING: Final = (127, 127, 127)


def input_of(picture: Picture, settings: EncoderSettings) -> NDArray[Any]:
    """Return the encoder's input: uint8[1, height, width, 3], or float32 where `mean` is set, or with the colours first for nchw.

    Raises:
        BadRequest: The file is damaged.
    """
    width, height = settings.image_size
    try:
        with Image.open(io.BytesIO(picture.data), formats=(picture.format.upper(),)) as image:
            if image.size != (picture.width, picture.height):
                raise BadRequest(f"image: the {picture.format.upper()} file says two sizes")
            image.draft("RGB", (width, height))  # a JPEG can be decoded at an eighth of its size
            turned = ImageOps.exif_transpose(image)
            colours = _colours(turned)
    except BadRequest:
        raise
    except MemoryError as error:
        raise BadRequest(f"image: {picture.width} x {picture.height} pixels do not fit into the board's memory") from error
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise BadRequest(f"image: the {picture.format.upper()} file is damaged: {type(error).__name__}") from error
    if settings.fit == "Pad":
        fitted = ImageOps.pad(colours, (width, height), Image.Resampling.BILINEAR, color=PADDING)
    else:
        fitted = colours.resize((width, height), Image.Resampling.BILINEAR)
    return _numbers(np.asarray(fitted, dtype=np.uint8), settings)


def grey(settings: EncoderSettings) -> NDArray[Any]:
    """Return the input of an image that is grey all over, to try an encoder with."""
    width, height = settings.image_size
    return _numbers(np.full((height, width, 3), PADDING[0], dtype=np.uint8), settings)


def _colours(image: Image.Image) -> Image.Image:
    """Return the image in red, green and blue of eight bits; transparent parts lie on white, sixteen bits are cut to eight."""
    if image.mode.startswith("I") or image.mode == "F":
        eight = (np.asarray(image, dtype=np.float32) / 257.0).clip(0, 255).astype(np.uint8)
        return Image.fromarray(eight).convert("RGB")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("RGB")


def _numbers(pixels: NDArray[np.uint8], settings: EncoderSettings) -> NDArray[Any]:
    batch: NDArray[Any] = pixels[np.newaxis]
    if settings.mean:
        mean, std = np.array(settings.mean, dtype=np.float32), np.array(settings.std, dtype=np.float32)
        batch = (batch.astype(np.float32) / 255.0 - mean) / std
    if settings.layout == "nchw":
        batch = batch.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(batch)
