"""Peak memory of `rkfleet toolkit gguf` on a model of 1.5 GB: at most three times its largest tensor and 300 MB.

`python -m bench.toolkit_memory`. A checkpoint of bfloat16 with the sizes of a LLaMA of 0.8 billion weights is generated, weights random.
The command runs as a child process: safetensors and PyTorch's file to Q8_0, safetensors to F16, and the GGUF file of F16 that is made so to
Q4_0. The peak is what the kernel counts for the child (VmHWM), files that are mapped included. The largest tensor is counted in the bytes
that it has in the source. In the same run three tensors of each quantized result are hashed against what the `gguf` package makes of the
same values.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bench.report import Goal, Result, finish, result
from rkfleet.clock import SystemClock
from toolkit.checkpoint.gguf import GgufCheckpoint

HIDDEN: Final = 2048
WIDE: Final = 5632
HEADS: Final = 16
ROWS: Final = 32000
LAYERS: Final = 14
FACTOR: Final = 3
ALLOWANCE_BYTES: Final = 300 * 1000 * 1000  # Interpreter, numpy, tokenizer.
CHECKED: Final = ("token_embd.weight", "blk.3.ffn_down.weight", "blk.13.attn_v.weight")
SOURCES: Final = ("model.embed_tokens.weight", "model.layers.3.mlp.down_proj.weight", "model.layers.13.self_attn.v_proj.weight")


CHILD: Final = """
import atexit, pathlib, sys
from toolkit.commands.app import main

def peak():
    print(next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))

atexit.register(peak)
sys.argv = sys.argv[1:]
main()
"""


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the tensors of the model as its checkpoint has them."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (ROWS, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}"
        found |= {f"{stem}.self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
        found |= {f"{stem}.mlp.{name}_proj.weight": (WIDE, HIDDEN) for name in ("gate", "up")}
        found |= {f"{stem}.mlp.down_proj.weight": (HIDDEN, WIDE)}
        found |= {f"{stem}.{name}.weight": (HIDDEN,) for name in ("input_layernorm", "post_attention_layernorm")}
    return found


def values(name: str, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """Return a tensor's bfloat16, the same whenever it is asked for."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    random = np.random.default_rng(seed).standard_normal(1 << 16, np.float32) * np.float32(0.02)
    return np.resize((random.view(np.uint32) >> 16).astype(np.uint16), shape)


def generate(directory: Path) -> int:
    """Write the checkpoint, tensor by tensor; returns the bytes of the largest."""
    tokenizer = Tokenizer(models.BPE({piece: at for at, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "intermediate_size": WIDE,
        "vocab_size": ROWS,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
    }
    (directory / "config.json").write_text(json.dumps(config))
    head: dict[str, object] = {}
    at = largest = 0
    for name, shape in shapes().items():
        size = int(np.prod(shape)) * 2
        head[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at, largest = at + size, max(largest, size)
    text = json.dumps(head).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes().items():
            values(name, shape).tofile(file)
    return largest


def write_pytorch(directory: Path) -> None:
    """Write the same weights as PyTorch does: an archive of storages, and a pickle that makes tensors of them."""

    def text(value: str) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little")

    program = b"\x80\x02}("
    with zipfile.ZipFile(directory / "pytorch_model.bin", "w", zipfile.ZIP_STORED) as archive:
        for key, (name, shape) in enumerate(shapes().items()):
            data = values(name, shape)
            storage = b"(" + text("storage") + b"ctorch\nBFloat16Storage\n" + text(str(key)) + text("cpu") + number(data.size) + b"tQ"
            sizes = b"(" + b"".join(map(number, shape)) + b"t"
            strides = b"(" + b"".join(number(one // 2) for one in data.strides) + b"t"
            program += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(0) + sizes + strides + b"tR"
            archive.writestr(f"model/data/{key}", data.tobytes())
        archive.writestr("model/data.pkl", program + b"u.")


def convert(source: Path, out: Path, kind: str) -> int:
    """Run the command; returns the bytes of its peak. `ru_maxrss` would not do: it begins with the memory of the process that forked."""
    command = [sys.executable, "-c", CHILD, "toolkit", "gguf", str(source), "-o", str(out), "--type", kind]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if child.returncode != 0:
        sys.exit(f"converting {source.name} to {kind} ended with status {child.returncode}")
    return int(child.stdout.splitlines()[-1].split()[1]) * 1024


def check(out: Path, kind: str, through: type[np.floating]) -> None:
    """See that tensors are what the `gguf` package makes of the same values."""
    made, all_shapes = GgufCheckpoint(out), shapes()
    for name, source in zip(CHECKED, SOURCES, strict=True):
        wide = (values(source, all_shapes[source]).astype(np.uint32) << 16).view(np.float32).astype(through).astype(np.float32)
        wanted = gguf.quantize(wide, gguf.GGMLQuantizationType[kind.upper()])
        if hashlib.sha256(wanted.tobytes()).digest() != hashlib.sha256(made.read_raw(name).tobytes()).digest():
            sys.exit(f"tensor {name} of {out.name} is not what the gguf package makes of it")


def measure(place: Path) -> list[Result]:
    """Convert four times, check the quantized ones, and return peaks."""
    directory = place / "model"
    directory.mkdir()
    largest = generate(directory)
    size = (directory / "model.safetensors").stat().st_size
    print(f"checkpoint of {size / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB", flush=True)
    limit = (FACTOR * largest + ALLOWANCE_BYTES) / 1e6
    eight, half, four = place / "eight.gguf", place / "half.gguf", place / "four.gguf"
    peaks = {"safetensors BF16 to Q8_0": convert(directory, eight, "q8_0") / 1e6}
    check(eight, "q8_0", np.float32)
    tensors = directory / "model.safetensors"
    write_pytorch(directory)
    tensors.rename(place / "model.safetensors")
    peaks = {**peaks, "PyTorch BF16 to Q8_0": convert(directory, eight, "q8_0") / 1e6}
    check(eight, "q8_0", np.float32)
    eight.unlink()
    (place / "model.safetensors").rename(tensors)
    (directory / "pytorch_model.bin").unlink()
    peaks = {**peaks, "safetensors BF16 to F16": convert(directory, half, "f16") / 1e6}
    peaks = {**peaks, "GGUF F16 to Q4_0": convert(half, four, "q4_0") / 1e6}
    check(four, "q4_0", np.float16)
    return [result(f"peak memory, {name}", "MB", [peak], goal=Goal("value", "<=", limit)) for name, peak in peaks.items()]


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--place", type=Path, help="directory for 5 GB of files (default: a temporary one)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.place) as place:
        return finish("toolkit_memory", measure(Path(place)), SystemClock())


if __name__ == "__main__":
    sys.exit(main())
