"""IOMMU domains of the NPU: a table of what fits together, and what holds for any board."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.planning.domains import DOMAIN_BYTES, DOMAINS, Claim, Span, pack

GB = 1 << 30


def claim(name: str, gigabytes: float = 2.0, **more: int) -> Claim:
    return Claim(uid=name, name=f"default/{name}", memory_bytes=int(gigabytes * GB), **more)


@pytest.mark.parametrize(
    ("claims", "firsts"),
    [
        ([claim("a"), claim("b")], {"a": 0, "b": 1}),  # each its own, though both would fit into one
        ([claim("a", 6.0), claim("b")], {"a": 0, "b": 2}),  # one larger than a domain goes on in the next
        ([claim("a"), claim("b", wanted=0)], {"a": 1, "b": 0}),  # the user's word before the board's choice
        ([claim("a", held=1), claim("b", 6.0)], {"a": 1, "b": 2}),  # what runs stays, also in the way
        ([claim("a", held=1), claim("b")], {"a": 1, "b": 0}),
        ([claim("a", 4.0), claim("b", 4.5)], {"a": 0, "b": 1}),
        ([claim("a", 2.0, wanted=15), claim("b", 60.0)], {"a": 15, "b": 0}),
    ],
)
def test_models_that_fit_together_have_domains_of_their_own(claims: list[Claim], firsts: dict[str, int]) -> None:
    packing = pack(claims)
    assert ({uid: span.first for uid, span in packing.spans.items()}, packing.refused) == (firsts, {})


@pytest.mark.parametrize(
    ("claims", "refused", "why"),
    [
        ([claim("a", held=3), claim("b", wanted=3)], "b", "serving.iommuDomain 3 asks for domain 3, and default/a has domain 3"),
        (
            [claim("a", 6.0, wanted=2), claim("b", wanted=3)],
            "b",
            "serving.iommuDomain 3 asks for domain 3, and default/a has domains 2 to 3",
        ),
        ([claim("a", 6.0, wanted=15)], "a", "it needs 2 IOMMU domains and serving.iommuDomain 15 leaves 1"),
        ([claim("a", 70.0)], "a", "it needs 18 IOMMU domains of the NPU, which has 16"),
        ([claim("a", 40.0), claim("b", 40.0)], "b", "no 10 IOMMU domains of the NPU in a row are free of 16"),
        ([claim("a", 5.0, encoder_bytes=5 * GB)], "a", "its encoder of 5.0 GiB must lie in one IOMMU domain of the NPU, which holds 4 GiB"),
    ],
)
def test_a_model_without_a_domain_reads_why(claims: list[Claim], refused: str, why: str) -> None:
    assert pack(claims).refused == {refused: why}


def test_domains_that_a_sleeping_model_is_declared_to_use_are_left_to_it_while_others_are_free() -> None:
    assert pack([claim("a")], [Span(0, 2)]).spans["a"].first == 2
    assert pack([claim("a", 60.0)], [Span(0, 2)]).spans["a"].first == 0


claims = st.lists(
    st.builds(
        lambda name, gigabytes, wanted: claim(name, gigabytes, wanted=wanted),
        st.sampled_from("abcdefgh"),
        st.floats(0.1, 20.0),
        st.sampled_from((-1, -1, 0, 1, 5, 15)),
    ),
    max_size=8,
    unique_by=lambda each: each.uid,
)


@given(running=claims, coming=claims)
def test_no_two_models_share_a_domain_and_what_runs_never_moves(running: list[Claim], coming: list[Claim]) -> None:
    """Whatever comes, in whatever order, a model that runs keeps its domain: it could not change it without a restart."""
    placed = pack(running)
    held = [
        Claim(uid=one.uid, name=one.name, memory_bytes=one.memory_bytes, wanted=one.wanted, held=placed.spans[one.uid].first)
        for one in running
        if one.uid in placed.spans
    ]
    new = [one for one in coming if one.uid not in {other.uid for other in held}]
    together = [*held, *new]
    packing = pack(together)
    shuffled = list(together)
    random.Random(1).shuffle(shuffled)
    assert pack(shuffled) == packing
    assert {uid: packing.spans[uid] for uid in (one.uid for one in held)} == {one.uid: placed.spans[one.uid] for one in held}
    spans = list(packing.spans.items())
    for uid, span in spans:
        assert span.first >= 0
        assert span.first + span.count <= DOMAINS
        assert not any(span.overlaps(other) for name, other in spans if name != uid)
        size = next(one.memory_bytes for one in together if one.uid == uid)
        assert (span.count - 1) * DOMAIN_BYTES < size <= span.count * DOMAIN_BYTES
    for one in new:
        assert (one.uid in packing.spans) != (one.uid in packing.refused)
        if one.uid in packing.spans and one.wanted >= 0:
            assert packing.spans[one.uid].first == one.wanted
