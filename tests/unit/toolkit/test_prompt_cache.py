"""Prompts in files: the same answer with and without, and nothing taken of a file that is not what it says."""

from __future__ import annotations

import json
import os

import msgspec
import numpy as np
import pytest

from rkfleet.clock import SystemClock
from rkfleet.errors import FailedPrecondition, Invalid, NotFound
from tests.support.random_llama import Bytes, RandomSource, random_network
from toolkit.adapters.base import Adapter, LowRank
from toolkit.session.inputs import Embeddings, Tokens
from toolkit.session.prompt_cache import MAGIC, identity_of
from toolkit.session.sampling import Sampling
from toolkit.session.session import Finish, Request, Session
from toolkit.simulate.families.llama import Llama
from toolkit.simulate.linear import Dense
from toolkit.simulate.network import Network

NETWORK = random_network()
GIVEN = [5, 7, 11, 13, 17]


def session(identity: str = "sha256:1", context: int = 64) -> Session:
    return Session(NETWORK, Bytes(), SystemClock(), context=context, identity=identity)


def run(one: Session, asked) -> tuple[list[int], Finish]:
    request = Request(input=asked, sampling=Sampling(temperature=0.0), max_new_tokens=6, ignore_ends=True)
    *pieces, finish = one.generate(request)
    return [piece.token for piece in pieces], finish


@pytest.fixture
def saved(tmp_path):
    one = session()
    run(one, Tokens(GIVEN))
    assert one.save_prompt(tmp_path / "prompt") == len(GIVEN)
    return tmp_path / "prompt"


def test_an_answer_is_the_same_with_and_without_the_file(saved):
    expected, _ = run(session(), Tokens([*GIVEN, 3]))
    one = session()
    assert one.load_prompt(saved) == len(GIVEN)
    tokens, finish = run(one, Tokens([*GIVEN, 3]))
    assert tokens == expected
    assert finish.reused_tokens == len(GIVEN)


def test_the_longest_common_prefix_of_a_file_is_taken_up(saved):
    one = session()
    one.load_prompt(saved)
    tokens, finish = run(one, Tokens([5, 7, 12]))
    assert finish.reused_tokens == 2
    assert tokens == run(session(), Tokens([5, 7, 12]))[0]


def test_a_smaller_window_takes_the_beginning(saved):
    small = session(context=8)
    run(small, Tokens([1, 2]))
    assert small.load_prompt(saved) == len(GIVEN)


def test_embeddings_come_back_too(tmp_path):
    rows = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    one = session()
    run(one, Embeddings(rows))
    one.save_prompt(tmp_path / "prompt")
    other = session()
    other.load_prompt(tmp_path / "prompt")
    assert run(other, Embeddings(rows))[1].reused_tokens == 3


def test_files_of_other_weights_are_refused(saved):
    with pytest.raises(Invalid, match="made by another model, dtype or adapter"):
        session("sha256:2").load_prompt(saved)
    sources = [identity_of(RandomSource(seed=seed)) for seed in (0, 0, 1)]
    assert sources[0] == sources[1] != sources[2]
    assert identity_of(RandomSource(), ["w8a8"]) != sources[0]


def test_an_adapter_makes_other_weights_and_the_answer_of_joined_ones(tmp_path):
    random = np.random.default_rng(5)
    low_rank = LowRank(random.normal(size=(2, 32)).astype(np.float32), random.normal(size=(32, 2)).astype(np.float32), 0.5)
    adapter, source = Adapter(tmp_path, {"blk.0.attn_q": low_rank}), RandomSource()
    networks = [Network(source, Llama(), make(Dense, 0.7)) for make in (adapter.factory, adapter.joined)]
    apart, joined = (run(Session(network, Bytes(), SystemClock(), context=64), Tokens(GIVEN))[0] for network in networks)
    assert apart == joined != run(session(), Tokens(GIVEN))[0]
    identities = {identity_of(source, ["w8a8"], given) for given in ((), [(adapter, 0.7)], [(adapter, 0.8)])}
    assert len(identities) == 3


def test_every_cut_and_every_turned_bit_is_refused_and_changes_nothing(saved):
    whole = saved.read_bytes()
    random = np.random.default_rng(4)
    one = session()
    expected, _ = run(one, Tokens([1, 2, 3]))
    for at in [*range(0, 40, 3), *random.integers(0, len(whole), 60).tolist()]:
        for changed in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :]):
            saved.write_bytes(changed)
            with pytest.raises(Invalid):
                one.load_prompt(saved)
    saved.write_bytes(whole + b"\0")
    with pytest.raises(Invalid, match="cut off"):
        one.load_prompt(saved)
    tokens, finish = run(one, Tokens([1, 2, 3]))
    assert (tokens, finish.reused_tokens) == (expected, 2)


@pytest.mark.parametrize("length", [1 << 62, 33 << 20])
def test_a_head_that_lies_about_its_length_is_refused_before_it_is_read(tmp_path, length):
    path = tmp_path / "prompt"
    path.write_bytes(MAGIC + length.to_bytes(8, "little") + b"{}")
    with pytest.raises(Invalid, match=f"says its head has {length} bytes"):
        session().load_prompt(path)


@pytest.mark.parametrize("tokens", [[1] * 1000, [300], ["x"], [1 << 70]])
def test_a_head_that_lies_about_its_tokens_is_refused(tmp_path, tokens):
    head = json.dumps({"identity": "sha256:1", "sha256": "", "tokens": tokens})
    path = tmp_path / "prompt"
    path.write_bytes(MAGIC + len(head).to_bytes(8, "little") + head.encode())
    with pytest.raises(Invalid):
        session().load_prompt(path)


def test_numbers_that_are_none_are_refused_even_with_a_right_digest(tmp_path):
    import hashlib

    data = np.full(3 * 2 * 1 * 8 * 2, np.nan, "<f4").tobytes()
    head = msgspec.json.encode({"identity": "sha256:1", "tokens": [1], "sha256": hashlib.sha256(data).hexdigest()})
    path = tmp_path / "prompt"
    path.write_bytes(MAGIC + len(head).to_bytes(8, "little") + head + data)
    with pytest.raises(Invalid, match="damaged"):
        session().load_prompt(path)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    with pytest.raises(NotFound, match="cannot be read"):
        session().load_prompt(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(Invalid, match="is no file"):
            session().load_prompt(path)
    (tmp_path / "vendor").write_bytes(b"RKLLM prompt cache")
    with pytest.raises(Invalid, match="no prompt cache of this toolkit"):
        session().load_prompt(tmp_path / "vendor")
    (tmp_path / "later").write_bytes(MAGIC[:-1] + b"\x02" + bytes(8))
    with pytest.raises(Invalid, match="has version 2, this toolkit reads 1"):
        session().load_prompt(tmp_path / "later")


def test_a_session_without_identity_or_input_keeps_nothing(tmp_path):
    with pytest.raises(FailedPrecondition, match="identity"):
        session("").save_prompt(tmp_path / "prompt")
    with pytest.raises(FailedPrecondition, match="has run no input yet"):
        session().save_prompt(tmp_path / "prompt")
    assert not list(tmp_path.iterdir())
