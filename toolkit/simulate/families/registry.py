"""Which family a model is of: by `general.architecture` of a GGUF file, or `architectures` of a config.json."""

from __future__ import annotations

from typing import Final

from rkfleet.errors import Invalid
from toolkit.simulate.families.base import Family
from toolkit.simulate.families.llama import Llama

__all__ = ["FAMILIES", "family_of", "family_of_config"]

FAMILIES: Final[tuple[Family, ...]] = (Llama(),)


def family_of(architecture: str) -> Family:
    """Return the family of a GGUF architecture.

    Raises:
        Invalid: None is known by that name.
    """
    for family in FAMILIES:
        if family.architecture == architecture:
            return family
    raise Invalid(f"architecture {architecture!r} is unknown; known are {', '.join(family.architecture for family in FAMILIES)}")


def family_of_config(architectures: object) -> Family:
    """Return the family of a config.json by its `architectures`.

    Raises:
        Invalid: None is known by that name.
    """
    names = architectures if isinstance(architectures, list) else []
    for family in FAMILIES:
        if any(name in family.hugging_face for name in names):
            return family
    known = ", ".join(name for family in FAMILIES for name in family.hugging_face)
    raise Invalid(f"config.json: architectures {architectures!r} has none that is known; known are {known}")
