"""Version comparisons of requirements."""

from __future__ import annotations

import pytest

from rkfleet.versions import meets, version_order


@pytest.mark.parametrize(
    ("version", "wanted"),
    [
        ("1.1.4", ">=1.1.0,<1.4"), ("1.4", ">=1.4.0"), ("v0.9.8", ">= 0.9.7"), ("1.1.4b1", "==1.1.4"), ("2026.10", ">2026.9"),
        ("b6432", ">=6000"), ("1.2", "!=1.3"), ("1.2", "1.2"), ("", ""), ("unknown", " , "),
    ],
)  # fmt: skip
def test_a_version_meets(version: str, wanted: str) -> None:
    assert meets(version, wanted)


@pytest.mark.parametrize(
    ("version", "wanted"),
    [("1.4.0", ">=1.1.0,<1.4"), ("1.10", "<1.9"), ("", ">=1"), ("unknown", ">=0"), ("1.0", "newest"), ("1.2.1", "==1.2")],
)
def test_a_version_does_not_meet(version: str, wanted: str) -> None:
    assert not meets(version, wanted)


def test_versions_are_ordered_by_their_numbers() -> None:
    """The newest library is the one with the highest numbers; one that says nothing is never preferred."""
    assert sorted(["1.10.0", "1.2.3", "unknown", "1.3.0"], key=version_order) == ["unknown", "1.2.3", "1.3.0", "1.10.0"]
