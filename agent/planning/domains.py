"""Which IOMMU domains of the NPU each model of the board is placed in. Pure.

In: what runs, with the domain that it was started in, and what is to be started (`Claim`). Out: the first domain of each, or the sentence
that says why there is none. Called by `agent/planning/plan.py` before a start; a model that runs is never moved, because the domain is
chosen when it is loaded.

The NPU has 16 domains, and each addresses about 4 GB. Two models in one domain share that space, and the second fails to load although
the machine has memory left; so every model has domains of its own. One larger than a domain goes on in those that follow. An image encoder
lies in the first domain of its model.

Source: RKNPU driver 0.9.8, `drivers/rknpu/rknpu_iommu.c` (RKNPU_MAX_IOMMU_DOMAIN_NUM); `base_domain_id` in rkllm.h of
https://github.com/airockchip/rknn-llm and its issue 437 for the space of a domain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

__all__ = ["DOMAINS", "DOMAIN_BYTES", "Claim", "Packing", "Span", "pack"]

DOMAINS: Final = 16
DOMAIN_BYTES: Final = 4 << 30


class Span(msgspec.Struct, frozen=True):
    """Domains that belong together: `count` of them, beginning with `first`."""

    first: int
    count: int

    def overlaps(self, other: Span) -> bool:
        """Whether both have a domain."""
        return self.first < other.first + other.count and other.first < self.first + self.count

    def __str__(self) -> str:
        """Return it for people."""
        return f"domain {self.first}" if self.count == 1 else f"domains {self.first} to {self.first + self.count - 1}"


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A model that needs domains.

    Attributes:
        uid: Of its replica.
        name: Of its replica, for sentences.
        memory_bytes: Memory that it takes on the NPU, its encoder included.
        encoder_bytes: What of that is its encoder; 0 for none.
        wanted: First domain that the user names; -1 leaves the choice.
        held: First domain in which it runs now; -1 if it does not.
    """

    uid: str
    name: str
    memory_bytes: int
    encoder_bytes: int = 0
    wanted: int = -1
    held: int = -1

    @property
    def count(self) -> int:
        """Domains that it needs."""
        return max(1, -(-self.memory_bytes // DOMAIN_BYTES))


class Packing(msgspec.Struct, frozen=True):
    """The domains of each claim by uid, and why others have none."""

    spans: Mapping[str, Span]
    refused: Mapping[str, str]


def pack(claims: Iterable[Claim], named: Iterable[Span] = ()) -> Packing:
    """Return where each model goes: first what runs stays, then what the user names, then the lowest free domains.

    The order of the claims does not matter.

    Args:
        claims: What runs and what is to be started.
        named: Domains that the user names for models that are not loaded now; taken only where nothing else is free.
    """
    kept_free = tuple(named)
    ordered = sorted(claims, key=lambda claim: (claim.name, claim.uid))
    spans = {claim.uid: Span(claim.held, claim.count) for claim in ordered if claim.held >= 0}
    names = {claim.uid: claim.name for claim in ordered}
    refused: dict[str, str] = {}
    for claim in sorted((one for one in ordered if one.held < 0), key=lambda one: one.wanted < 0):
        found = _place(claim, spans, names, kept_free)
        if isinstance(found, Span):
            spans[claim.uid] = found
        else:
            refused[claim.uid] = found
    return Packing(spans, refused)


def _place(claim: Claim, spans: Mapping[str, Span], names: Mapping[str, str], kept_free: Sequence[Span]) -> Span | str:
    gib = 1 << 30
    if claim.encoder_bytes > DOMAIN_BYTES:
        size = f"{claim.encoder_bytes / gib:.1f} GiB"
        return f"its encoder of {size} must lie in one IOMMU domain of the NPU, which holds {DOMAIN_BYTES // gib} GiB"
    if claim.count > DOMAINS:
        return f"it needs {claim.count} IOMMU domains of the NPU, which has {DOMAINS}"
    if claim.wanted >= 0:
        span = Span(claim.wanted, claim.count)
        if span.first + span.count > DOMAINS:
            return f"it needs {claim.count} IOMMU domains and serving.iommuDomain {claim.wanted} leaves {DOMAINS - claim.wanted}"
        taken = next((uid for uid, other in spans.items() if span.overlaps(other)), None)
        if taken is not None:
            return f"serving.iommuDomain {claim.wanted} asks for {span}, and {names[taken]} has {spans[taken]}"
        return span
    candidates = [Span(first, claim.count) for first in range(DOMAINS - claim.count + 1)]
    free = [span for span in candidates if not any(span.overlaps(other) for other in spans.values())]
    best = min(free, key=lambda span: (any(span.overlaps(other) for other in kept_free), span.first), default=None)
    if best is not None:
        return best
    return f"no {claim.count} IOMMU domain{'s' if claim.count > 1 else ''} of the NPU in a row are free of {DOMAINS}"
