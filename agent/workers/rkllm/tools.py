"""What a model says, taken apart as it comes: what it thinks, what it answers, and which functions it calls. Pure.

In: text in pieces of any length. Out: deltas of OpenAI's chat chunks. Called by `answers.py` for every piece, and by `prompts.py` to know
how a whole answer looks to a client.

Nothing is held back longer than it takes to know what it is: a marker's beginning until it is one or not, a call until its function's
name is known; its arguments are then handed on as they come. Text that looked like a call and is none is given out as it was.

How models write calls differs by family (`FORMS`). Sources: the chat templates of Qwen2.5, Qwen3 and Hermes (`<tool_call>`), Llama 3.1
(`<|python_tag|>` and a bare object), Mistral (`[TOOL_CALLS]`) and Phi-4-mini (`<|tool_call|>`) on Hugging Face.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from typing import Any, Final

import msgspec

from agent.workers.rkllm.stops import open_tail

__all__ = ["FORMS", "Form", "Parser"]

Delta = dict[str, Any]

THINK: Final = "<think>"
THOUGHT: Final = "</think>"
_NAME: Final = "name"
_ARGUMENTS: Final = ("arguments", "parameters")


class Form(msgspec.Struct, frozen=True):
    """How a call begins and ends, around an object with `name` and `arguments` (or `parameters`) or a list of them."""

    begin: str
    end: str


FORMS: Final = (
    Form("<tool_call>", "</tool_call>"),
    Form("<|tool_call|>", "<|/tool_call|>"),
    Form("<|python_tag|>", "<|eom_id|>"),
    Form("[TOOL_CALLS]", "</s>"),
)
BARE: Final = Form("", "")  # an answer that is nothing but the object


class Parser:
    """One answer."""

    def __init__(self, *, tools: AbstractSet[str] | None, thinking: bool, new_id: Callable[[int], str]) -> None:
        """Take what can come.

        Args:
            tools: Names of the functions that may be called; None if calls are plain text.
            thinking: The prompt ended in an open `<think>`.
            new_id: Makes the id of the nth call.
        """
        self._tools: Final = tools
        self._new_id: Final = new_id
        self._begins: Final = tuple(form.begin for form in FORMS) if tools is not None else ()
        self._thinking = thinking
        self._fresh = True  # the answer has not begun, or only with thoughts
        self._trim = thinking  # white space at this place belongs to a marker
        self._rest = ""
        self._call: _Call | None = None
        self._form = BARE
        self.calls = 0

    def feed(self, text: str) -> list[Delta]:
        """Take a piece; return what is known by now."""
        self._rest += text
        deltas: list[Delta] = []
        while self._step(deltas):
            pass
        return deltas

    def end(self) -> list[Delta]:
        """Return what was held back."""
        deltas: list[Delta] = []
        if self._call is not None:
            if not self._call.announced:
                self._say(deltas, self._form.begin + self._call.raw)
            self._call = None
        self._say(deltas, self._rest)
        self._rest = ""
        return deltas

    def _step(self, deltas: list[Delta]) -> bool:
        """Take the beginning of the rest; return whether there may be more to take."""
        if self._call is not None:
            return self._go_on_with(self._call, deltas)
        if self._trim:
            self._rest = self._rest.lstrip()
            self._trim = not self._rest
        if not self._rest:
            return False
        if self._thinking:
            return self._split(deltas, (THOUGHT,)) == THOUGHT
        if self._fresh and (step := self._open()) is not None:
            return step
        found = self._split(deltas, self._begins)
        if found:
            self._begin(next(form for form in FORMS if form.begin == found))
        return bool(found)

    def _open(self) -> bool | None:
        """Look at how the answer begins: with a thought, with a bare call, or (None) with text; False while that is not known."""
        rest = self._rest.lstrip()
        markers = (THINK, *self._begins)
        if not rest or any(one != rest and one.startswith(rest) for one in markers):
            return False
        if rest.startswith(THINK):
            self._rest = rest.removeprefix(THINK)
            self._thinking = self._trim = True
            return True
        if self._tools is not None and rest[0] in "{[" and not rest.startswith(self._begins):
            self._rest = rest
            self._begin(BARE)
            return True
        self._fresh = False
        return None

    def _split(self, deltas: list[Delta], markers: tuple[str, ...]) -> str:
        """Say what stands before the first marker and return that; empty when none is whole, and then its beginning stays."""
        at, marker = min(((at, one) for one in markers if (at := self._rest.find(one)) >= 0), default=(-1, ""))
        if at < 0:
            at = len(self._rest) - open_tail(self._rest, markers)
        self._say(deltas, self._rest[:at])
        self._rest = self._rest[at + len(marker) :]
        if marker == THOUGHT:
            self._thinking = False
            self._trim = True
        return marker

    def _say(self, deltas: list[Delta], text: str) -> None:
        if not text:
            return
        deltas.append({"reasoning_content" if self._thinking else "content": text})

    def _begin(self, form: Form) -> None:
        self._form, self._fresh = form, False
        self._call = _Call()

    def _go_on_with(self, call: _Call, deltas: list[Delta]) -> bool:
        used = call.feed(self._rest)
        self._rest = self._rest[used:]
        if self._form is BARE and not call.announced and call.name is not None and call.name not in (self._tools or ()):
            call.broken = True
        if call.broken:
            self._give_up(call, deltas)
            return bool(self._rest)
        if call.name is not None and (call.opened or call.done):
            deltas.extend(self._announce(call))
        if not call.done:
            return False
        if not call.announced:  # an object without a name
            self._give_up(call, deltas)
            return bool(self._rest)
        return self._after_call(call)

    def _announce(self, call: _Call) -> Iterable[Delta]:
        text = call.take_arguments()
        if not call.announced:
            call.announced = True
            function = {"name": call.name, "arguments": text or ("{}" if call.done else "")}
            yield _tool_delta(self.calls, {"id": self._new_id(self.calls), "type": "function", "function": function})
            self.calls += 1
        elif text:
            yield _tool_delta(self.calls - 1, {"function": {"arguments": text}})

    def _give_up(self, call: _Call, deltas: list[Delta]) -> None:
        self._call = None
        self._say(deltas, "" if call.announced else self._form.begin + call.raw)

    def _after_call(self, call: _Call) -> bool:
        """Find out what follows a whole call: its end marker, the next of a list, or text. Returns whether that is known."""
        rest = self._rest.lstrip()
        if call.in_list and rest[:1] == ",":
            self._rest = rest[1:]
            self._call = _Call(in_list=True)
            return True
        if call.in_list and rest[:1] == "]":
            rest = rest[1:].lstrip()
            call.in_list = False
        self._rest = rest
        end = self._form.end
        if not rest or (end and rest != end and end.startswith(rest)):
            return False
        self._rest = rest.removeprefix(end)
        self._call = None
        self._trim = True
        return True


class _Call:
    """One call, read letter by letter.

    Attributes:
        raw: All that was read.
        in_list: It stands in a list.
        opened: The value of its arguments has begun.
    """

    def __init__(self, in_list: bool = False) -> None:
        self.raw = ""
        self.name: str | None = None
        self.in_list = in_list
        self.opened = False
        self.announced = False
        self.done = False
        self.broken = False
        self._wants = "object"  # object, key, colon, value, inside, next
        self._reading_key = False
        self._key = ""
        self._value = ""
        self._depth = 0
        self._quoted = False
        self._escaped = False
        self._arguments = ""
        self._taken = 0

    def feed(self, text: str) -> int:
        """Read until the object ends; return how many letters that took."""
        for at, letter in enumerate(text):
            if self.done or self.broken:
                return at
            self.raw += letter
            self._read(letter)
        return len(text)

    def take_arguments(self) -> str:
        """Return what is known of the arguments and was not taken yet."""
        text = self._arguments[self._taken :]
        self._taken = len(self._arguments)
        return text

    def _read(self, letter: str) -> None:
        match self._wants:
            case "inside":
                self._read_value(letter)
            case _ if letter.isspace():
                pass
            case "object" if letter == "[" and not self.in_list:
                self.in_list = True
            case "object" if letter == "{":
                self._wants = "key"
            case "key" if letter == '"':
                self._begin_value("key", letter)
            case "key" | "next" if letter == "}":
                self.done = True
            case "colon" if letter == ":":
                self._wants = "value"
            case "value":
                self._begin_value("value", letter)
            case "next" if letter == ",":
                self._wants = "key"
            case _:
                self.broken = True

    def _begin_value(self, what: str, letter: str) -> None:
        self._reading_key = what == "key"
        self._value, self._depth, self._quoted, self._escaped = "", 0, False, False
        self.opened = self.opened or (not self._reading_key and self._key in _ARGUMENTS and letter != '"')
        self._wants = "inside"
        self._read_value(letter)

    def _read_value(self, letter: str) -> None:
        """Take a letter of a key or a value, and notice its end."""
        if self._quoted:
            self._add(letter)
            if self._escaped:
                self._escaped = False
            elif letter == "\\":
                self._escaped = True
            elif letter == '"':
                self._quoted = False
                self._end_if(self._depth == 0)
            return
        scalar = self._depth == 0 and self._value != ""
        if scalar and (letter in ",}" or letter.isspace()):
            self._end_if(True)
            self._read(letter)
            return
        self._add(letter)
        if letter == '"':
            self._quoted = True
        elif letter in "{[":
            self._depth += 1
        elif letter in "}]":
            self._depth -= 1
            self.broken = self._depth < 0
            self._end_if(self._depth == 0)

    def _add(self, letter: str) -> None:
        self._value += letter
        if not self._reading_key and self._key in _ARGUMENTS and not self._value.startswith('"'):
            self._arguments += letter

    def _end_if(self, ended: bool) -> None:
        if not ended or self.broken:
            return
        try:
            value = json.loads(self._value)
        except ValueError:
            # Arguments may be handed on already, as they are; the client that asked sees what the model wrote.
            value = None
            self.broken = not self.opened
        if self._reading_key:
            self._key = value if isinstance(value, str) else ""
            self._wants = "colon"
            return
        if self._key == _NAME and isinstance(value, str):
            self.name = value
        if self._key in _ARGUMENTS and isinstance(value, str):  # some models write the object into a string
            self._arguments, self.opened = value, True
        self._wants = "next"


def _tool_delta(index: int, fields: dict[str, Any]) -> Delta:
    return {"tool_calls": [{"index": index, **fields}]}
