"""What families of transformers share in config.json and checkpoint: sizes under the usual names, fields that only one value computes.

In: a config.json. Out: `Hyperparameters` that a family completes, names of tensors. Called by `from_config` and `origins` of Llama, Qwen2,
Qwen3, Phi, Gemma and SmolLM3. Source: transformers `configuration_utils.py` and `modeling_rope_utils.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rkfleet.errors import Invalid
from toolkit.simulate.families.base import Origin
from toolkit.simulate.families.config import Config, check_heads
from toolkit.simulate.families.longrope import longrope
from toolkit.simulate.families.names import renamed
from toolkit.simulate.hyperparameters import Hyperparameters

__all__ = ["BLOCK", "WHOLE", "decoder", "decoder_origins", "flag", "layer_kinds", "stored_local_layers"]

LAYERS_MAX: Final = 1024  # Eight times the deepest published model; lists of layers are made before any tensor is looked at.

WHOLE: Final = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def flag(config: Config, field: str, *, default: bool | None) -> bool | None:
    """Return a field that is true or false, or the default where it is missing.

    Raises:
        Invalid: It is neither.
    """
    value = config.fields.get(field)
    value = default if value is None else value
    if value is not None and not isinstance(value, bool):
        raise Invalid(f"config.json: {field} is {value!r}, neither true nor false")
    return value


def decoder(
    config: Config,
    architecture: str,
    *,
    epsilon: tuple[str, float],
    base: float = 10000.0,
    tied: bool | None = None,
    head_dim: int | None = None,
    partial: float | None = None,
    interleaved: bool = False,
) -> Hyperparameters:
    """Return the sizes that all of these families have under the same names.

    Args:
        config: The file.
        architecture: Of GGUF.
        epsilon: Field of the norms' epsilon, and its value where the file has none.
        base: Base of rotary positions where the file has none.
        tied: What a missing `tie_word_embeddings` stands for; None: the output layer is tied if the checkpoint has none.
        head_dim: What a missing `head_dim` stands for; None is hidden / heads.
        partial: What a missing `partial_rotary_factor` stands for; None: the whole head turns, and another factor is refused.
        interleaved: See `Hyperparameters.rope_interleaved`.

    Raises:
        Invalid: A field is missing or has a value that cannot be computed; the message has both.
    """
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    kv_heads = config.count("num_key_value_heads", heads)
    width = config.count("head_dim", head_dim or max(1, hidden // heads))
    check_heads(("num_attention_heads", heads), ("num_key_value_heads", kv_heads), head_dim=width)
    layers, context = config.count("num_hidden_layers"), config.count("max_position_embeddings")
    if layers > LAYERS_MAX:
        raise Invalid(f"config.json: num_hidden_layers is {layers}; up to {LAYERS_MAX} are simulated")
    nested = config.fields.get("rope_parameters")
    within = Config(nested) if isinstance(nested, Mapping) and "partial_rotary_factor" in nested else config
    if partial is None:
        within.expect("partial_rotary_factor", 1.0, None)
    part = within.number("partial_rotary_factor", partial or 1.0)
    turning = int(width * part)
    if not 0 < part <= 1 or turning < 2 or turning % 2:
        raise Invalid(
            f"config.json: partial_rotary_factor is {part!r}, which turns {turning} of a head's {width} dimensions, not even pairs"
        )
    field, default = epsilon
    return Hyperparameters(
        architecture=architecture,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width,
        value_dim=width,
        feed_forward=config.count("intermediate_size"),
        vocabulary=config.count("vocab_size"),
        context=context,
        norm_epsilon=config.positive(field, default),
        rope_base=config.rope_theta(base),
        rope_dimensions=turning,
        rope_interleaved=interleaved,
        rope_scaling=longrope(config, context=context, pairs=turning // 2),
        tied_output=flag(config, "tie_word_embeddings", default=tied),
    )


def decoder_origins(
    hyperparameters: Hyperparameters, shapes: Mapping[str, tuple[int, ...]], block: Mapping[str, str], whole: Mapping[str, str] = WHOLE
) -> dict[str, Origin]:
    """Return where tensors come from that only change their names; see `Family.origins`.

    Raises:
        Invalid: A weight is missing, the output layer among them if it is not to be tied.
    """
    if hyperparameters.tied_output:
        whole = {ours: theirs for ours, theirs in whole.items() if ours != "output"}
    found = renamed(whole, block, stem="model.layers", layers=hyperparameters.layers, shapes=shapes)
    if hyperparameters.tied_output is False and "output.weight" not in found:
        raise Invalid(f"the checkpoint has no tensor {whole['output']}.weight, and tie_word_embeddings is false; is a file missing?")
    return found


def layer_kinds(config: Config, layers: int, implied: Sequence[bool]) -> tuple[int, ...]:
    """Return which layers see a window, by `layer_types`; `implied` says it for each layer where the file does not.

    Raises:
        Invalid: The list has not one known kind for each layer.
    """
    kinds = config.fields.get("layer_types")
    if kinds is None:
        return tuple(layer for layer in range(layers) if implied[layer])
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise Invalid(f"config.json: layer_types has {len(kinds) if isinstance(kinds, list) else kinds!r} of {layers} layers")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise Invalid(f"config.json: layer_types has {kind!r}; known are full_attention, sliding_attention")
    return tuple(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")


def stored_local_layers(metadata: Mapping[str, Any], architecture: str, layers: int, implied: Sequence[bool]) -> tuple[int, ...]:
    """Return which layers see a window, by a GGUF file's `attention.sliding_window_pattern`, a bool for each layer or a period.

    Raises:
        Invalid: It is neither.
    """
    key = f"{architecture}.attention.sliding_window_pattern"
    pattern = metadata.get(key)
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
        pattern = [layer % pattern < pattern - 1 for layer in range(layers)]
    elif isinstance(pattern, list) and len(pattern) == layers and all(isinstance(one, bool | int) for one in pattern):
        pattern = [bool(one) for one in pattern]
    elif pattern is not None:
        raise Invalid(f"GGUF key {key} is {pattern!r}, neither a period nor one bool for each of {layers} layers")
    return tuple(layer for layer in range(layers) if (implied if pattern is None else pattern)[layer])
