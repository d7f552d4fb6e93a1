"""What must hold of every text: byte-level BPE gives it back, and tokenizers do not depend on luck."""

from __future__ import annotations

import contextlib
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from rkfleet.errors import Invalid
from toolkit.tokens.gguf import tokenizer_of
from toolkit.tokens.pretokenizers import PATTERNS
from toolkit.tokens.sentencepiece import SentencePieceTokenizer, vocabulary_from_model
from toolkit.tokens.sentencepiece_file import parse
from toolkit.tokens.settings import Settings
from toolkit.tokens.vocabulary import Vocabulary

PIECES = Path(__file__).parent.parent / "data" / "toolkit" / "pieces.model"
NOTHING = Settings(tokens={}, added=(), end_ids=(), add_beginning=None, add_end=False, tokenizer_class="")
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)


def alphabet() -> list[str]:
    """The printable character of each byte, as GPT-2 published it: those that print stand for themselves, the rest begin at U+0100."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + at) for at in range(len(rest))]


MERGES = (("t", "h"), ("th", "e"), ("Ġ", "the"), ("1", "2"), ("Ġ", "Ġ"), ("Ã", "©"))
WORDS = [*alphabet(), *(left + right for left, right in MERGES)]
BYTE_LEVEL = {
    pre: tokenizer_of(Vocabulary(model="gpt2", pre=pre, pieces=tuple(WORDS), kinds=(1,) * len(WORDS), merges=MERGES)) for pre in PATTERNS
}
SCORED = tokenizer_of(vocabulary_from_model(PIECES, NOTHING))
LIBRARY = SentencePieceTokenizer(PIECES, NOTHING)


@given(text=TEXTS, pre=st.sampled_from(sorted(PATTERNS)))
@settings(deadline=None)
def test_byte_level_text_comes_back(text: str, pre: str) -> None:
    """decode(encode(text)) == text, however it is split into words."""
    assert BYTE_LEVEL[pre].decode(BYTE_LEVEL[pre].encode(text)) == text


@given(text=TEXTS.filter(lambda text: "\u2581" not in text and "\x00" not in text))
@settings(deadline=None)
def test_pieces_by_score_come_back_and_are_the_librarys(text: str) -> None:
    """SentencePiece's own library finds the same pieces."""
    ids = SCORED.encode(text)
    assert SCORED.decode(ids) == text
    assert LIBRARY.encode(text) == ids


@given(data=st.binary(max_size=80), cut=st.integers(0, 6000), flipped=st.integers(0, 6000))
@settings(deadline=None)
def test_any_file_is_read_or_refused(data: bytes, cut: int, flipped: int) -> None:
    """No file of pieces ends in another error than ours."""
    whole = PIECES.read_bytes()
    changed = bytearray(whole[:cut] + data)
    if flipped < len(changed):
        changed[flipped] ^= 0x55
    with contextlib.suppress(Invalid):
        parse(bytes(changed))
