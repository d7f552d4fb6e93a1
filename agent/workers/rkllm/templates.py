"""Chat templates: messages to the text of a prompt, by the Jinja file of the artifact.

In: the template's file, and messages, tools and whether to think. Out: the prompt. Used by `prompts.py` where the artifact brings a
template; without one the runtime's own is used and this module is not imported, nor is Jinja.

A template is a program by whoever packaged the model. It runs in Jinja's sandbox, which gives it no attribute of Python's internals and
bounds its ranges, and it has so many seconds and so much memory: loops within loops would hold up every request of this worker, which
would look alive all the while. Operators that can make a giant at once (`*`, `**`) are bounded; a template that means harm finds other ways
to end its own worker, which the kernel is offered first when memory ends. The functions that it may call are those which templates of
Hugging Face models expect. Source: https://huggingface.co/docs/transformers/chat_templating_writing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

import jinja2
import jinja2.exceptions
import jinja2.sandbox

from rkfleet.clock import Clock
from rkfleet.errors import BadRequest, FailedPrecondition

__all__ = ["Template"]

TEMPLATE_BYTES_MAX: Final = 1 << 20  # The longest in use have 20 kB.
PROMPT_BYTES_MAX: Final = 16 << 20  # A template that repeats itself stops here: the body of a request is not larger.


RENDER_SECONDS_MAX: Final = 5.0  # 10,000 messages take a twentieth of it on a PC; the listener of this worker stands still meanwhile.
RENDER_BYTES_MAX: Final = 256 << 20  # By which the process may grow: a prompt at its limit is held a few times over.
EXPONENT_MAX: Final = 64  # No template of a model computes powers.

_FILE: Final = "<template>"  # What Jinja calls the code of a template that came as a string.
STATM: Final = "/proc/self/statm"  # Source: proc(5): the second number is the resident set, in pages.


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, in which no single operator makes a giant."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and abs(right) > EXPONENT_MAX:
            raise ValueError(f"an exponent is {right}, at most {EXPONENT_MAX} is taken")
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, (str, list, tuple)) and isinstance(times, int) and len(many) * times > PROMPT_BYTES_MAX:
                    raise ValueError(f"{len(many)} times {times} is more than {PROMPT_BYTES_MAX}")
        return super().call_binop(context, operator, left, right)


class Template:
    """A compiled template.

    Attributes:
        digest: Of its source: two templates are the same if it is.
    """

    def __init__(self, path: str, clock: Clock) -> None:
        """Read and compile.

        Args:
            path: The template's file.
            clock: For templates that tell the date.

        Raises:
            FailedPrecondition: It cannot be read or is no template; the message has the line.
        """
        self._path: Final = path
        self._clock: Final = clock
        try:
            with Path(path).open("rb") as file:
                source = file.read(TEMPLATE_BYTES_MAX + 1)
            if len(source) > TEMPLATE_BYTES_MAX:
                raise FailedPrecondition(f"chat template {path} has more than {TEMPLATE_BYTES_MAX} bytes")
            text = source.decode()
        except OSError as error:
            raise FailedPrecondition(f"chat template {path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise FailedPrecondition(f"chat template {path} is not UTF-8: {error}") from error
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        del environment.globals["lipsum"]
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: clock.now().strftime(form)
        try:
            self._code = environment.from_string(text)
        except jinja2.exceptions.TemplateSyntaxError as error:
            raise FailedPrecondition(f"chat template {path}, line {error.lineno}: {error.message}") from error
        self.digest: Final = hashlib.sha256(source).hexdigest()[:16]

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], *, thinking: bool, variables: Mapping[str, Any]) -> str:
        """Return the prompt, open for the answer.

        Args:
            messages: As OpenAI's API has them; contents are strings.
            tools: As OpenAI's API has them; empty for none.
            thinking: What the template knows as `enable_thinking`.
            variables: Further ones, of the request (`chat_template_kwargs`).

        Raises:
            BadRequest: The template does not take these messages, or is not done with them in time; the message has the line.
        """
        with _bounded(self._clock):
            return self._render(messages, tools, thinking=thinking, variables=variables)

    def _render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], *, thinking: bool, variables: Mapping[str, Any]) -> str:
        try:
            pieces: list[str] = []
            size = 0
            for piece in self._code.generate(
                dict(variables),
                messages=[dict(one) for one in messages],
                tools=list(tools) or None,
                add_generation_prompt=True,
                enable_thinking=thinking,
            ):
                size += len(piece)
                if size > PROMPT_BYTES_MAX:
                    raise BadRequest(f"chat template {self._path} makes a prompt of more than {PROMPT_BYTES_MAX} characters")
                pieces.append(piece)
            return "".join(pieces)
        except BadRequest:
            raise
        except Exception as error:
            # A template is a program: whatever it raises is its own failure, or that of the messages which it was given.
            raise BadRequest(f"chat template {self._path}, line {_line(error)}: {str(error) or type(error).__name__}") from error


@contextlib.contextmanager
def _bounded(clock: Clock) -> Iterator[None]:
    """Have the interpreter look at time and memory with every line of a template that this thread runs in the block."""
    until, statm = clock.monotonic() + RENDER_SECONDS_MAX, os.open(STATM, os.O_RDONLY | os.O_CLOEXEC)

    def resident_bytes() -> int:
        return int(os.pread(statm, 64, 0).split()[1]) * mmap.PAGESIZE

    before = resident_bytes()

    def look(_frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line":
            if clock.monotonic() > until:
                raise TimeoutError(f"it is not done after {RENDER_SECONDS_MAX:g} s")
            if resident_bytes() - before > RENDER_BYTES_MAX:
                raise MemoryError(f"it takes more than {RENDER_BYTES_MAX >> 20} MiB")
        return look

    def enter(frame: FrameType, _event: str, _argument: object) -> Any:
        return look if frame.f_code.co_filename == _FILE else None

    others = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(others)
        os.close(statm)


def _line(error: Exception) -> int:
    """Return the template's line that an error came from; Jinja writes it into the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno or 0 for frame in reversed(frames) if frame.filename == _FILE), 0)


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **_more: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _refuse(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)
