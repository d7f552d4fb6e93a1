"""Make tiny random models of families and the logits that llama.cpp computes for them: the fixtures of tests/unit/toolkit.

Run as `python tests/oracles/llamacpp_logits.py` in the project's environment. For each architecture it writes NAME.gguf (float32 tensors,
fixed seeds) and NAME.npz (prompt, log-probabilities after every token) to tests/data/toolkit/families. llama.cpp gives probabilities of
the next token only, so every prefix of the prompt is a request; with the whole vocabulary asked for, and from before the samplers, they
are log-softmax of the logits. Keys and values are kept in float32 and flash attention is off; what is left of a difference is the order
of sums.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import xllamacpp

DATA = Path(__file__).parents[1] / "data/toolkit/families"
PROMPT = (5, 17, 9, 33, 8, 21, 14, 39, 11, 27, 6, 30)
VOCABULARY, HIDDEN, LAYERS, HEADS, KV_HEADS, WIDTH, FEED_FORWARD = 40, 32, 2, 4, 2, 8, 48
CONTEXT = 256  # llama.cpp rounds smaller ones up to this, which would be beyond the training of a smaller model.
QUERY_RANK, KV_RANK, TURNING, STILL = 16, 12, 4, 8

Shapes = dict[str, tuple[int, ...]]


def attention_shapes(kv_heads: int, *, bias: bool = False) -> Shapes:
    shapes: Shapes = {
        "attn_q.weight": (HEADS * WIDTH, HIDDEN),
        "attn_k.weight": (kv_heads * WIDTH, HIDDEN),
        "attn_v.weight": (kv_heads * WIDTH, HIDDEN),
        "attn_output.weight": (HIDDEN, HEADS * WIDTH),
    }
    return shapes | ({"attn_output.bias": (HIDDEN,)} if bias else {})


def fused_shapes(kv_heads: int) -> Shapes:
    rows = (HEADS + 2 * kv_heads) * WIDTH
    return {"attn_qkv.weight": (rows, HIDDEN), "attn_qkv.bias": (rows,), "attn_output.weight": (HIDDEN, HEADS * WIDTH)}


def low_rank_shapes() -> Shapes:
    return {
        "attn_q_a.weight": (QUERY_RANK, HIDDEN),
        "attn_q_a_norm.weight": (QUERY_RANK,),
        "attn_q_b.weight": (HEADS * (STILL + TURNING), QUERY_RANK),
        "attn_kv_a_mqa.weight": (KV_RANK + TURNING, HIDDEN),
        "attn_kv_a_norm.weight": (KV_RANK,),
        "attn_kv_b.weight": (HEADS * (STILL + HIDDEN // HEADS), KV_RANK),
        "attn_output.weight": (HIDDEN, HIDDEN),
    }


def gated_shapes(*, bias: bool = False) -> Shapes:
    shapes: Shapes = {
        "ffn_gate.weight": (FEED_FORWARD, HIDDEN),
        "ffn_up.weight": (FEED_FORWARD, HIDDEN),
        "ffn_down.weight": (HIDDEN, FEED_FORWARD),
    }
    return shapes | ({"ffn_down.bias": (HIDDEN,)} if bias else {})


def model_shapes(name: str) -> Shapes:
    """Return every tensor of a tiny model under its GGUF name, outermost dimension first."""
    block: Shapes
    match name:
        case "qwen":
            block = fused_shapes(HEADS) | gated_shapes()
        case "chatglm":
            block = fused_shapes(KV_HEADS) | {"ffn_up.weight": (2 * FEED_FORWARD, HIDDEN), "ffn_down.weight": (HIDDEN, FEED_FORWARD)}
        case "minicpm3" | "minicpm3-long":
            block = low_rank_shapes() | gated_shapes()
        case "telechat2":
            block = attention_shapes(KV_HEADS, bias=True) | gated_shapes(bias=True)
        case _:
            block = attention_shapes(KV_HEADS) | gated_shapes()
    block |= {"attn_norm.weight": (HIDDEN,), "ffn_norm.weight": (HIDDEN,)}
    shapes: Shapes = {"token_embd.weight": (VOCABULARY, HIDDEN), "output_norm.weight": (HIDDEN,), "output.weight": (VOCABULARY, HIDDEN)}
    if name.startswith("minicpm3"):
        shapes |= {"rope_factors_short.weight": (TURNING // 2,), "rope_factors_long.weight": (TURNING // 2,)}
    if name == "minicpm4":
        shapes |= {"rope_factors_short.weight": (WIDTH // 2,), "rope_factors_long.weight": (WIDTH // 2,)}
    return shapes | {f"blk.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in block.items()}


ARCHITECTURES = {"telechat2": "llama", "minicpm3-long": "minicpm3", "minicpm4": "minicpm"}
SCALED = ("minicpm", "minicpm4")
NAMES = ("llama", "qwen", "chatglm", "internlm2", "minicpm", "minicpm4", "minicpm3", "minicpm3-long", "telechat2")


def metadata(name: str) -> dict[str, Any]:
    """Return the keys of a tiny model, without the architecture before them."""
    low_rank = name.startswith("minicpm3")
    keys: dict[str, Any] = {
        "context_length": CONTEXT,
        "block_count": LAYERS,
        "embedding_length": HIDDEN,
        "feed_forward_length": FEED_FORWARD * (2 if name == "qwen" else 1),
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS if name == "qwen" or low_rank else KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        # TeleChat2's base as it is raised for a training length of four times the base length: by 7^(d / (d - 2)).
        "rope.freq_base": 5000.0 * (7 ** (WIDTH / (WIDTH - 2)) if name == "telechat2" else 1),
        "rope.dimension_count": {"chatglm": WIDTH // 2}.get(name, TURNING if low_rank else WIDTH),
    }
    if low_rank:
        keys |= {"attention.q_lora_rank": QUERY_RANK, "attention.kv_lora_rank": KV_RANK, "attention.key_length": STILL + TURNING}
        # What llama.cpp has built in; it reads none of them for this architecture.
        keys |= {"embedding_scale": 12.0, "residual_scale": 1.4 / math.sqrt(LAYERS), "logit_scale": HIDDEN / 256}
    if name in SCALED:
        keys |= {"embedding_scale": 5.0, "residual_scale": 0.7, "logit_scale": 2.5}
    if name in ("minicpm3-long", "minicpm4"):
        keys |= {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": CONTEXT // 2, "rope.scaling.attn_factor": 1.25}
    return keys


def write_model(name: str, path: Path) -> None:
    """Write a tiny random model that llama.cpp loads."""
    architecture = ARCHITECTURES.get(name, name)
    random = np.random.default_rng(sum(name.encode()))
    writer = gguf.GGUFWriter(path, architecture)
    for bare, value in metadata(name).items():
        key = f"{architecture}.{bare}"
        match value:
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case _:
                writer.add_string(key, value)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(chr(ord("A") + index) for index in range(VOCABULARY - 3))])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types(
        [int(gguf.TokenType.UNKNOWN), *[int(gguf.TokenType.CONTROL)] * 2, *[int(gguf.TokenType.NORMAL)] * (VOCABULARY - 3)]
    )
    for tensor, shape in model_shapes(name).items():
        values = random.standard_normal(shape).astype(np.float32)
        if "rope_factors" in tensor:
            values = (1 + np.abs(values)).astype(np.float32)
        elif "norm" in tensor:
            values = (1 + 0.2 * values).astype(np.float32)
        elif len(shape) == 2 and tensor != "token_embd.weight":
            values *= np.float32(1.5 / math.sqrt(shape[1]))
        if tensor == "output.weight" and architecture == "minicpm3":
            values *= np.float32(HIDDEN / 256)  # Against the built-in factor on logits, which is made for a hidden size above 256.
        writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llamacpp_log_probabilities(path: Path) -> np.ndarray:
    """Return (tokens, vocabulary) of log-probabilities of what follows each token of the prompt."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx = CONTEXT
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.fit_params = False
    parameters.warmup = False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.cache_ram_mib = 0
    parameters.verbosity = 1
    server = xllamacpp.Server(parameters)
    rows = []
    for length in range(1, len(PROMPT) + 1):
        asked = {
            "prompt": list(PROMPT[:length]),
            "n_predict": 1,
            "n_probs": VOCABULARY,
            "cache_prompt": False,
            "post_sampling_probs": False,
        }
        answer = server.handle_completions(asked)
        row = np.full(VOCABULARY, np.nan)
        for one in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            row[one["id"]] = one["logprob"]
        assert not np.isnan(row).any(), f"llama.cpp left out {np.isnan(row).sum()} of {VOCABULARY} tokens"
        rows.append(row)
    return np.array(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    for name in parser.parse_args().names:
        path = DATA / f"{name}.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_model(name, path)
        found = llamacpp_log_probabilities(path)
        np.savez_compressed(DATA / f"{name}.npz", prompt=np.array(PROMPT), log_probabilities=found.astype(np.float64))
        print(f"{name}: {path.stat().st_size} bytes, log-probabilities {found.min():.2f} to {found.max():.2f}")


if __name__ == "__main__":
    main()
