"""Writes tests/data/toolkit/pytorch: small checkpoints by torch.save.

Run with an interpreter that has torch:

    python tests/oracles/pytorch_files.py
"""

from __future__ import annotations

from pathlib import Path

import torch

OUT = Path(__file__).parent.parent / "data" / "toolkit" / "pytorch"


def main() -> None:
    """Write the files."""
    OUT.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(3)
    base = torch.arange(24, dtype=torch.float32)
    tensors = {
        "plain": base.reshape(4, 6) / 7,
        "turned": (base.reshape(4, 6) / 7).t(),
        "slice": base[5:11],
        "half": torch.tensor([1.5, -2.25, 65504.0]).half(),
        "brain": torch.tensor([[1.0, -2.5]]).bfloat16(),
        "whole": torch.tensor([1, -2, 3]),
        "empty": torch.zeros(0, 4),
        "one": torch.tensor(2.0),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    }
    torch.save(tensors, OUT / "tensors.bin")
    torch.save(torch.nn.Linear(3, 2).state_dict(), OUT / "module.bin")
    torch.save({"a": torch.ones(2)}, OUT / "legacy.bin", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(3, 2), OUT / "whole_module.bin")


if __name__ == "__main__":
    main()
