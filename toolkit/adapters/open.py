"""From a path to an adapter: `open_adapter`, and what `--lora PATH[@SCALE]` means.

In: a directory of PEFT or a GGUF file, and the model that it is for. Out: an `Adapter`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol

from rkfleet.errors import Invalid, NotFound
from toolkit.adapters.base import Adapter
from toolkit.adapters.gguf import read_gguf_adapter
from toolkit.adapters.peft import CONFIG, read_peft_adapter
from toolkit.checkpoint.gguf import GgufCheckpoint
from toolkit.checkpoint.open import open_checkpoint
from toolkit.simulate.families.base import Family
from toolkit.simulate.network import Source

__all__ = ["Model", "open_adapter", "parse_adapter"]

SCALE_MAX: Final = 100.0  # Adapters are scaled around 1; a hundredfold is a slip of the keyboard.


class Model(Source, Protocol):
    """A model that an adapter is for."""

    @property
    def family(self) -> Family:
        """Its family."""


def open_adapter(path: Path, model: Model) -> Adapter:
    """Open an adapter for a model.

    Args:
        path: Directory of PEFT, or GGUF file.
        model: As `toolkit.loading.open_model` opened it.

    Raises:
        NotFound: There is nothing at the path, or no adapter in the directory.
        Invalid: It is of a kind that is not computed here, or for another model; the message says what to do.
    """
    if not path.exists():
        raise NotFound(f"adapter {str(path)!r} does not exist")
    if not path.is_dir():
        adapter = read_gguf_adapter(GgufCheckpoint(path), model.hyperparameters.architecture)
    elif (path / CONFIG).is_file():
        file = next((path / name for name in ("adapter_model.safetensors", "adapter_model.bin") if (path / name).is_file()), None)
        if file is None:
            raise NotFound(f"adapter {str(path)!r} has neither adapter_model.safetensors nor adapter_model.bin")
        adapter = read_peft_adapter(path, open_checkpoint(file), model.family, model.hyperparameters)
    else:
        raise NotFound(f"directory {str(path)!r} is no adapter: it has no {CONFIG}")
    adapter.check(model)
    return adapter


def parse_adapter(text: str) -> tuple[Path, float]:
    """Return path and scale of `PATH[@SCALE]`; the scale is 1 where none is written.

    Raises:
        Invalid: The scale is no number within limits.
    """
    path, at, scale = text.rpartition("@")
    if not at or Path(text).exists():  # A path may have an @ of its own.
        return Path(text), 1.0
    try:
        value = float(scale)
    except ValueError as error:
        raise Invalid(f"--lora {text!r}: scale {scale!r} is no number; write PATH@SCALE, for example {path}@0.5") from error
    if not -SCALE_MAX <= value <= SCALE_MAX:
        raise Invalid(f"--lora {text!r}: scale {value:g} is not from {-SCALE_MAX:g} to {SCALE_MAX:g}")
    return Path(path), value
