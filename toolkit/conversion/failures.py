"""Why a vendor's toolkit failed, in a sentence with what to do: its own answer is -1, a traceback, or a signal.

In: how the child ended and the lines it wrote. Out: one sentence and the last lines. Pure. Called by `convert`.

Sources: the vendor's guide 1.2.0 (GPU for gdq and grq, memory, widths), issues 30 and 84 of github.com/airockchip/rknn-llm, and what torch
and transformers print. What is recognised adds to the sentence; the vendor's own last lines are always there.
"""

from __future__ import annotations

import re
import signal
from typing import Final

import msgspec

from toolkit.conversion.child import Ended

__all__ = ["LINES_SHOWN", "sentence_of"]

LINES_SHOWN: Final = 6  # Of the log, in an error; all that is kept is in the provenance.


class Known(msgspec.Struct, frozen=True):
    """A failure that is known by its words."""

    words: re.Pattern[str]
    says: str


def _known(words: str, says: str) -> Known:
    return Known(re.compile(words, re.IGNORECASE), says)


MEMORY: Final = (
    "memory ran out: a model takes four bytes a parameter and more while it is converted. Give --load-dtype float16 or bfloat16, "
    "close what else runs, or add memory or swap"
)
KNOWN: Final = (
    _known(
        r"no CUDA GPUs are available|not compiled with CUDA|Found no NVIDIA driver|CUDA (is )?(not|un)\s?available|requires? a GPU",
        "torch of that interpreter sees no GPU: gdq, grq and --device cuda need one, and a torch that was built for it; "
        "--algorithm normal --device cpu needs none",
    ),
    _known(r"CUDA out of memory|CUDA error: out of memory", "the GPU's memory ran out: give --load-dtype float16, or --device cpu"),
    _known(r"can't allocate memory|Cannot allocate memory|MemoryError|bad_alloc", MEMORY),
    _known(r"No space left on device", "the disk is full: the output and its working files need about twice the file's size"),
    _known(
        r"(multiple|divisible|divided|align\w*)\b.{0,60}\bgroup|\bgroup.{0,60}\b(multiple|divisible|divided|align\w*)",
        "a layer is no multiple of the group: take a dtype with a smaller group, or without",
    ),
    _known(
        r"does not recognize this architecture|KeyError: '(qwen|gemma|llama|phi|minicpm|smollm|telechat)\w*'"
        r"|cannot import name .* from '?transformers",
        "transformers of that interpreter is of another time than the model: "
        "the requirements file of the release has the version that fits",
    ),
    _known(r"trust_remote_code", "the model brings code of its own, which the vendor's toolkit has to be told to run"),
    _known(
        r"No module named '?pkg_resources",
        "that interpreter's setuptools is too new to have pkg_resources: install 'setuptools<81' into it",
    ),
    _known(
        r"No module named '?([\w.]+)|cannot import name|undefined symbol|GLIBC\w*_[\d.]+' not found",
        "a package of that interpreter is missing or of another version: install the requirements file of the release into it",
    ),
)


def sentence_of(ended: Ended, what: str) -> str:
    """Return why there is no file.

    Args:
        ended: How the child ended.
        what: Who failed: `RKLLM-Toolkit 1.2.3`.
    """
    last = ended.last
    if ended.killed:
        said = f"{what} was stopped in stage {ended.stage}: {ended.killed}"
    elif last.get("event") == "failed":
        said = f"{what} failed in stage {last.get('stage')}: {last.get('call')} returned {last.get('code')}"
    elif last.get("event") == "raised":
        said = f"{what} failed in stage {last.get('stage')} with {last.get('type')}: {_first_line(str(last.get('message')))}"
    elif ended.status == -signal.SIGKILL:
        said = f"{what} was killed by signal 9 in stage {ended.stage}, which is what Linux does when {MEMORY}"
    elif ended.status < 0:
        said = f"{what} crashed in stage {ended.stage} by signal {-ended.status} ({_signal_name(-ended.status)})"
    else:
        said = f"{what} ended in stage {ended.stage} with status {ended.status} before it was done"
    text = "\n".join((f"{last.get('type')}: {last.get('message')}" if last.get("event") == "raised" else "", *ended.tail))
    hint = "" if ended.killed else next((known.says for known in KNOWN if known.words.search(text)), "")
    lines = "".join(f"\n  | {line}" for line in ended.tail[-LINES_SHOWN:])
    return f"{said}{f'. Probably {hint}' if hint else ''}{f'. Its last lines:{lines}' if lines else ''}"


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0][:300]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
