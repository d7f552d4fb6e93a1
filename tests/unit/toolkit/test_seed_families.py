"""Every model that the project's founding text names has a family, and a fixture of an oracle that proves it."""

from __future__ import annotations

import pytest

from tests.support.remote_checkpoints import DATA
from toolkit.simulate.families.registry import family_of, family_of_config

# As the vendor lists them: `architectures` of config.json, architecture in GGUF, and how fixtures of an oracle begin.
NAMED = [
    pytest.param("LlamaForCausalLM", "llama", "llama.", id="LLAMA"),
    pytest.param("LlamaForCausalLM", "llama", "llama.", id="TinyLLAMA"),
    pytest.param("QWenLMHeadModel", "qwen", "qwen.", id="Qwen"),
    pytest.param("Phi3ForCausalLM", "phi3", "phi3", id="Phi"),
    pytest.param("ChatGLMModel", "chatglm", "chatglm.", id="ChatGLM3-6B"),
    pytest.param("GemmaForCausalLM", "gemma", "gemma", id="Gemma"),
    pytest.param("InternLM2ForCausalLM", "internlm2", "internlm2.", id="InternLM2"),
    pytest.param("MiniCPMForCausalLM", "minicpm", "minicpm.", id="MiniCPM"),
    pytest.param("TeleChat2ForCausalLM", "llama", "telechat2.", id="TeleChat"),
]


@pytest.mark.parametrize(("published", "architecture", "fixture"), NAMED)
def test_a_named_model_has_a_family_and_a_proof(published: str, architecture: str, fixture: str) -> None:
    """The tests beside this one run every fixture."""
    assert published in family_of_config([published]).hugging_face
    assert family_of_config([published]).architecture == family_of(architecture).architecture == architecture
    assert [path.name for path in DATA.iterdir() if path.name.startswith(fixture) and path.suffix in (".npz", ".safetensors")]
