"""Checking a conversion accepts the cells of the vendor's tables and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rkfleet.errors import Cause, Invalid
from toolkit.dtypes import DTYPES
from toolkit.platforms import RELEASES, SOCS, Request, algorithms_of, check, dtypes_of, npu_cores_of

ALGORITHMS = st.builds(
    lambda name, rank: name + (f"_r{rank}" if rank else ""), st.sampled_from(["normal", "gdq", "grq"]), st.integers(0, 70)
)


def taken(request: Request) -> bool:
    """Whether a request is taken; if it is refused, each cause names a row or a table."""
    causes: tuple[Cause, ...] = ()
    try:
        check(request)
    except Invalid as error:
        causes = error.causes or (Cause("", "no cause"),)
    assert [cause.message for cause in causes if "row" not in cause.message and "table" not in cause.message] == []
    return not causes


@given(st.sampled_from(RELEASES), st.sampled_from(SOCS), st.sampled_from(DTYPES), ALGORITHMS, st.integers(-1, 4))
def test_a_request_is_taken_where_all_its_cells_are(release: str, soc: str, dtype: str, algorithm: str, cores: int) -> None:
    name, _, rank = algorithm.partition("_r")
    cells = (
        dtype in dtypes_of(soc, release)
        and (f"{name}_rN" if rank else name) in algorithms_of(dtype, release)
        and int(rank or 1) <= 64
        and cores in npu_cores_of(soc, release)
    )
    assert taken(Request(release=release, soc=soc, dtype=dtype, algorithm=algorithm, npu_cores=cores)) == cells


@given(st.sampled_from(SOCS), st.text(max_size=12), st.text(max_size=12), st.integers(-(2**40), 2**40), st.floats())
def test_whatever_is_asked_is_taken_or_refused_with_causes(soc: str, dtype: str, algorithm: str, context: int, rate: float) -> None:
    taken(Request(soc=soc, dtype=dtype, algorithm=algorithm, max_context=context, hybrid_rate=rate))
