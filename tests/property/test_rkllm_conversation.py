"""What the KV cache may be used for, over all sequences of requests: never another's words, always the whole prompt."""

from typing import Any

import msgspec
from hypothesis import event, given
from hypothesis import strategies as st

from agent.workers.rkllm.conversation import Held, Identity, Wanted, held_after, name_of, reusable_bytes

IDENTITIES = st.builds(
    Identity,
    tenant=st.sampled_from(["ada", "bob"]),
    kind=st.sampled_from(["text", "tokens", "turns", "embedding"]),
    adapter=st.sampled_from(["", "law"]),
    template=st.sampled_from(["", "t"]),
    thinking=st.booleans(),
    tools=st.sampled_from(["", "f"]),
    images=st.sampled_from([(), ("i",), ("i", "j")]),
)
TEXTS = st.text("abö", max_size=6).map(str.encode)
BASE = Identity(tenant="ada")
NEAR = st.sampled_from(
    [BASE, BASE, BASE, msgspec.structs.replace(BASE, tenant="bob")]  # most requests go on with what was there
    + [
        msgspec.structs.replace(BASE, **{name: value})
        for name, value in {
            "tenant": "bob", "kind": "turns", "adapter": "law", "template": "t", "thinking": False, "tools": "f", "images": ("i",),
        }.items()
    ]
)  # fmt: skip
ENDS = st.sampled_from(["stop", "stop", "length", "cut", "abort"])
CUTS = st.none() | st.frozensets(st.integers(0, 12))
REQUESTS = st.tuples(
    NEAR, st.booleans(), TEXTS, TEXTS, ENDS, st.sampled_from([0, 0, -1, 1, -2]), st.none() | st.frozensets(st.integers(0, 12))
)


@given(st.lists(REQUESTS, max_size=12))
def test_what_a_run_goes_on_with_is_the_beginning_of_its_own_prompt(requests: list[Any]) -> None:
    """A cache modelled as whose it is and what is in it: with what is fed in addition, it always holds the prompt that was asked."""
    held: Held | None = None
    owner, cache, reuses = BASE, b"", 0
    for identity, continues, more, answer, end, miscount, cuts in requests:
        wanted = Wanted(identity=identity, text=(cache if continues else b"") + more + b"?", cuts=cuts)
        reused = reusable_bytes(held, wanted)
        if reused:
            assert (owner, cache) == (wanted.identity, wanted.text[:reused])
            assert cuts is None or reused in cuts
            reuses += 1
        owner, cache = identity, cache[:reused] + wanted.text[reused:]
        assert cache == wanted.text
        assert reused < len(wanted.text)
        if identity.kind == "text" and _decodes(wanted.text):
            wanted.text[reused:].decode()  # what is fed begins with a whole character
        cache += answer
        tokens = len(cache)
        held = held_after(wanted, answer, end=end, tokens=tokens, tokens_counted=tokens + miscount, context_tokens=40)
        if end != "stop" or miscount not in {0, -1} or tokens >= 40:
            assert held is None  # the cache is cleared
    event(f"reuses: {reuses}")


def test_a_conversation_that_goes_on_is_not_computed_again() -> None:
    """The rules leave the case over that they are for."""
    wanted = Wanted(identity=BASE, text=b"one")
    held = held_after(wanted, b" two", end="stop", tokens=7, tokens_counted=7, context_tokens=40)
    assert reusable_bytes(held, Wanted(identity=BASE, text=b"one two three")) == len(b"one two")
    assert reusable_bytes(held, Wanted(identity=msgspec.structs.replace(BASE, tenant="bob"), text=b"one two three")) == 0
    assert reusable_bytes(held, Wanted(identity=BASE, text=b"one two")) == 0


def _decodes(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(IDENTITIES, IDENTITIES, st.text(max_size=4), st.text(max_size=4))
def test_names_of_files_are_equal_only_for_the_same_owner_and_key(one: Identity, other: Identity, key: str, other_key: str) -> None:
    assert (name_of(one, "m", key) == name_of(other, "m", other_key)) == ((one, key) == (other, other_key))
