"""Writes tests/data/toolkit/lora: a tiny random LLaMA, adapters of it by PEFT, and the logits of torch with each.

Run with an interpreter that has torch, transformers and peft:

    python tests/oracles/lora.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

OUT = Path(__file__).parent.parent / "data" / "toolkit" / "lora"
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 35, 8, 47]
ADAPTERS = {
    "attention": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "stabilized": {"r": 8, "lora_alpha": 8, "use_rslora": True, "target_modules": "all-linear", "rank_pattern": {"down_proj": 2}},
    "head": {"r": 2, "lora_alpha": 4, "target_modules": ["lm_head", "gate_proj"], "alpha_pattern": {"lm_head": 1}},
}


def model() -> LlamaForCausalLM:
    """Return the same random model every time."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def main() -> None:
    """Write everything."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    model().save_pretrained(OUT / "base", safe_serialization=True)
    tokens = torch.tensor([TOKENS])
    logits = {}
    with torch.no_grad():
        logits["base"] = model()(tokens).logits[0].numpy()
        for name, options in ADAPTERS.items():
            adapted = get_peft_model(model(), LoraConfig(task_type="CAUSAL_LM", **options))
            torch.manual_seed(7)
            for key, value in adapted.named_parameters():
                if "lora_" in key:
                    value.copy_(torch.randn_like(value) * 0.2)
            adapted.eval()
            logits[name] = adapted(tokens).logits[0].numpy()
            adapted.save_pretrained(OUT / name, safe_serialization=True)
            (OUT / name / "README.md").unlink(missing_ok=True)
            config = json.loads((OUT / name / "adapter_config.json").read_text())
            config["base_model_name_or_path"] = "base"
            (OUT / name / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    np.savez_compressed(OUT / "logits.npz", tokens=np.array(TOKENS), **logits)


if __name__ == "__main__":
    main()
