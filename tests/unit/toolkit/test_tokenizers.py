"""Tokenizers give the tokens of llama.cpp and of Hugging Face's own library, from every kind of file."""

from __future__ import annotations

import asyncio
import json
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rkfleet.errors import FleetError, Invalid, NotFound
from rkfleet.sample import ensure_sample
from toolkit.checkpoint.gguf import GgufCheckpoint
from toolkit.tokens.bpe import ByteLevelTokenizer
from toolkit.tokens.gguf import tokenizer_of
from toolkit.tokens.hugging_face import tokenizer_from_directory, vocabulary_from_directory
from toolkit.tokens.open import open_tokenizer
from toolkit.tokens.pretokenizers import PATTERNS, name_of
from toolkit.tokens.sentencepiece import SentencePieceTokenizer, vocabulary_from_model
from toolkit.tokens.settings import Added, Settings
from toolkit.tokens.vocabulary import CONTROL, UNUSED, USER_DEFINED, Vocabulary, from_metadata

DATA = Path(__file__).parents[2] / "data" / "toolkit"
SETTINGS = Settings(
    tokens={},
    added=(Added(420, "<|im_start|>", special=True), Added(421, "<|im_end|>", special=True)),
    end_ids=(),
    add_beginning=None,
    add_end=False,
    tokenizer_class="",
)


@cache
def oracle() -> dict[str, Any]:
    return json.loads((DATA / "llamacpp_tokens.json").read_text())


def answers(name: str) -> list[dict[str, Any]]:
    found = oracle()[name]
    return oracle()[found] if isinstance(found, str) else found


@cache
def sample() -> Vocabulary:
    return from_metadata(GgufCheckpoint(asyncio.run(ensure_sample())).metadata)


@pytest.mark.model
@pytest.mark.parametrize("name", PATTERNS)
def test_every_splitting_into_words_is_llamacpps(name: str) -> None:
    tokenizer = tokenizer_of(msgspec.structs.replace(sample(), pre=name))
    for one in answers(name):
        assert tokenizer.encode(one["text"], special=one["special"]) == one["tokens"], one["text"]


@pytest.mark.parametrize("kind", ["scores", "library"])
def test_pieces_by_score_are_llamacpps(kind: str) -> None:
    path = DATA / "pieces.model"
    scored = tokenizer_of(vocabulary_from_model(path, SETTINGS))
    tokenizer = scored if kind == "scores" else SentencePieceTokenizer(path, SETTINGS)
    for one in answers("(pieces)"):
        assert tokenizer.encode(one["text"], special=one["special"]) == one["tokens"], one["text"]


def test_sentencepiece_text_comes_back_without_special_tokens() -> None:
    tokenizer = tokenizer_of(vocabulary_from_model(DATA / "pieces.model", SETTINGS))
    assert tokenizer.decode(tokenizer.encode("The fleet answers: 你好 👍 ½<|im_end|>")) == "The fleet answers: 你好 👍 ½"
    assert tokenizer.beginning == 1
    assert tokenizer.ends == {2, 421}
    assert tokenizer.size == 422


@pytest.mark.model
def test_the_samples_ends_are_all_that_may_end_an_answer() -> None:
    tokenizer = open_tokenizer(asyncio.run(ensure_sample()))
    assert tokenizer.size == 49152
    assert tokenizer.beginning == 1
    assert tokenizer.ends == {0, 2}
    assert tokenizer.decode(tokenizer.encode("<|im_start|>user\nhi<|im_end|>")) == "user\nhi"


def hugging_face(directory: Path, *, special: bool = False, **config: Any) -> Path:
    """Write a tokenizer as `transformers` does, trained on a few words, by the `tokenizers` library itself."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(PATTERNS["llama-bpe"][0]), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["the board runs the model on the board 123 times"] * 9, trainer)
    tokenizer.add_special_tokens(["<s>", "</s>", "<|eot_id|>"])
    tokenizer.add_tokens(["<mark>"])
    if special:
        ids = [("<s>", tokenizer.token_to_id("<s>"))]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=ids)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}, **config}))
    return directory


def test_a_tokenizer_json_and_the_vocabulary_made_of_it_agree(tmp_path: Path) -> None:
    directory = hugging_face(tmp_path, special=True, bos_token="<s>", pad_token="</s>")
    ours, vocabulary = tokenizer_from_directory(directory), vocabulary_from_directory(directory)
    again = from_metadata(vocabulary.to_metadata(400))
    theirs = tokenizer_of(again)
    assert (vocabulary.pre, vocabulary.model) == ("llama-bpe", "gpt2")
    for text in ("the board", "", "the <mark> 1234</s>it's\n\n  naïve 👍", "<|eot_id|>"):
        for special in (True, False):
            assert ours.encode(text, special=special) == theirs.encode(text, special=special)
    assert ours.encode("x")[0] == ours.beginning == theirs.beginning
    assert ours.encode("<s>x").count(ours.beginning or 0) == 1
    assert ours.ends == theirs.ends
    assert ours.decode(ours.encode("the <mark> 1</s>")) == theirs.decode(ours.encode("the <mark> 1</s>")) == "the <mark> 1"
    kinds = dict(zip(again.pieces, again.kinds, strict=True))
    assert (kinds["<s>"], kinds["<mark>"], again.kinds[399]) == (CONTROL, USER_DEFINED, UNUSED)


def test_settings_overrule_what_the_file_puts_before_a_text(tmp_path: Path) -> None:
    plain = tokenizer_from_directory(hugging_face(tmp_path, special=True, bos_token="<s>", add_bos_token=False))
    assert plain.encode("x")[0] != plain.beginning
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert {7, 9} < tokenizer_from_directory(tmp_path).ends


def test_a_tokenizer_json_with_byte_fallback_joins_in_the_order_of_its_merges(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581theboardrunsmdl"]
    vocabulary = {piece: at for at, piece in enumerate(dict.fromkeys(pieces))}
    merges = []
    for left, right in (("t", "h"), ("th", "e"), ("\u2581", "the"), ("b", "o"), ("a", "r"), ("bo", "ar"), ("boar", "d"), ("e", "b")):
        merges.append((left, right))
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    ours, made = tokenizer_from_directory(tmp_path), vocabulary_from_directory(tmp_path)
    assert made.model == "llama"
    assert made.space_prefix
    for text in ("the board", "theboard runs é the", "eboard  models 👍"):
        assert tokenizer_of(made).encode(text, special=False) == ours.encode(text, special=False), text


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"tokenizer.ggml.model": None}, NotFound, "has no tokenizer"),
        ({"tokenizer.ggml.model": "bert"}, Invalid, "'bert'; known are gpt2, llama"),
        ({"tokenizer.ggml.pre": "poro"}, Invalid, "tokenizer.ggml.pre is 'poro'"),
        ({"tokenizer.ggml.tokens": "abc"}, Invalid, "tokens is missing or no array"),
        ({"tokenizer.ggml.tokens": ["a", 1]}, Invalid, "tokens has values that are no str"),
        ({"tokenizer.ggml.token_type": [1]}, Invalid, "token_type has 1 values, tokenizer.ggml.tokens 3"),
        ({"tokenizer.ggml.merges": ["ab"]}, Invalid, "'ab', which is no pair"),
        ({"tokenizer.ggml.merges": ["a z"]}, Invalid, "merges does not fit"),
        ({"tokenizer.ggml.bos_token_id": "1"}, Invalid, "bos_token_id is '1'"),
        ({"tokenizer.ggml.add_bos_token": 1}, Invalid, "add_bos_token is 1, not true or false"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused_with_its_key(change: dict[str, Any], error: type[FleetError], words: str) -> None:
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b", "ab"],
        "tokenizer.ggml.token_type": [1, 1, 1],
        "tokenizer.ggml.merges": ["a b"],
    }
    assert ByteLevelTokenizer(from_metadata(keys)).encode("ab") == [2]
    with pytest.raises(error, match=words):
        tokenizer_of(from_metadata({key: value for key, value in {**keys, **change}.items() if value is not None}))


def test_a_splitting_without_a_name_is_refused_for_gguf() -> None:
    with pytest.raises(Invalid, match="which has no name in GGUF"):
        name_of({"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated"}, ignore_merges=False)
    digits = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True}],
    }
    assert name_of(digits, ignore_merges=False) == "smollm"


def test_more_pieces_than_rows_are_two_models() -> None:
    with pytest.raises(Invalid, match="2 pieces, the embeddings 1 rows"):
        Vocabulary(model="llama", pieces=("a", "b"), kinds=(1, 1), scores=(0.0, 0.0)).to_metadata(1)


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x0a\x80", b"\x0a\x05ab", b'{"a": 1}', b"\x0a\x02\x18\x63"])
def test_what_is_no_sentencepiece_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(Invalid, match="no model of SentencePiece"):
        tokenizer_from_directory(tmp_path)


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"neither tokenizer.json nor tokenizer.model"):
        tokenizer_from_directory(tmp_path)
    with pytest.raises(NotFound, match="does not exist"):
        open_tokenizer(tmp_path / "none")
    (tmp_path / "tokenizer.json").write_text("{" * 3000)
    with pytest.raises(Invalid, match="cannot be read"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": "yes"}')
    with pytest.raises(Invalid, match="add_bos_token is 'yes'"):
        open_tokenizer(tmp_path)
