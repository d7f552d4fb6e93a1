"""Ask llama.cpp for the log-probability of every token of a text after those before it: the fixture of the perplexity test.

Run as `python tests/oracles/llamacpp_perplexity.py` in the project's environment (about ten minutes). The model is the sample (SmolLM2
135M, tensors Q4_1 and Q8_0), the text the first 512 tokens of toolkit/data/evaluation.txt, in one window. llama.cpp tells
probabilities of the next token only, so every prefix is a request, whose keys and values are kept for the next one; with the whole
vocabulary asked for, and from before the samplers, they are log-softmax of the logits. Keys and values are float32, flash attention is
off.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import xllamacpp

from rkfleet.sample import SMOLLM2, ensure_sample
from toolkit.evaluate.texts import EVALUATION
from toolkit.tokens.open import open_tokenizer

DATA = Path(__file__).parents[1] / "data/toolkit"
WINDOW = 512


def main() -> None:
    path = asyncio.run(ensure_sample())
    ids = open_tokenizer(path).encode(EVALUATION.read_text())[:WINDOW]
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx = WINDOW
    parameters.n_parallel = 1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.fit_params = False
    parameters.warmup = False
    parameters.cache_ram_mib = 0
    parameters.verbosity = 1
    server = xllamacpp.Server(parameters)
    logs: list[float] = []
    for length in range(1, len(ids)):
        asked = {"prompt": ids[:length], "n_predict": 1, "n_probs": 49152, "cache_prompt": True, "post_sampling_probs": False}
        told = server.handle_completions(asked)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        logs.append(round(next(one["logprob"] for one in told if one["id"] == ids[length]), 6))
        if length % 64 == 0:
            print(f"{length} of {len(ids) - 1}", flush=True)
    kept = {"model": SMOLLM2.sha256, "tokens": ids, "logProbabilities": logs}
    (DATA / "llamacpp_perplexity.json").write_bytes(msgspec.json.encode(kept) + b"\n")


if __name__ == "__main__":
    main()
