"""SentencePiece's own files, `tokenizer.model`.

In: the file and the settings beside it. Out: a `Vocabulary` for a GGUF file, and a `Tokenizer` that leaves the pieces to the library, which
knows normalisation and unigram models too. Called by `hugging_face.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import sentencepiece

from rkfleet.errors import Invalid, NotFound
from toolkit.tokens.sentencepiece_file import BPE, UNIGRAM, parse
from toolkit.tokens.settings import Settings
from toolkit.tokens.spm import ScoredTokenizer
from toolkit.tokens.vocabulary import BYTE, CONTROL, END_NAMES, PIECES_MAX, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

__all__ = ["SentencePieceTokenizer", "vocabulary_from_model"]

MODEL_BYTES_MAX: Final = 64 << 20  # Gemma's, with 2^18 pieces, has 4 MB.


class SentencePieceTokenizer(ScoredTokenizer):
    """Pieces by the library; special tokens, beginning and ends as in `ScoredTokenizer`."""

    def __init__(self, path: Path, settings: Settings) -> None:
        data = _read(path)
        super().__init__(_vocabulary(path, data, settings))
        self._processor: Final = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(data)
        except RuntimeError as error:
            raise Invalid(f"tokenizer {str(path)!r} cannot be read: {error}") from error

    def _join(self, text: str, ids: list[int]) -> None:
        prefix = self._vocabulary.space_prefix and text.startswith("\u2581")
        ids.extend(self._processor.EncodeAsIds(text[1:] if prefix else text))


def vocabulary_from_model(path: Path, settings: Settings) -> Vocabulary:
    """Return the vocabulary for a GGUF file.

    Raises:
        NotFound: The file cannot be read.
        Invalid: It is no model of SentencePiece, or of a kind that GGUF has no form for.
    """
    return _vocabulary(path, _read(path), settings, written=True)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MODEL_BYTES_MAX + 1)
    except OSError as error:
        raise NotFound(f"tokenizer {str(path)!r} cannot be read: {error.strerror}") from error
    if len(data) > MODEL_BYTES_MAX:
        raise Invalid(f"tokenizer {str(path)!r} has more than {MODEL_BYTES_MAX} bytes")
    return data


def _vocabulary(path: Path, data: bytes, settings: Settings, *, written: bool = False) -> Vocabulary:
    try:
        file = parse(data)
    except Invalid as error:
        raise Invalid(f"tokenizer {str(path)!r}: {error.message}") from error
    if written and file.model_type != BPE:
        name = "unigram" if file.model_type == UNIGRAM else f"of kind {file.model_type}"
        raise Invalid(f"tokenizer {str(path)!r} is {name}; GGUF files of language models hold BPE models only")
    pieces = [piece.text for piece in file.pieces]
    scores = [piece.score for piece in file.pieces]
    kinds = [piece.kind for piece in file.pieces]
    for added in settings.added:
        if added.id >= PIECES_MAX:
            raise Invalid(f"token {added.content!r} has id {added.id}; at most {PIECES_MAX} ids are taken")
        while len(pieces) <= added.id:
            pieces.append(f"[PAD{len(pieces)}]")
            scores.append(-1000.0)
            kinds.append(UNUSED)
        pieces[added.id] = added.content
        if kinds[added.id] not in (UNKNOWN, BYTE):
            kinds[added.id] = CONTROL if added.special else USER_DEFINED
    ids = {piece: at for at, piece in reversed(list(enumerate(pieces)))}

    def token(name: str, default: int) -> int | None:
        text = settings.tokens.get(name)
        if text is not None and text in ids:
            return ids[text]
        return default if 0 <= default < len(pieces) else None

    declared = token("eos_token", file.end)
    ends = [] if declared is None else [declared]
    ends += [at for at in settings.end_ids if at < len(pieces)]
    ends += [at for at, piece in enumerate(pieces) if kinds[at] == CONTROL and piece in END_NAMES]
    beginning = token("bos_token", file.beginning)
    return Vocabulary(
        model="llama",
        pieces=tuple(pieces),
        kinds=tuple(kinds),
        scores=tuple(scores),
        beginning=beginning,
        ends=tuple(dict.fromkeys(ends)),
        unknown=token("unk_token", file.unknown),
        padding=token("pad_token", file.padding),
        add_beginning=beginning is not None and settings.add_beginning is not False,
        add_end=settings.add_end,
        space_prefix=file.dummy_prefix,
    )
