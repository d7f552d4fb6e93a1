"""Writes a small file with `torch.save`, and the float32 that torch itself reads from it.

    python tests/oracles/torch_files.py

An interpreter with torch runs it, once; tests read what it wrote and need none.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

OUT = Path(__file__).parent.parent / "data" / "toolkit" / "pytorch"


def main() -> None:
    """Write both files."""
    torch.manual_seed(1)
    base = torch.randn(6, 4)
    state = OrderedDict(
        f32=base,
        turned=base.T,  # Views: strides, an offset, and one storage for all three.
        part=base[1:3, 1:],
        f16=torch.randn(3).half(),
        bf16=torch.randn(2, 2).bfloat16(),
        f64=torch.randn(2).double(),
        i64=torch.tensor([1, -2]),
        flags=torch.tensor([True, False]),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 4),
        parameter=torch.nn.Parameter(torch.ones(2)),
    )
    OUT.mkdir(parents=True, exist_ok=True)
    torch.save(state, OUT / "every.bin")
    torch.save(state, OUT / "legacy.bin", _use_new_zipfile_serialization=False)
    read = torch.load(OUT / "every.bin", weights_only=True)
    np.savez(OUT / "every.npz", **{name: value.detach().float().numpy() for name, value in read.items()})


if __name__ == "__main__":
    main()
