"""A calibration file of a model's own answers, as the vendor's example makes it.

In: a model and prompts. Out: `CalibrationSample`s with `input` (the prompt in the model's chat template) and `target` (its greedy answer
in full precision). What a model says itself is nearer to what it will be given than any text of others. Called by
`toolkit.commands.calibrate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from rkfleet.clock import Clock
from rkfleet.errors import Invalid, NotFound
from toolkit.loading import ModelSource
from toolkit.quantize.calibration import SAMPLE_TOKENS_MAX, CalibrationSample, Progress
from toolkit.simulate.cache import KvCache
from toolkit.simulate.network import Network
from toolkit.tokens.base import Tokenizer
from toolkit.tokens.open import open_tokenizer
from toolkit.tokens.template import Template, template_from_directory, template_from_metadata

__all__ = ["ANSWER_TOKENS", "answer_all", "read_prompts"]

PROMPTS_MAX: Final = 256  # The vendor's example has some 20; each takes seconds.
PROMPT_BYTES_MAX: Final = 1 << 20
ANSWER_TOKENS: Final = 128  # As the vendor's example.


def read_prompts(path: Path) -> list[str]:
    """Return the lines of a file that are not empty.

    Raises:
        NotFound: There is no such file.
        Invalid: There are no prompts in it, or too many, or it is no text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(PROMPT_BYTES_MAX + 1)
    except OSError as error:
        raise NotFound(f"prompts {str(path)!r} cannot be read: {error.strerror or error}") from error
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise Invalid(f"prompts {str(path)!r} is not UTF-8: byte {error.start} is {content[error.start]:#04x}") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if len(content) > PROMPT_BYTES_MAX or not 0 < len(prompts) <= PROMPTS_MAX:
        raise Invalid(
            f"prompts {str(path)!r} has {len(prompts)} prompts, one a line; 1 to {PROMPTS_MAX} in {PROMPT_BYTES_MAX} bytes are taken"
        )
    return prompts


def answer_all(
    source: ModelSource, prompts: Sequence[str], clock: Clock, *, tokens: int = ANSWER_TOKENS, progress: Progress | None = None
) -> list[CalibrationSample]:
    """Return a sample for every prompt; a model without a chat template gets the prompt as it is.

    Raises:
        Invalid: A prompt is too long, or `tokens` is not from 1 to SAMPLE_TOKENS_MAX.
    """
    if not 1 <= tokens <= SAMPLE_TOKENS_MAX:
        raise Invalid(f"{tokens} new tokens are not from 1 to {SAMPLE_TOKENS_MAX}")
    tokenizer, template = open_tokenizer(source), _template(source, clock)
    network = Network(source, source.family)
    samples = []
    for done, prompt in enumerate(prompts):
        text = prompt if template is None else template.render([{"role": "user", "content": prompt}])
        samples.append(CalibrationSample(text, _greedy(network, tokenizer, text, tokens)))
        if progress is not None:
            progress("answering", done + 1, len(prompts))
    return samples


def _greedy(network: Network, tokenizer: Tokenizer, text: str, tokens: int) -> str:
    ids = tokenizer.encode(text, special=True)
    if not 0 < len(ids) <= SAMPLE_TOKENS_MAX:
        raise Invalid(f"prompt {text[:40]!r} has {len(ids)} tokens; from 1 to {SAMPLE_TOKENS_MAX} are taken")
    cache = KvCache(network.hyperparameters, len(ids) + tokens)
    answer: list[int] = []
    given = ids
    for _ in range(tokens):
        hidden = network.hidden(network.embed(given), cache)
        chosen = int(np.argmax(network.logits(hidden[-1:])[0]))
        if chosen in tokenizer.ends:
            break
        answer.append(chosen)
        given = [chosen]
    return tokenizer.decode(answer)


def _template(source: ModelSource, clock: Clock) -> Template | None:
    try:
        return template_from_directory(source.path, clock) if source.path.is_dir() else template_from_metadata(source.metadata, clock)
    except NotFound:
        return None
