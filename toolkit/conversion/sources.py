"""Files that go into a conversion, looked at before the vendor's toolkit sees them, and their digests.

In: paths. Out: what `platforms.check` asks of a source (types of tensors, widths of layers, GPTQ), samples of a calibration file, and
`SourceFile` values for a recipe. Only heads are read until digests are asked for. Called by `rkllm` and `rknn`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from rkfleet.errors import Invalid, NotFound
from toolkit.checkpoint.base import TensorInfo
from toolkit.checkpoint.gguf import GgufCheckpoint
from toolkit.checkpoint.json_file import read_json
from toolkit.checkpoint.open import open_checkpoint
from toolkit.recipe import SourceFile

__all__ = ["Source", "check_calibration", "digest_of", "files_of", "look_at"]

HASH_BYTES: Final = 1 << 20
FILES_MAX: Final = 4096  # Of a model directory; a model of a hundred shards has some 110.
CALIBRATION_BYTES_MAX: Final = 64 << 20  # As `toolkit quantize` has it: a thousand times the vendor's example.
NOT_LAYERS: Final = re.compile(r"embed|wte|wpe|norm|lm_head|^output\.weight$|rope|rotary|position", re.IGNORECASE)
"""Matrices that are no linear layers of a block. The last layer is the vendor's own matter: vocabularies are no multiples of 512."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What a source is.

    Attributes:
        kind: `huggingface` or `gguf`.
        architecture: In the file's own words; empty if it has none.
        tensor_types: Of a GGUF file.
        widths: Output widths of the linear layers by name.
        gptq: Bits and group of a GPTQ checkpoint.
    """

    kind: str
    architecture: str = ""
    tensor_types: tuple[str, ...] = ()
    widths: dict[str, int] = {}
    gptq: tuple[int, int] | None = None


def look_at(path: Path) -> Source:
    """Look at a model; which families the vendor takes is not asked, since it takes ones that the toolkit does not compute.

    Raises:
        NotFound: There is nothing at the path, or no model.
        Invalid: Its files are damaged, or quantized in a way that the vendor does not take.
    """
    if not path.exists():
        raise NotFound(f"model {str(path)!r} does not exist")
    if not path.is_dir():
        checkpoint = GgufCheckpoint(path)
        return Source(
            kind="gguf",
            architecture=str(checkpoint.metadata.get("general.architecture", "")),
            tensor_types=tuple(sorted({info.dtype for info in checkpoint.tensors.values()})),
            widths=_widths(checkpoint.tensors.values()),
        )
    if not (path / "config.json").is_file():
        raise NotFound(f"directory {str(path)!r} is no model: it has no config.json. Give a Hugging Face model's directory or a GGUF file")
    config = read_json(path / "config.json")
    names = config.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    gptq = _gptq(path, config)
    widths = {} if gptq else _widths(open_checkpoint(path).tensors.values())
    return Source(kind="huggingface", architecture=architecture, widths=widths, gptq=gptq)


def _widths(tensors: Iterable[TensorInfo]) -> dict[str, int]:
    layers = (info for info in tensors if len(info.shape) == 2 and info.name.endswith(".weight") and not NOT_LAYERS.search(info.name))
    return {info.name.removesuffix(".weight"): info.shape[0] for info in layers}


def _gptq(path: Path, config: dict[str, Any]) -> tuple[int, int] | None:
    """Return bits and group of a checkpoint that is quantized already.

    Source: RKLLM SDK user guide 1.2.0, import of GPTQ models: symmetric, without reordering of activations.
    """
    packed = config.get("quantization_config")
    if not packed:
        return None
    packed = packed if isinstance(packed, dict) else {}
    method, bits, group = packed.get("quant_method"), packed.get("bits"), packed.get("group_size")
    where = f"{str(path)!r}: config.json has quantization_config"
    if method != "gptq" or not isinstance(bits, int) or not isinstance(group, int):
        raise Invalid(f"{where} {method!r}, which row GPTQ of table load_huggingface does not have; take the model in full precision")
    if packed.get("sym", True) is not True or packed.get("desc_act", False) is not False:
        raise Invalid(f"{where} sym {packed.get('sym')!r}, desc_act {packed.get('desc_act')!r}: row GPTQ of table load_huggingface takes "
                      "sym true and desc_act false; quantize it so, or take the model in full precision")  # fmt: skip
    return bits, group


def check_calibration(path: Path) -> int:
    """Return the number of samples in a calibration file of the vendor's form.

    Source: RKLLM SDK user guide 1.2.0, build, dataset: a list of objects with `input` and `target`; the multimodal example writes `sample`
    (path) and `token_nums`.

    Raises:
        NotFound: There is no such file.
        Invalid: It is of another form.
    """
    try:
        with path.open("rb") as file:
            text = file.read(CALIBRATION_BYTES_MAX + 1)
    except OSError as error:
        raise NotFound(f"--calibration {str(path)!r} cannot be read: {error.strerror}") from error
    if len(text) > CALIBRATION_BYTES_MAX:
        raise Invalid(f"--calibration {str(path)!r} has more than {CALIBRATION_BYTES_MAX} bytes; some 20 samples are what the vendor takes")
    try:
        samples = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"--calibration {str(path)!r} is no JSON: {error}. {_FORM}") from error
    if not isinstance(samples, list) or not samples:
        raise Invalid(f"--calibration {str(path)!r} is no list of samples. {_FORM}")
    for index, sample in enumerate(samples):
        if not isinstance(sample, dict) or not ({"input", "target"} <= sample.keys() or {"sample", "token_nums"} <= sample.keys()):
            raise Invalid(f"--calibration {str(path)!r}: sample {index} has neither input and target nor sample and token_nums. {_FORM}")
    return len(samples)


_FORM: Final = 'The vendor takes [{"input": prompt with its template, "target": answer}, ...]; `rkfleet toolkit calibrate` writes it'


def files_of(path: Path) -> Iterator[Path]:
    """Yield the files of a model: itself, or what is in its directory, sorted.

    Raises:
        Invalid: There are more than a model has.
    """
    if not path.is_dir():
        yield path
        return
    files = sorted(file for file in path.iterdir() if file.is_file())
    if len(files) > FILES_MAX:
        raise Invalid(f"directory {str(path)!r} has {len(files)} files, more than {FILES_MAX}: it is no model's alone")
    yield from files


def digest_of(path: Path) -> SourceFile:
    """Return a file's name, size and sha256.

    Raises:
        Invalid: It cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while piece := file.read(HASH_BYTES):
                digest.update(piece)
                size += len(piece)
    except OSError as error:
        raise Invalid(f"file {str(path)!r} cannot be read: {error.strerror}") from error
    return SourceFile(path=path.name, sha256=f"sha256:{digest.hexdigest()}", size_bytes=size)
