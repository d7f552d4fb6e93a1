"""Chat templates: messages to the text of a prompt, by the Jinja source that a model brings.

In: the source, and messages, tools and whether to think. Out: the prompt. `template_from_directory` and `template_from_metadata` find the
source.

A template is a program by whoever made the model. It runs in Jinja's sandbox without access to Python's internals, with the filters that
templates of models use and no others, and within bounds: of its source, of what one operator or method may make at once, of seconds, of
memory, of characters that come out. Functions are those that templates of Hugging Face models expect.
Source: https://huggingface.co/docs/transformers/chat_templating_writing.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from rkfleet.clock import Clock
from rkfleet.errors import Invalid, NotFound
from toolkit.checkpoint.json_file import read_json
from toolkit.tokens.settings import read_settings

__all__ = ["Template", "source_from_directory", "template_from_directory", "template_from_metadata"]

SOURCE_BYTES_MAX: Final = 1 << 20  # The longest in use have 20 kB.
PROMPT_CHARACTERS_MAX: Final = 16 << 20  # Far beyond any context; a template that repeats itself stops here.
RENDER_SECONDS_MAX: Final = 5.0  # Ten thousand messages take a twentieth of it.
RENDER_BYTES_MAX: Final = 256 << 20  # By which the process may grow: a prompt at its limit is held a few times over.
EXPONENT_MAX: Final = 64  # No template of a model computes powers.
INTEGER_BITS_MAX: Final = 4096  # Nor with numbers whose product takes noticeable time.
WIDTH_MAX: Final = 1024  # Of padding and indentation.
NAMED_MAX: Final = 64  # Named templates in one tokenizer_config.json; models have two or three.

STATM: Final = Path("/proc/self/statm")  # Source: proc(5): the second number is the resident set, in pages.
_FILE: Final = "<template>"  # What Jinja calls the code of a template that came as a string.
_FILTERS: Final = (
    frozenset(
        {"abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby", "indent", "int", "items"}
    )
    | frozenset(
        {"join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe"}
    )
    | frozenset({"select", "selectattr", "sort", "string", "sum", "title", "trim", "unique", "upper"})
)
_WIDTH: Final = re.compile("%[^%a-zA-Z(]|%\\([^)]*\\)[^a-zA-Z]")
_GROWING: Final = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "translate", "to_bytes"})


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, in which no single operator or method makes a giant."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        numbers = [one for one in (left, right) if isinstance(one, int)]
        if operator == "**" and not (isinstance(right, int | float) and abs(right) <= EXPONENT_MAX):
            raise ValueError(f"an exponent is {right!r:.40}, at most {EXPONENT_MAX} is taken")
        if operator in ("*", "**") and any(one.bit_length() > INTEGER_BITS_MAX for one in numbers):
            raise ValueError(f"a number has more than {INTEGER_BITS_MAX} bits")
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(times, int):
                    _fit(len(many) * times)
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _fit(len(left) + len(right))
        if operator == "%" and isinstance(left, str):
            _fit_formatted(left, right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> None:  # noqa: ARG002 (Jinja's own lets `format` through, whose widths have no limit)
        return None

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str | bytes | int) and attr in _GROWING:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call(self, context: jinja2.runtime.Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
        if isinstance(owner, str) and name == "replace" and len(args) >= 2:
            _fit_replaced(owner, str(args[0]), str(args[1]))
        if isinstance(owner, str) and name == "join" and args and isinstance(args[0], list | tuple):
            _fit(len(owner) * len(args[0]) + sum(len(one) for one in args[0] if isinstance(one, str)))
        return super().call(context, called, *args, **kwargs)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: marks what the model wrote, for training; its body is rendered as it is."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Template:
    """A compiled template.

    Attributes:
        source: As it was found.
    """

    def __init__(self, source: str, clock: Clock, *, name: str = "chat template", tokens: Mapping[str, str] | None = None) -> None:
        """Compile.

        Args:
            source: Jinja.
            clock: For the limit of time, and for templates that tell the date.
            name: What errors call it.
            tokens: `bos_token` and others, as text.

        Raises:
            Invalid: It is too long, or no template; the message has the line.
        """
        if len(source.encode(errors="replace")) > SOURCE_BYTES_MAX:
            raise Invalid(f"{name} has more than {SOURCE_BYTES_MAX} bytes")
        self.source: Final = source
        self._name: Final = name
        self._clock: Final = clock
        self._tokens: Final = dict(tokens or {})
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, autoescape=False, extensions=["jinja2.ext.loopcontrols", _Generation], optimized=False
        )
        environment.filters = {key: value for key, value in environment.filters.items() if key in _FILTERS}
        environment.filters |= {"tojson": _to_json, "replace": _replace, "join": _join, "indent": _indent}
        environment.globals = {key: environment.globals[key] for key in ("range", "dict", "namespace", "cycler", "joiner")}
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: clock.now().strftime(str(form)[:WIDTH_MAX])}
        try:
            self._code: Final = environment.from_string(source)
        except jinja2.exceptions.TemplateSyntaxError as error:
            raise Invalid(f"{name}, line {error.lineno}: {error.message}") from error
        except (RecursionError, MemoryError, SyntaxError, ValueError) as error:
            raise Invalid(f"{name} is nested too deeply to be compiled") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] = (),
        thinking: bool | None = None,
        open_answer: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt.

        Args:
            messages: `role` and `content`, as OpenAI's API has them.
            tools: As OpenAI's API has them; none if empty.
            thinking: What the template knows as `enable_thinking`; None leaves it to the template.
            open_answer: Begin the assistant's answer (`add_generation_prompt`).
            variables: Further ones.

        Raises:
            Invalid: The template does not take these messages, or is not done with them within its bounds; the message has the line.
        """
        given: dict[str, Any] = {**self._tokens, **(variables or {})}
        if thinking is not None:
            given["enable_thinking"] = thinking
        given |= {"messages": [dict(one) for one in messages], "tools": list(tools) or None, "documents": None}
        pieces: list[str] = []
        size = 0
        try:
            with _bounded(self._clock):
                for piece in self._code.generate(given, add_generation_prompt=open_answer):
                    size += len(piece)
                    _fit(size)
                    pieces.append(piece)
        except Exception as error:
            # A template is a program: whatever it raises is its own failure, or that of the messages which it was given.
            raise Invalid(f"{self._name}, line {_line(error)}: {str(error) or type(error).__name__}") from error
        return "".join(pieces)


def template_from_directory(directory: Path, clock: Clock, *, name: str = "default") -> Template:
    """Return the template of a Hugging Face directory: chat_template.jinja, or `chat_template` of tokenizer_config.json.

    Args:
        directory: Of the model.
        clock: See `Template`.
        name: Which of several; `tool_use` and `rag` are other ones in use.

    Raises:
        NotFound: There is none, or none of that name.
        Invalid: It is none that can be compiled.
    """
    where, source = _find(directory, name)
    return Template(source, clock, name=where, tokens=read_settings(directory).tokens)


def source_from_directory(directory: Path, name: str = "default") -> str:
    """Return the Jinja source of a template, not compiled; see `template_from_directory`."""
    return _find(directory, name)[1]


def _find(directory: Path, name: str) -> tuple[str, str]:
    """Return what errors call a template, and its source."""
    file = directory / "chat_template.jinja" if name == "default" else directory / "additional_chat_templates" / f"{_plain(name)}.jinja"
    if file.is_file():
        with file.open("rb") as opened:
            source = opened.read(SOURCE_BYTES_MAX + 1)
        if len(source) > SOURCE_BYTES_MAX:
            raise Invalid(f"chat template {str(file)!r} has more than {SOURCE_BYTES_MAX} bytes")
        return f"chat template {str(file)!r}", source.decode(errors="replace")
    path = directory / "tokenizer_config.json"
    value = read_json(path).get("chat_template") if path.is_file() else None
    if isinstance(value, str):
        value = [{"name": "default", "template": value}]
    found = {}
    for one in value[:NAMED_MAX] if isinstance(value, list) else ():
        if isinstance(one, Mapping) and isinstance(one.get("template"), str):
            found[str(one.get("name"))] = one["template"]
    if not found:
        raise NotFound(f"directory {str(directory)!r} has no chat template: neither chat_template.jinja nor one in tokenizer_config.json")
    if name not in found:
        raise NotFound(f"directory {str(directory)!r} has no chat template {name!r}; it has {', '.join(found)}")
    return f"chat template {name!r} of {str(path)!r}", found[name]


def template_from_metadata(metadata: Mapping[str, Any], clock: Clock, *, name: str = "default") -> Template:
    """Return the template of a GGUF file; see `template_from_directory`."""
    key = "tokenizer.chat_template" + ("" if name == "default" else f".{name}")
    source = metadata.get(key)
    if not isinstance(source, str):
        raise NotFound(f"the GGUF file has no chat template (no key {key})")
    pieces = metadata.get("tokenizer.ggml.tokens") or ()
    tokens = {}
    for short, long in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        at = metadata.get(f"tokenizer.ggml.{long}_token_id")
        if isinstance(at, int) and 0 <= at < len(pieces):
            tokens[f"{short}_token"] = str(pieces[at])
    return Template(source, clock, name=f"chat template {key}", tokens=tokens)


def _plain(name: str) -> str:
    if not name.replace("_", "").replace("-", "").isalnum():
        raise NotFound(f"a chat template cannot be called {name!r}")
    return name


@contextlib.contextmanager
def _bounded(clock: Clock) -> Iterator[None]:
    """Have the interpreter look at time and memory with every line of a template that this thread runs in the block."""
    until, before = clock.monotonic() + RENDER_SECONDS_MAX, _resident_bytes()

    def look(_frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line":
            if clock.monotonic() > until:
                raise TimeoutError(f"it is not done after {RENDER_SECONDS_MAX:g} s")
            if _resident_bytes() - before > RENDER_BYTES_MAX:
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


def _resident_bytes() -> int:
    """Return the memory of this process; 0 where the kernel does not tell, so that time and operators alone are bounded there."""
    try:
        return int(STATM.read_bytes().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


def _line(error: BaseException) -> int:
    """Return the template's line that an error came from; Jinja writes it into the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno or 0 for frame in reversed(frames) if frame.filename == _FILE), 0)


def _fit(size: int) -> None:
    if size > PROMPT_CHARACTERS_MAX:
        raise ValueError(f"it makes more than {PROMPT_CHARACTERS_MAX} characters")


def _fit_replaced(text: str, old: str, new: str) -> None:
    _fit(len(text) + max(0, len(new) - len(old)) * (text.count(old) if old else len(text) + 1))


def _fit_formatted(form: str, values: Any) -> None:
    if _WIDTH.search(form):
        raise ValueError(f"the format {form!r:.40} has a width, which is not taken")
    _fit(len(form) + sum(len(str(one)) for one in (values if isinstance(values, tuple) else (values,))))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and not 0 <= int(indent) <= WIDTH_MAX:
        raise ValueError(f"tojson is to indent by {indent}; at most {WIDTH_MAX} is taken")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(value), str(old), str(new)
    _fit_replaced(text, old, new)
    return text.replace(old, new, -1 if count is None else count)


def _join(values: Any, separator: Any = "", attribute: str | None = None) -> str:
    pieces = [str(one.get(attribute, "") if isinstance(one, Mapping) else "") if attribute else str(one) for one in values]
    _fit(sum(map(len, pieces)) + len(str(separator)) * len(pieces))
    return str(separator).join(pieces)


def _indent(value: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    space = width if isinstance(width, str) else " " * min(int(width), WIDTH_MAX + 1)
    if len(space) > WIDTH_MAX:
        raise ValueError(f"indent is to be of more than {WIDTH_MAX}")
    lines = str(value).split("\n")
    _fit(sum(map(len, lines)) + len(space) * len(lines))
    rest = [space + line if line or blank else line for line in lines[1:]]
    return "\n".join([space + lines[0] if first else lines[0], *rest])


def _refuse(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)
