"""The one report of a self-test, for a person and for a program, to attach to a bug.

In: a `Result`. Out: Markdown with the facts as JSON in a fenced block, or that JSON alone. Called by `program.py`. Nothing in it tells who
or where the board is: no serial number, address or name of it, no directory of a user, no prompt but those of the self-test, no key.
`Redactor` takes out of every text what this machine and the command line are known to hold, and what looks like an address.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.board.kernel import observe_boot_id, observe_machine_id
from agent.board.readings import read_text
from agent.selftest.running import Result
from agent.selftest.values import Figure, Options, Outcome, shown_bytes
from rkfleet import __version__

__all__ = ["MARKS", "Redactor", "counts", "document", "markdown"]

FORMAT: Final = 1  # Of the JSON; a program that reads reports looks at it first.
SECRET_CHARACTERS_MIN: Final = 4  # A shorter name is part of too many words to take out.
MARKS: Final = {"passed": "✓", "failed": "✗", "skipped": "-"}

_MAC: Final = re.compile(r"\b(?:[0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}\b")
_IPV4: Final = re.compile(r"\b(?!127\.)(?:\d{1,3}\.){3}\d{1,3}\b")
_HOME: Final = re.compile(r"/(?:home|Users)/[^/\s:'\"]+|/root(?=/)")
_SHARED: Final = ("/usr/", "/lib")  # Where every machine has the same; which of them it is helps.
_UNNAMED: Final = frozenset({"localhost", "(none)", "rkfleet"})


class Redactor:
    """Takes out of texts what tells this machine from others.

    Args:
        options: Directories of files that were named become `…`.
        host: Name of the machine.
    """

    def __init__(self, options: Options, host: str) -> None:
        root = options.root
        own = [
            observe_machine_id(root),
            observe_boot_id(root),
            read_text(root / "proc/device-tree/serial-number") or "",
            read_text(root / "etc/machine-id") or "",
            "" if host in _UNNAMED else host,
        ]
        self._words: Final = sorted({word for word in own if len(word) >= SECRET_CHARACTERS_MIN}, key=len, reverse=True)
        files = [
            *options.models,
            options.adapter,
            options.encoder,
            options.config,
            options.template,
            *(one.path for one in options.libraries),
        ]
        parents = {
            str(parent) for path in files if path is not None for parent in (path.parent, path.absolute().parent, path.resolve().parent)
        }
        parents |= {str(options.data_dir), str(root.absolute())}
        private = sorted((one for one in parents if one not in {".", "/"} and not one.startswith(_SHARED)), key=len, reverse=True)
        self._parents: Final = tuple(re.compile(rf"(?<![\w.-]){re.escape(one)}/") for one in private)

    def text(self, text: str) -> str:
        """Return a text without them."""
        for parent in self._parents:
            text = parent.sub("…/", text)
        for word in self._words:
            text = text.replace(word, "(removed)")
        return _HOME.sub("/(home)", _IPV4.sub("(address)", _MAC.sub("(address)", text)))

    def all(self, value: Any) -> Any:
        """Return a value made of built-in types with every text of it treated."""
        match value:
            case str():
                return self.text(value)
            case Mapping():
                return {self.text(str(name)): self.all(one) for name, one in value.items()}
            case list() | tuple():
                return [self.all(one) for one in value]
            case _:
                return value


def document(result: Result, redactor: Redactor, date: str) -> dict[str, Any]:
    """Return the facts as values of JSON."""
    body = msgspec.to_builtins(result)
    head = {
        "format": FORMAT,
        "rkfleet": __version__,
        "date": date,
        "simulated": result.simulated,
        **counts(result.outcomes),
    }
    found: dict[str, Any] = redactor.all({**head, **{name: value for name, value in body.items() if name != "simulated"}})
    return found


def counts(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Return how many checks passed, failed and were skipped."""
    found = {"passed": 0, "failed": 0, "skipped": 0}
    for outcome in outcomes:
        found[outcome.status] += 1
    return found


def markdown(result: Result, redactor: Redactor, date: str) -> str:
    """Return the report."""
    facts = document(result, redactor, date)
    board = facts["board"]
    number = counts(result.outcomes)
    simulated = {None: "unknown, no model was loaded", True: "yes", False: "no"}[result.simulated]
    lines = [
        "# rkfleet self-test",
        "",
        f"{number['passed']} passed, {number['failed']} failed, {number['skipped']} skipped in {result.seconds:.0f} s.",
        "",
        "| | |",
        "|---|---|",
        *_rows(
            {
                "simulated": simulated,
                "date": date,
                "rkfleet": __version__,
                "board": board["model"] or "unknown",
                "chip": f"{board['soc']}, {board['npu_cores']} NPU cores",
                "kernel": f"{board['kernel']} {board['architecture']}, {board['system'] or 'unknown system'}",
                "NPU driver": board["driver"] or "unknown",
                "memory": _memory(result),
                "storage": board["storage"] or "unknown",
                "clocks": _clocks(result),
                "temperatures": ", ".join(f"{name} {value:.0f} °C" for name, value in board["temperatures_celsius"].items()) or "unknown",
                **_model(result, facts),
            }
        ),
        "",
        "## Runtime libraries",
        "",
        *_libraries(facts["libraries"]),
        "## Checks",
        "",
        "| | check | what was found | seconds |",
        "|---|---|---|--:|",
        *(_check_row(one) for one in facts["outcomes"]),
        "",
    ]
    for one in facts["outcomes"]:
        if one["status"] == "failed":
            lines += _failure(one)
    figures = [one for one in facts["outcomes"] if one["figures"]]
    if figures:
        lines += ["## Figures", "", "| check | figures |", "|---|---|"]
        lines += [f"| {one['check']} | {_cell(_shown(one['figures']))} |" for one in figures] + [""]
    lines += ["## Facts for programs", "", "```json", msgspec.json.format(msgspec.json.encode(facts), indent=1).decode(), "```", ""]
    return "\n".join(lines)


def _rows(values: Mapping[str, str]) -> list[str]:
    return [f"| {name} | {_cell(value)} |" for name, value in values.items()]


def _check_row(outcome: Mapping[str, Any]) -> str:
    return f"| {MARKS[outcome['status']]} | {_cell(outcome['title'])} | {_cell(outcome['sentence'])} | {outcome['seconds']:.1f} |"


def _failure(outcome: Mapping[str, Any]) -> list[str]:
    lines = [f"### Failed: {outcome['title']}", "", outcome["sentence"], ""]
    if (known := outcome.get("failure")) is not None:
        lines += [f"Known failure {known['number']}, {known['reason']}: {known['message']}.", ""]
    if outcome["remedy"]:
        lines += [f"Try: `{outcome['remedy']}`", ""]
    if outcome["lines"]:
        fence = "````" if any("```" in line for line in outcome["lines"]) else "```"
        lines += ["Last lines of the worker:", "", f"{fence}text", *outcome["lines"], fence, ""]
    return lines


def _libraries(libraries: Sequence[Mapping[str, Any]]) -> list[str]:
    if not libraries:
        return ["None was found.", ""]
    heads = ["file", "release", "generation", "by", "content id", "functions of", "versions in it", "default parameters of", "built for"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for one in libraries:
        cells = [
            Path(one["path"]).name,
            one["version"] or "unknown",
            one["generation"] or one["problem"] or "unknown",
            one["how"],
            f"{one['content'][:12]} ({one['release_by_content'] or 'not known'})",
            " or ".join(one["symbols"]),
            ", ".join(one["literals"]) or "none",
            one["defaults"] or "unknown",
            one["machine"],
        ]
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return [*lines, ""]


def _model(result: Result, facts: Mapping[str, Any]) -> dict[str, str]:
    header = result.header
    if header is None:
        return {}
    said = [
        f"toolkit {header.toolkit or 'unknown'}",
        f"for {header.target or 'an unknown chip'}",
        f"dtype {header.dtype or 'unknown'}",
        f"{header.npu_cores or 'unknown'} NPU cores",
        f"context up to {header.context_limit or 'unknown'}",
    ]
    return {
        "model": f"{shown_bytes(result.model_bytes)}, {', '.join(said)}",
        "runtime says": ", ".join(
            f"{name} {value or 'unknown'}"
            for name, value in (("runtime", header.runtime), ("driver", header.driver), ("platform", header.platform))
        ),
        "reference": str(facts["reference"]),
    }


def _memory(result: Result) -> str:
    total, available = result.board.memory_total_bytes, result.board.memory_available_bytes
    if total is None or available is None:
        return "unknown"
    return f"{shown_bytes(available)} of {shown_bytes(total)} available before"


def _clocks(result: Result) -> str:
    clocks, governors = result.board.clocks_hertz, result.board.governors
    return ", ".join(f"{name} {hertz / 1e6:.0f} MHz ({governors.get(name, 'unknown')})" for name, hertz in clocks.items()) or "unknown"


def _shown(figures: Mapping[str, Figure]) -> str:
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items())


def _cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")
