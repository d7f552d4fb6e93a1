"""A tiny random LLaMA as a Hugging Face directory, written by the `safetensors` library, with a small tokenizer or that of the sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from toolkit.checkpoint.gguf import GgufCheckpoint
from toolkit.tokens.bpe import ByteLevelTokenizer
from toolkit.tokens.vocabulary import from_metadata

HIDDEN, HEADS, KV_HEADS, WIDE, LAYERS = 64, 4, 2, 96, 2


TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' }}"


def small_tokenizer() -> Tokenizer:
    """Return byte-level BPE over a few words, with the splitting of GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the board said that the model is on the board"] * 9, trainer)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return tokenizer


def sample_tokenizer(sample: Path) -> Tokenizer:
    """Return the tokenizer of a GGUF file as the library's own object, which can write itself."""
    tokenizer: Tokenizer = ByteLevelTokenizer(from_metadata(GgufCheckpoint(sample).metadata))._tokenizer
    tokenizer.encode_special_tokens = False
    return tokenizer


def write_tiny_llama(directory: Path, *, tokenizer: Tokenizer | None = None, dtype: type = np.float32, **config: Any) -> Path:
    """Write one; `config` adds fields to config.json or replaces them."""
    tokenizer = tokenizer or small_tokenizer()
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": False, "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    rows = tokenizer.get_vocab_size()
    sizes = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "num_hidden_layers": LAYERS,
        "intermediate_size": WIDE,
        "vocab_size": rows,
        "max_position_embeddings": 256,
        "rms_norm_eps": 2.0**-16,
        "rope_theta": 10000.0,
    }
    (directory / "config.json").write_text(json.dumps({**sizes, **config}))
    random = np.random.default_rng(11)
    narrow = HIDDEN // HEADS * KV_HEADS
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (narrow, HIDDEN),
        "self_attn.v_proj": (narrow, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (WIDE, HIDDEN),
        "mlp.up_proj": (WIDE, HIDDEN),
        "mlp.down_proj": (HIDDEN, WIDE),
    }
    tensors = {"model.embed_tokens.weight": random.standard_normal((rows, HIDDEN)), "model.norm.weight": np.ones(HIDDEN)}
    for layer in range(LAYERS):
        tensors |= {f"model.layers.{layer}.{name}.weight": random.standard_normal(shape) * 0.2 for name, shape in shapes.items()}
        tensors |= {f"model.layers.{layer}.{name}.weight": np.ones(HIDDEN) for name in ("input_layernorm", "post_attention_layernorm")}
    save_file({name: value.astype(dtype) for name, value in tensors.items()}, directory / "model.safetensors")
    return directory
