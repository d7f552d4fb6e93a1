"""Make tiny random models of the families that transformers knows, and its logits: fixtures of tests/unit/toolkit.

Run as `python tests/oracles/transformers_logits.py` in an environment with torch and transformers (made with torch 2.13 on a CPU and
transformers 5.24; float32, eager attention). For each variant it writes to tests/data/toolkit/families: NAME.safetensors (float16, of
values that float16 has), NAME.json (the config.json) and NAME.logits.npz (prompt, logits after every token).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

DATA = Path(__file__).parents[1] / "data/toolkit/families"
PROMPT = (5, 17, 9, 33, 8, 21, 14, 39, 11, 27, 6, 30, 12, 35, 4, 22, 7, 19, 28, 10, 36, 16, 25, 13)
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.7],
    "long_factor": [1.2, 1.9, 3.1, 5.0],
}
KINDS = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
# Of linear layers: what goes out is as large as what comes in. With 1.5, scores of attention get so large that torch's own float32 is up to
# 7e-5 away from its float64 (hf-llama-tied), and a difference of 1e-4 says nothing.
GAIN = 1.0
GEMMA = {"head_dim": 16, "tie_word_embeddings": True}

# Name: architecture, and what differs from SIZES.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "hf-llama": ("Llama", {}),
    "hf-llama-tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4, "head_dim": 12}),
    "hf-llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
    "hf-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "hf-llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "qwen2": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3-tied": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
    "phi2": ("Phi", {"num_key_value_heads": 4}),
    "phi2-grouped": ("Phi", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e3, "partial_rotary_factor": 0.25}, "head_dim": 8}),
    "phi3": ("Phi3", {}),
    "phi3-window": ("Phi3", {"sliding_window": 7, "num_key_value_heads": 4}),
    "phi3-short": ("Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}),
    "phi3-long": ("Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 8, "sliding_window": 20}),
    "phi3-long-full": ("Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 8}),
    "phi3-partial": ("Phi3", {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.75}}),
    "gemma": ("Gemma", GEMMA | {"num_key_value_heads": 1}),
    "gemma2": ("Gemma2", GEMMA | {"sliding_window": 6, "query_pre_attn_scalar": 16}),
    "gemma2-scaled": (
        "Gemma2",
        GEMMA | {"sliding_window": 5, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": ("Gemma3Text", GEMMA | {"sliding_window": 6, "query_pre_attn_scalar": 8, "num_hidden_layers": 7, "head_dim": 8}),
    "gemma3-linear": (
        "Gemma3Text",
        GEMMA | {"sliding_window": 9, "query_pre_attn_scalar": 8, "num_hidden_layers": 6, "rope_parameters": KINDS, "head_dim": 8},
    ),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5, "tie_word_embeddings": True}),
    "smollm3-untied": ("SmolLM3", {"num_hidden_layers": 4, "num_key_value_heads": 4}),
}


def make(name: str) -> None:
    """Write the three files of a variant."""
    kind, differs = VARIANTS[name]
    config = getattr(transformers, f"{kind}Config")(**json.loads(json.dumps(SIZES | differs)))
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config).float().eval()
    random = torch.Generator().manual_seed(sum(name.encode()))
    with torch.no_grad():
        for parameter, values in model.named_parameters():
            fresh = torch.randn(values.shape, generator=random)
            if values.ndim == 1:
                fresh = 0.2 * fresh + float(parameter.endswith("norm.weight") and "gemma" not in name)
                fresh += float("layernorm" in parameter and parameter.endswith("weight") and "gemma" not in name)
            elif "embed_tokens" not in parameter:
                fresh *= GAIN / values.shape[1] ** 0.5
            values.copy_(fresh.half().float())
        logits = model(torch.tensor([PROMPT])).logits[0].numpy()
    tied = config.tie_word_embeddings
    tensors = {key: values.half().contiguous() for key, values in model.state_dict().items() if not (tied and key == "lm_head.weight")}
    DATA.mkdir(parents=True, exist_ok=True)
    save_file(tensors, DATA / f"{name}.safetensors")
    fields = json.loads(config.to_json_string()) | {"architectures": [f"{kind.removesuffix('Text')}ForCausalLM"]}
    (DATA / f"{name}.json").write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n")
    np.savez_compressed(DATA / f"{name}.logits.npz", prompt=np.array(PROMPT), logits=logits)
    print(f"{name}: {(DATA / f'{name}.safetensors').stat().st_size} bytes, logits {logits.min():.2f} to {logits.max():.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(VARIANTS))
    for name in parser.parse_args().names:
        make(name)


if __name__ == "__main__":
    main()
