"""A kind that rkfleet does not have: one struct, as a contributor would write it, and nothing else."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta

from rkfleet.kinds.base import Column, Object, Resource, Rule
from rkfleet.meta import Struct


class WidgetSpec(Struct, frozen=True, kw_only=True):
    """What is wanted."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("self.sizeBytes >= oldSelf.sizeBytes", "sizeBytes may only grow", ".sizeBytes"),
        Rule("self.colour != 'red' || self.sizeBytes < 100", "a red widget must be smaller than 100 bytes", ".colour"),
    )

    size_bytes: Annotated[int, Meta(description="Size of the widget.", ge=1, le=1000)]
    colour: Annotated[str, Meta(description="Colour of the widget.", max_length=16)] = "blue"


class Widget(Object, frozen=True, kw_only=True):
    """A thing that exists only in a test."""

    resource: ClassVar[Resource] = Resource(
        kind="Widget",
        plural="widgets",
        singular="widget",
        group="test.rkfleet.dev",
        short_names=("wg",),
        name_length_max=20,
        status=False,
        columns=(Column("Colour", ".spec.colour", "Colour of the widget."),),
    )

    spec: Annotated[WidgetSpec, Meta(description="What is wanted of the widget.")]
