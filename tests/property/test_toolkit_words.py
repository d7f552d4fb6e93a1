"""What must hold of streamed text: nothing is lost or said twice, no broken character, nothing of a stop word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rkfleet.errors import Invalid
from tests.support.random_llama import Bytes
from toolkit.session.words import Words

texts = st.text(st.sampled_from("ab\n §€😀ü") | st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=30)


@given(text=texts)
def test_a_text_comes_as_it_was_and_in_whole_characters(text):
    words = Words(Bytes())
    pieces = [words.add(token) for token in text.encode()]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + words.finish() == text


@given(text=texts, stops=st.lists(st.text(st.sampled_from("ab\n §€😀ü"), min_size=1, max_size=3), max_size=3))
def test_a_text_ends_before_the_first_stop_word(text, stops):
    words = Words(Bytes(), stops)
    said = ""
    for token in text.encode():
        said += words.add(token)
        if words.stopped:
            break
    if not words.stopped:
        said += words.finish()

    ends = [text.find(stop) for stop in stops if stop in text]
    if ends:
        assert words.stopped in stops
        assert not any(stop in said for stop in stops)
        assert text.startswith(said + words.stopped)
    else:
        assert said == text


@given(data=st.binary(max_size=40))
def test_bytes_that_are_no_text_hold_nothing_up(data):
    words = Words(Bytes())
    for token in data:
        words.add(token)
    words.finish()


@pytest.mark.parametrize("stops", [["x"] * 17, [""], ["x" * 257]])
def test_stop_words_outside_their_range_are_refused(stops):
    with pytest.raises(Invalid, match="stop has"):
        Words(Bytes(), stops)
