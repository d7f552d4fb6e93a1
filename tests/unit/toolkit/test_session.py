"""Runs of generation: what is run again and what is not, how windows shift, how answers end, and the four inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rkfleet.clock import SystemClock
from rkfleet.errors import FailedPrecondition, Invalid
from tests.support.random_llama import Bytes, random_network
from toolkit.loading import open_model
from toolkit.session.inputs import Embeddings, Input, Multimodal, Prompt, Tokens
from toolkit.session.sampling import Sampling
from toolkit.session.session import Finish, Piece, Request, Session
from toolkit.session.shift import dropped, shift
from toolkit.simulate.cache import KvCache
from toolkit.simulate.layers import rotary_table, rotate
from toolkit.simulate.network import Network
from toolkit.simulate.rope import frequencies

FAMILIES = Path(__file__).parents[2] / "data" / "toolkit" / "families"
GREEDY = Sampling(temperature=0.0, repeat_penalty=1.0)
NETWORK = random_network()


def session(context: int = 64, keep: int = 0, tokenizer: Bytes | None = None, network=NETWORK) -> Session:
    return Session(network, Bytes() if tokenizer is None else tokenizer, SystemClock(), context=context, keep=keep)


def run(one: Session, asked: Input, new: int = 8, **options) -> tuple[list[int], str, Finish]:
    found = list(one.generate(Request(input=asked, sampling=options.pop("sampling", GREEDY), max_new_tokens=new, **options)))
    finish = found.pop()
    assert isinstance(finish, Finish)
    pieces = [piece for piece in found if isinstance(piece, Piece)]
    return [piece.token for piece in pieces], "".join(piece.text for piece in pieces) + finish.text, finish


def plainly(tokens: list[int], new: int) -> list[int]:
    """Greedy decoding without a cache that lives longer than one token."""
    made: list[int] = []
    for _ in range(new):
        cache = KvCache(NETWORK.hyperparameters, 128)
        hidden = NETWORK.hidden(NETWORK.embed([*tokens, *made]), cache)
        made.append(int(np.argmax(NETWORK.logits(hidden[-1:])[0])))
    return made


def test_tokens_are_those_of_running_everything_again_each_time():
    tokens, _, finish = run(session(), Tokens([5, 7, 11]), ignore_ends=True)
    assert tokens == plainly([5, 7, 11], 8)
    assert (finish.prompt_tokens, finish.reused_tokens, finish.new_tokens, finish.reason) == (3, 0, 8, "length")


def test_an_input_longer_than_a_chunk_is_run_in_chunks(monkeypatch):
    monkeypatch.setattr("toolkit.session.session.PREFILL_TOKENS", 4)
    given = list(range(30, 53))
    assert run(session(), Tokens(given), ignore_ends=True)[0] == plainly(given, 8)


def test_the_longest_common_prefix_is_taken_up_and_changes_nothing():
    one = session()
    run(one, Tokens([5, 7, 11, 13]), 4, ignore_ends=True)
    tokens, _, finish = run(one, Tokens([5, 7, 11, 17]), ignore_ends=True)
    assert finish.reused_tokens == 3
    assert tokens == plainly([5, 7, 11, 17], 8)
    assert run(one, Tokens([5, 7, 11, 17]), ignore_ends=True)[2].reused_tokens == 3  # The last token is run for its logits.


def test_history_is_continued_with_the_answers_last_token_in_it():
    one = session()
    first, _, _ = run(one, Tokens([5, 7, 11]), 5, ignore_ends=True)
    second, _, finish = run(one, Tokens([3, 2]), 5, ignore_ends=True, keep_history=True)
    assert second == plainly([5, 7, 11, *first, 3, 2], 5)
    assert finish.prompt_tokens == 3  # The token that was still to be run, and two new ones.


def test_reading_on_is_what_runs_the_network():
    one = session()
    answer = one.generate(Request(input=Tokens([5, 7, 11]), sampling=GREEDY, ignore_ends=True))
    first = next(answer)
    answer.close()
    assert one.held == 3
    second, _, _ = run(one, Tokens([2]), 3, ignore_ends=True, keep_history=True)
    assert second == plainly([5, 7, 11, first.token, 2], 3)


@pytest.mark.parametrize(
    "changed",
    [{}, {"rope_interleaved": False}, {"rope_dimensions": 4}, {"nope_layers": (1,)}, {"local_layers": (0, 2), "rope_base_local": 100.0}],
)
def test_a_shift_leaves_keys_as_if_they_had_been_turned_for_their_new_positions(changed):
    network = random_network(**changed)
    sizes = network.hyperparameters
    random = np.random.default_rng(1)
    bare = random.normal(size=(sizes.layers, sizes.kv_heads, 20, sizes.head_dim)).astype(np.float32)
    values = random.normal(size=(sizes.layers, sizes.kv_heads, 20, sizes.value_dim)).astype(np.float32)

    def filled(chosen: list[int]) -> KvCache:
        """A cache of these of the twenty keys, each turned by the position that it has among the chosen."""
        cache = KvCache(sizes, 32)
        positions = np.arange(len(chosen), dtype=np.float32)
        for layer in range(sizes.layers):
            local = layer in sizes.local_layers
            keys = bare[layer][:, chosen].transpose(1, 0, 2)
            if layer not in sizes.nope_layers:
                keys = rotate(keys, rotary_table(positions, frequencies(sizes, local=local)), interleaved=sizes.rope_interleaved)
            cache.append(layer, keys, values[layer][:, chosen].transpose(1, 0, 2))
        cache.advance(len(chosen))
        return cache

    shifted, expected = filled(list(range(20))), filled([0, 1, 2, *range(11, 20)])
    shift(network, shifted, 3, 8)
    assert shifted.length == expected.length == 12
    np.testing.assert_allclose(shifted.keys[:, :, :12], expected.keys[:, :, :12], atol=2e-6)
    np.testing.assert_array_equal(shifted.values[:, :, :12], expected.values[:, :, :12])
    logits = [network.logits(network.hidden(network.embed([9, 4]), cache)) for cache in (shifted, expected)]
    np.testing.assert_allclose(*logits, atol=5e-5)


@pytest.mark.parametrize("path", sorted(FAMILIES.glob("*.gguf")), ids=lambda path: path.stem)
def test_a_shift_turns_keys_as_the_family_itself_does(path):
    """Keys of the first block depend on their token and position alone, so the family says what they are after a shift."""
    source = open_model(path)
    network = Network(source, source.family)
    sizes = network.hyperparameters
    tokens = [int(one) for one in np.random.default_rng(6).integers(0, sizes.vocabulary, 20)]
    shifted, expected = KvCache(sizes, 48), KvCache(sizes, 48)
    network.hidden(network.embed(tokens), shifted)
    shift(network, shifted, 3, 8)
    network.hidden(network.embed([*tokens[:3], *tokens[11:]]), expected)
    assert shifted.length == expected.length == 12
    size = float(np.abs(expected.keys[0, :, :12]).max())
    np.testing.assert_allclose(shifted.keys[0, :, :12], expected.keys[0, :, :12], atol=1e-5 * size)
    np.testing.assert_allclose(shifted.values[0, :, :12], expected.values[0, :, :12], atol=1e-5)


def test_a_full_window_shifts_and_goes_on():
    one = session(context=16, keep=4)
    tokens, _, finish = run(one, Tokens(list(range(40, 50))), 40, ignore_ends=True)
    assert len(tokens) == 40
    assert one.held <= 16
    assert finish.shifted_tokens >= 40 + 10 - 1 - 16
    assert dropped(16, 4) == 6


def test_what_was_computed_before_a_shift_is_no_prefix_behind_what_is_kept():
    one = session(context=16, keep=4)
    given = list(range(40, 50))
    run(one, Tokens(given), 12, ignore_ends=True)
    again, _, finish = run(one, Tokens(given), 6, ignore_ends=True)
    assert finish.reused_tokens == 4
    assert again == plainly(given, 6)


def test_minus_one_keeps_the_first_input():
    one = session(context=16, keep=-1)
    given = list(range(40, 47))
    run(one, Tokens(given), 30, ignore_ends=True)
    assert run(one, Tokens([*given, 1]), 1, ignore_ends=True)[2].reused_tokens == len(given)


def test_history_beyond_the_window_drops_the_oldest():
    one = session(context=16, keep=2)
    run(one, Tokens(list(range(40, 50))), 4, ignore_ends=True)
    _, _, finish = run(one, Tokens(list(range(60, 70))), 2, ignore_ends=True, keep_history=True)
    assert finish.shifted_tokens > 0
    assert one.held <= 16
    with pytest.raises(Invalid, match="beside 2 that are kept; context is 16"):
        run(one, Tokens(list(range(60, 75))), 1, keep_history=True)


def test_an_input_that_does_not_fit_is_refused_with_both_numbers():
    with pytest.raises(Invalid, match="17 tokens; context is 16"):
        run(session(context=16), Tokens([1] * 16))


def test_the_models_end_ends_an_answer_unless_it_is_ignored():
    class Ending(Bytes):
        ends = frozenset({plainly([5, 7, 11], 3)[-1]})

    expected = plainly([5, 7, 11], 3)
    tokens, _, finish = run(session(tokenizer=Ending()), Tokens([5, 7, 11]))
    at = next(n for n, token in enumerate(expected) if token in Ending.ends)
    assert (tokens, finish.reason) == (expected[:at], "end")
    assert len(run(session(tokenizer=Ending()), Tokens([5, 7, 11]), ignore_ends=True)[0]) == 8


def test_embeddings_of_tokens_give_what_the_tokens_give():
    rows = NETWORK.embed([5, 7, 11])
    one = session()
    assert run(one, Embeddings(rows), ignore_ends=True)[0] == plainly([5, 7, 11], 8)
    assert run(one, Embeddings(rows), ignore_ends=True)[2].reused_tokens == 2


def test_images_stand_where_the_text_has_them():
    image = np.random.default_rng(2).normal(size=(3, 32)).astype(np.float32)
    one = session(context=64)
    asked = Multimodal(text="a<image>b", images=[image], start="(", end=")", content="#")
    tokens, _, finish = run(one, asked, 4, ignore_ends=True)
    assert finish.prompt_tokens == len("a()b") + 3

    rows = np.concatenate([NETWORK.embed(list(b"a(")), image, NETWORK.embed(list(b")b"))])
    assert tokens == run(session(), Embeddings(rows), 4, ignore_ends=True)[0]
    other = Multimodal(text="a<image>b", images=[image + 1], start="(", end=")", content="#")
    assert run(one, other, 1, ignore_ends=True)[2].reused_tokens == 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Tokens([]), "has no token"),
        (Tokens([1, 257]), "token 1 is 257; the network knows those from 0 to 256"),
        (Tokens([-1]), "token 0 is -1"),
        (Embeddings(np.zeros((2, 31), np.float32)), r"shape \(2, 31\); the network takes \(tokens, 32\)"),
        (Embeddings(np.full((1, 32), np.nan, np.float32)), "values that are no numbers"),
        (Multimodal(text="<image> and <image>", images=[np.zeros((1, 32), np.float32)]), "text has 2 <image>, images has 1"),
        (Multimodal(text="<image>", images=[np.zeros((1, 32), np.float32)], content="##"), "content is '##', which is not one token"),
    ],
)
def test_an_input_that_cannot_be_run_is_named(asked, message):
    with pytest.raises(Invalid, match=message):
        run(session(), asked)


def test_text_needs_a_tokenizer():
    bare = Session(NETWORK, None, SystemClock(), context=16)
    with pytest.raises(FailedPrecondition, match="there is no tokenizer"):
        list(bare.generate(Request(input=Prompt("x"))))
    tokens = [
        piece.token for piece in bare.generate(Request(input=Tokens([5, 7]), sampling=GREEDY, max_new_tokens=2)) if isinstance(piece, Piece)
    ]
    assert tokens == plainly([5, 7], 2)


def test_hidden_states_and_logits_are_those_of_the_network():
    cache = KvCache(NETWORK.hyperparameters, 16)
    hidden = NETWORK.hidden(NETWORK.embed([5, 7, 11]), cache)
    one = session()
    np.testing.assert_allclose(one.last_hidden(Tokens([5, 7, 11])), hidden, atol=1e-6)
    np.testing.assert_allclose(one.logits(Tokens([5, 7, 11])), NETWORK.logits(hidden), atol=1e-5)
    assert one.held == 3


@pytest.mark.parametrize(("field", "value"), [("context", 7), ("context", (1 << 20) + 1), ("keep", -2), ("keep", 64)])
def test_a_session_names_what_it_cannot_be_made_with(field, value):
    with pytest.raises(Invalid, match=f"{field} is {value}"):
        session(**{field: value})


@pytest.mark.parametrize("value", [0, -2, (1 << 17) + 1])
def test_a_number_of_new_tokens_outside_its_range_is_named(value):
    with pytest.raises(Invalid, match=f"max_new_tokens is {value}"):
        run(session(), Tokens([1]), value)
