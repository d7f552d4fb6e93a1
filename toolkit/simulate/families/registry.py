"""Which family a model is of: by `general.architecture` of a GGUF file, or `architectures` of a config.json."""

from __future__ import annotations

from typing import Final

from rkfleet.errors import Invalid
from toolkit.simulate.families.base import Family
from toolkit.simulate.families.chatglm import ChatGlm
from toolkit.simulate.families.gemma import Gemma
from toolkit.simulate.families.gemma2 import Gemma2
from toolkit.simulate.families.gemma3 import Gemma3
from toolkit.simulate.families.internlm2 import InternLm2
from toolkit.simulate.families.llama import Llama
from toolkit.simulate.families.minicpm import MiniCpm
from toolkit.simulate.families.minicpm3 import MiniCpm3
from toolkit.simulate.families.phi2 import Phi2
from toolkit.simulate.families.phi3 import Phi3
from toolkit.simulate.families.qwen import Qwen
from toolkit.simulate.families.qwen2 import Qwen2
from toolkit.simulate.families.qwen3 import Qwen3
from toolkit.simulate.families.smollm3 import SmolLm3
from toolkit.simulate.families.telechat2 import TeleChat2

__all__ = ["FAMILIES", "REFUSED", "family_of", "family_of_config"]

FAMILIES: Final[tuple[Family, ...]] = (
    Llama(),
    Qwen(),
    ChatGlm(),
    InternLm2(),
    MiniCpm(),
    MiniCpm3(),
    TeleChat2(),
    Qwen2(),
    Qwen3(),
    Phi2(),
    Phi3(),
    Gemma(),
    Gemma2(),
    Gemma3(),
    SmolLm3(),
)

# Models of the vendor's list that are refused, and what is known of them.
REFUSED: Final = {
    "TelechatForCausalLM": "TeleChat of the first generation is not simulated: no runtime or public library is known here that its result "
    "could be held against; if the model is a TeleChat2, name TeleChat2ForCausalLM in architectures",
}


def family_of(architecture: str) -> Family:
    """Return the family of a GGUF architecture.

    Raises:
        Invalid: None is known by that name.
    """
    for family in FAMILIES:
        if family.architecture == architecture:
            return family
    known = ", ".join(dict.fromkeys(family.architecture for family in FAMILIES))
    raise Invalid(f"architecture {architecture!r} is unknown; known are {known}")


def family_of_config(architectures: object) -> Family:
    """Return the family of a config.json by its `architectures`.

    Raises:
        Invalid: None is known by that name.
    """
    names = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    for family in FAMILIES:
        if any(name in family.hugging_face for name in names):
            return family
    for name in names:
        if name in REFUSED:
            raise Invalid(f"config.json: architectures has {name!r}: {REFUSED[name]}")
    known = ", ".join(name for family in FAMILIES for name in family.hugging_face)
    raise Invalid(f"config.json: architectures {architectures!r} has none that is known; known are {known}")
