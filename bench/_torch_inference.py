"""The peer of `toolkit_inference`: transformers and torch, run by an interpreter that has them. See there.

`PYTHON bench/_torch_inference.py WEIGHTS`: WEIGHTS is a directory with `config.json` and `model.safetensors` in float32. Reads jobs, one
JSON line each, from standard input, and answers each with one JSON line. It imports nothing of rkfleet: that interpreter has none of it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path


def main() -> None:
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    now = time.process_time if os.environ.get("RKFLEET_BENCH_BY_CPU") else time.perf_counter
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()

    def run(tokens: list[int], past: object) -> tuple[torch.Tensor, object]:
        out = model(torch.tensor([tokens]), past_key_values=past, use_cache=True, logits_to_keep=1)
        return out.logits[0, -1], out.past_key_values

    for line in sys.stdin:
        job = json.loads(line)
        began = now()
        logits, past = run(job["prompt"], None)
        prefill = now() - began
        made = []
        began = now()
        for _ in range(job["new"]):
            made.append(int(logits.argmax()))
            logits, past = run(made[-1:], past)
        decode = now() - began
        if job.get("logits"):
            np.save(Path(job["logits"]), logits.numpy())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer = {"prefill_s": prefill, "decode_s": decode, "tokens": made, "peak_kib": peak, "kernel": f"torch {torch.__version__}"}
        print(json.dumps(answer | {"threads": torch.get_num_threads()}), flush=True)


if __name__ == "__main__":
    main()
