"""Compute logits of tiny checkpoints with torch: second oracles of families whose first is llama.cpp.

Run as `PYTHON tests/oracles/torch_logits.py` from the root of the repository, with an interpreter that has torch 2 and transformers 5.24.
It reads tests/data/toolkit/families/NAME.gguf, makes the publisher's checkpoint of it and writes NAME.torch.npz: prompt and logits.

- minicpm3: transformers' own `minicpm3`.
- chatglm: transformers' `glm` (GLM-4), whose block is ChatGLM3's under other names; tensors are renamed and taken apart for it.
- telechat2: no library has it. What follows is written from the publisher's description (github.com/Tele-AI/TeleChat2 and
  `modeling_telechat2.py` of its checkpoints) in torch, token by token and head by head, and shares no code with the toolkit.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.remote_checkpoints import DATA, checkpoint

Weights = dict[str, torch.Tensor]

CHATGLM_TO_GLM = {
    "transformer.encoder.layers": "model.layers",
    "transformer.encoder.final_layernorm": "model.norm",
    "transformer.embedding.word_embeddings": "model.embed_tokens",
    "transformer.output_layer": "lm_head",
    "self_attention.dense": "self_attn.o_proj",
    "self_attention": "self_attn",
    "dense_h_to_4h": "gate_up_proj",
    "dense_4h_to_h": "down_proj",
}


def minicpm3(config: dict[str, Any], weights: Weights, prompt: torch.Tensor) -> torch.Tensor:
    config = dict(config) | {"tie_word_embeddings": False, "pad_token_id": None}
    config["rope_parameters"] = dict(config.pop("rope_scaling")) | {"rope_theta": config.pop("rope_theta")}
    settings = transformers.MiniCPM3Config(**{name: value for name, value in config.items() if name != "architectures"})
    return _run(transformers.MiniCPM3ForCausalLM(settings), weights, prompt)


def chatglm(config: dict[str, Any], weights: Weights, prompt: torch.Tensor) -> torch.Tensor:
    heads, groups, width = config["num_attention_heads"], config["multi_query_group_num"], config["kv_channels"]
    settings = transformers.GlmConfig(
        vocab_size=config["padded_vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["ffn_hidden_size"],
        num_hidden_layers=config["num_layers"],
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=width,
        rms_norm_eps=config["layernorm_epsilon"],
        max_position_embeddings=config["seq_length"],
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0 * config["rope_ratio"], "partial_rotary_factor": 0.5},
        attention_bias=True,
        tie_word_embeddings=False,
        pad_token_id=None,
        eos_token_id=2,
    )
    renamed: Weights = {}
    for name, values in weights.items():
        ours = name
        for old, new in CHATGLM_TO_GLM.items():
            ours = ours.replace(old, new)
        if "query_key_value" in name:
            parts = torch.split(values, [heads * width, groups * width, groups * width])
            renamed |= {ours.replace("query_key_value", f"{letter}_proj"): part for letter, part in zip("qkv", parts, strict=True)}
        else:
            renamed[ours] = values
    return _run(transformers.GlmForCausalLM(settings), renamed, prompt)


def telechat2(config: dict[str, Any], weights: Weights, prompt: torch.Tensor) -> torch.Tensor:
    heads, groups = config["n_head"], config["num_key_value_heads"]
    width = config["hidden_size"] // heads
    length = max(len(prompt), config["training_seqlen"])
    alpha = max(2 ** math.ceil(math.log2(length / config["base_seqlen"]) + 1) - 1, 1)
    base = config["rope_theta"] * alpha ** (width / (width - 2))
    scale = length / config["training_seqlen"]
    amplitude = 0.1 * math.log(scale) + 1.0 if scale > 1 else 1.0

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return weights[name] * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config["layer_norm_epsilon"])

    def turn(head: torch.Tensor, position: int) -> torch.Tensor:
        angles = position / base ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
        angles = torch.cat([angles, angles])
        swapped = torch.cat([-head[width // 2 :], head[: width // 2]])
        return amplitude * (head * angles.cos() + swapped * angles.sin())

    x = weights["transformer.word_embeddings.weight"][prompt]
    for layer in range(config["n_layer"]):
        at = f"transformer.h.{layer}."
        normed = norm(x, at + "input_layernorm.weight")
        queries = (normed @ weights[at + "self_attention.query.weight"].T).view(-1, heads, width)
        mixed = (normed @ weights[at + "self_attention.key_value.weight"].T).view(-1, groups, 2 * width)
        out = torch.zeros(len(prompt), heads, width)
        for head in range(heads):
            group = head // (heads // groups)
            keys = [turn(mixed[position, group, :width], position) for position in range(len(prompt))]
            for position in range(len(prompt)):
                query = turn(queries[position, head], position)
                scores = torch.stack([query @ key / math.sqrt(width) for key in keys[: position + 1]])
                out[position, head] = torch.softmax(scores, 0) @ mixed[: position + 1, group, width:]
        dense = at + "self_attention.dense"
        x = x + out.reshape(len(prompt), -1) @ weights[dense + ".weight"].T + weights[dense + ".bias"]
        normed = norm(x, at + "post_attention_layernorm.weight")
        inner = torch.nn.functional.silu(normed @ weights[at + "mlp.gate_proj.weight"].T) * (normed @ weights[at + "mlp.up_proj.weight"].T)
        x = x + inner @ weights[at + "mlp.down_proj.weight"].T + weights[at + "mlp.down_proj.bias"]
    return norm(x, "transformer.ln_f.weight") @ weights["lm_head.weight"].T


def _run(model: Any, weights: Weights, prompt: torch.Tensor) -> torch.Tensor:
    model.load_state_dict(weights, strict=True)
    return model.eval()(prompt[None]).logits[0]


def main() -> None:
    torch.set_num_threads(1)
    for compute in (minicpm3, chatglm, telechat2):
        name = compute.__name__
        stored = gguf.GGUFReader(DATA / f"{name}.gguf").tensors
        config, found = checkpoint(name, {str(one.name): np.array(one.data).reshape(one.shape.tolist()[::-1]) for one in stored})
        prompt = torch.tensor(np.load(DATA / f"{name}.npz")["prompt"])
        with torch.no_grad():
            logits = compute(config, {key: torch.tensor(np.array(values)) for key, values in found.items()}, prompt)
        np.savez_compressed(DATA / f"{name}.torch.npz", prompt=prompt.numpy(), logits=logits.numpy())
        print(f"{name}: logits {logits.min():.2f} to {logits.max():.2f}")


if __name__ == "__main__":
    main()
