"""The window of events that is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controller.store.sql.compaction import COMPACT_EVENTS, LogWindow


@given(sizes=st.lists(st.integers(1, 100), max_size=700), events_max=st.integers(1, 300), bytes_max=st.integers(100, 5_000))
def test_the_window_stays_within_its_limits_and_drops_little_at_a_time(sizes: list[int], events_max: int, bytes_max: int) -> None:
    window = LogWindow((), events_max=events_max, bytes_max=bytes_max)
    kept: list[tuple[int, int]] = []
    for revision, size in enumerate(sizes, start=1):
        floor = window.excess()
        if floor is not None:
            gone = [entry for entry in kept if entry[0] <= floor]
            assert 1 <= len(gone) <= COMPACT_EVENTS
            kept = kept[len(gone) :]
            assert len(kept) >= events_max or sum(size for _, size in [gone[-1], *kept]) > bytes_max, "nothing goes without need"
            window.drop(floor)
        window.append(revision, size)
        kept.append((revision, size))
        assert len(window) == len(kept)
        assert len(kept) <= events_max + min(COMPACT_EVENTS, events_max)
        assert sum(size for _, size in kept) <= bytes_max + max(sizes)
