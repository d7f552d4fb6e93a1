"""Reading a config.json field by field, with errors that name field and value.

In: the parsed file of a model that anybody may have written. Out: numbers within limits. Used by every family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rkfleet.errors import Invalid
from toolkit.simulate.hyperparameters import COUNT_MAX, RopeScaling

__all__ = ["Config", "check_heads", "rope_scaling"]

NUMBER_MAX: Final = 1e300  # JSON has integers that no float64 holds.
POSITIVE_MAX: Final = 1e12  # Far above any base of rotary positions (1e8 is known), and its powers stay within float64.

_ORIGINAL: Final = "original_max_position_embeddings"


class Config:
    """A config.json."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields: Final = fields

    def count(self, field: str, default: int | None = None) -> int:
        """Return a whole number from 1 on.

        Raises:
            Invalid: It is missing without a default, or is none.
        """
        value = self.fields.get(field)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= COUNT_MAX:
            raise Invalid(f"config.json: {field} is {value!r}, not a whole number from 1 to {COUNT_MAX}")
        return value

    def number(self, field: str, default: float | None = None) -> float:
        """Return a finite number; errors as `count`."""
        value = self.fields.get(field)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= NUMBER_MAX:
            raise Invalid(f"config.json: {field} is {value!r}, not a number")
        return float(value)

    def expect(self, field: str, *known: object) -> None:
        """Refuse a field whose value is none of those that a family computes; None stands for a field that is missing.

        Raises:
            Invalid: It is another.
        """
        value = self.fields.get(field)
        if not any(isinstance(value, bool) == isinstance(one, bool) and value == one for one in known):  # 1 is no true, and 1.0 is 1.
            told = ", ".join(repr(one) for one in known if one is not None) or "no value"
            raise Invalid(f"config.json: {field} is {value!r}; this family is simulated with {told} only")

    def positive(self, field: str, default: float | None = None) -> float:
        """Return a number above zero and up to `POSITIVE_MAX`; errors as `count`."""
        value = self.number(field, default)
        if not 0 < value <= POSITIVE_MAX:
            raise Invalid(f"config.json: {field} is {value!r}, not above 0 and up to {POSITIVE_MAX:g}")
        return value

    def rope_theta(self, default: float = 10000.0) -> float:
        """Return the base of rotary positions, which newer files keep in `rope_parameters`."""
        nested = self.fields.get("rope_parameters")
        if isinstance(nested, Mapping) and "rope_theta" in nested:
            return Config(nested).positive("rope_theta", default)
        return self.positive("rope_theta", default)


def check_heads(heads: tuple[str, int], kv_heads: tuple[str, int], *, head_dim: int, hidden: int = 0) -> None:
    """See that queries can share keys, and that a head's dimensions make pairs that turn.

    Args:
        heads: Field of a config.json and its number of heads of queries.
        kv_heads: The same of keys and values.
        head_dim: Width of a head.
        hidden: What the heads must fill exactly; 0 where a family has no such rule.

    Raises:
        Invalid: They do not; the message has fields and values.
    """
    (field, queries), (kv_field, keys) = heads, kv_heads
    if queries % keys:
        raise Invalid(f"config.json: {field} is {queries}, which is no multiple of {kv_field}, {keys}")
    if head_dim < 2 or head_dim % 2:
        raise Invalid(f"config.json: {field} is {queries}, which makes heads of {head_dim} dimensions; pairs that turn need an even number")
    if hidden and queries * head_dim != hidden:
        raise Invalid(f"config.json: {field} is {queries}, which does not divide hidden_size, {hidden}")


def rope_scaling(config: Config) -> RopeScaling | None:
    """Return how positions are stretched; None if they are not.

    Raises:
        Invalid: The kind is unknown.
    """
    nested = config.fields.get("rope_scaling") or config.fields.get("rope_parameters")
    if not isinstance(nested, Mapping):
        return None
    kind = nested.get("rope_type", nested.get("type", "default"))
    read = Config(nested)
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(kind="linear", factor=_factor(read))
    if kind == "llama3":
        low, high = read.number("low_freq_factor"), read.number("high_freq_factor")
        if not 0 < low < high:
            raise Invalid(f"config.json: rope_scaling.high_freq_factor is {high!r}, not above low_freq_factor, {low!r}, and that above 0")
        return RopeScaling(
            kind="llama3",
            factor=_factor(read),
            original_context=(config if config.fields.get(_ORIGINAL) is not None else read).count(_ORIGINAL),
            low_frequency_factor=low,
            high_frequency_factor=high,
        )
    raise Invalid(f"config.json: rope_scaling.rope_type is {kind!r}; known are default, linear, llama3")


def _factor(scaling: Config) -> float:
    factor = scaling.number("factor")
    if not 1 <= factor <= POSITIVE_MAX:
        raise Invalid(f"config.json: rope_scaling.factor is {factor!r}, not from 1 to {POSITIVE_MAX:g}")
    return factor
