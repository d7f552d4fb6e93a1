"""Writes the pages that follow from code: metrics, command line, kinds, failures, and the transition table of the session.

In: the entries, commands, structs and the table themselves. Out: pages below `docs/`; with `--check` nothing is written and the status is 1
if a page differs. Run by `make docs` and `make docs-check`. The pages are the same in every terminal and on every machine: commands are
read from their definitions, and argparse is told its width.
"""

from __future__ import annotations

import argparse
import contextlib
import html
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import typer
import typer.main

import agent.config
import agent.doctor
import agent.failures.modes
import agent.packaging.config
import agent.standalone.config
import controller.backups.commands
import controller.config
import controller.registry.config
import gateway.config
import simulation.boards.config
import simulation.hollow.config
import simulation.runtime.__main__
from agent.serving import compatibility
from rkfleet import session
from rkfleet.benchmarks import PROTOCOLS, load_table
from rkfleet.cli.main import app
from rkfleet.cli.programs import PROGRAMS
from rkfleet.kinds import KINDS
from rkfleet.kinds.base import Object
from rkfleet.metric_names import ALL, Metric
from rkfleet.schema import schema_of
from toolkit import platforms
from toolkit.commands.app import app as toolkit_app
from toolkit.performance.model import lines_of

DOCS: Final = Path(__file__).parent
HELP_COLUMNS: Final = 110
BEGIN: Final = "<!-- begin: written by make docs -->"
END: Final = "<!-- end: written by make docs -->"

PARSERS: Final[Mapping[str, Callable[[list[str]], object]]] = {
    "controller": controller.config.parse_arguments,
    "controller backup": controller.backups.commands.parse_backup,
    "controller restore": controller.backups.commands.parse_restore,
    "registry": controller.registry.config.parse_arguments,
    "agent": agent.config.parse_arguments,
    "agent install": lambda arguments: agent.packaging.config.parse_arguments(["install", *arguments]),
    "agent uninstall": lambda arguments: agent.packaging.config.parse_arguments(["uninstall", *arguments]),
    "agent --standalone": agent.standalone.config.parse_arguments,
    "gateway": gateway.config.parse_config,
    "simulated-boards": simulation.boards.config.parse_arguments,
    "simulate": simulation.hollow.config.parse_arguments,
    "simulated-runtime": simulation.runtime.__main__.parse_arguments,
    "doctor": agent.doctor.parse_arguments,
}


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """Return a Markdown table followed by an empty line; cells may hold any text."""
    cells = [[cell.replace("\n", " ").replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in cells), ""]


def sentence(text: str) -> str:
    """Return a text that begins like a sentence and ends like one; empty stays empty."""
    text = " ".join(text.split())
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}" if text else ""


def page(lines: list[str]) -> str:
    """Return the lines as a file, without spaces at their ends."""
    return "\n".join(line.rstrip() for line in lines).rstrip() + "\n"


# ---- Metrics -------------------------------------------------------------------------------------------------------------------


def metrics_page() -> str:
    """Return docs/reference/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Each program exposes its metrics in the Prometheus text format at `/metrics` of its ops listener; `endpoints.json` of",
        "`rkfleet up` lists the URLs. A duration states its first and last instant; both are read from one monotonic clock of one process.",
        "Counters end in `_total`, histograms have `_bucket`, `_sum` and `_count`. Written by `make docs` from `rkfleet/metric_names.py`.",
        "",
    ]
    for program in ("every", "controller", "registry", "gateway", "agent", "simulated-boards"):
        entries = [entry for entry in ALL if entry.program == program]
        lines += [f"## {'Every program' if program == 'every' else program.capitalize().replace('-', ' ')}", ""]
        lines += table(["metric", "type", "labels", "meaning"], [_metric_row(entry) for entry in entries])
    return page(lines)


def _metric_row(entry: Metric) -> list[str]:
    labels = ", ".join(f"`{label}`" for label in entry.labels)
    return [f"`{entry.name}`", entry.type, labels, f"{entry.help} {sentence(entry.instants)}".strip()]


# ---- Command line --------------------------------------------------------------------------------------------------------------


def cli_page() -> str:
    """Return docs/reference/cli.md."""
    lines = [
        "# Command line",
        "",
        "Commands that ask the API find the cluster by `--kubeconfig`, `$RKFLEET_KUBECONFIG`, `$KUBECONFIG`, `~/.rkfleet/kubeconfig`,",
        "in this order. Every failure is one sentence on standard error and a status:",
        "",
        *table(
            ["status", "means"],
            [
                ["0", "done, and what was to be checked holds"],
                ["1", "what was written is invalid, or a check failed"],
                ["2", "the words of the command are off"],
                ["3", "not found"],
                ["4", "conflict: the name is taken, or the object changed"],
                ["5", "denied"],
                ["6", "unavailable, or a limit is reached; try again later"],
                ["7", "the deadline passed"],
                ["70", "a mistake of rkfleet"],
            ],
        ),
        "Output is coloured and aligned on a terminal and plain columns when piped. Written by `make docs`.",
        "",
    ]
    root = typer.main.get_command(app)
    commands = list(_walk(root, "rkfleet"))
    lines += table(
        ["command", "does"],
        [[f"[`{path}`](#{_anchor(path)})", _does(path, command)] for path, command in commands if _is_leaf(command)],
    )
    for path, command in commands:
        if _is_leaf(command):
            lines += _command_lines(path, command)
    return page(lines)


def _walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    if path == "rkfleet toolkit":
        command = typer.main.get_command(toolkit_app)  # A program of its own, which `rkfleet toolkit` becomes.
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _walk(inner, f"{path} {name}")


def _is_leaf(command: Any) -> bool:
    return not getattr(command, "commands", {})


def _anchor(path: str) -> str:
    return path.lower().replace(" ", "-")


def _program(path: str) -> str:
    """Return which program `rkfleet PROGRAM run`, or a command with a name of its own, starts; empty for every other command."""
    words = path.split()
    if words[1:] in (["simulate"], ["doctor"], ["simulated-runtime", "build"]):
        return words[1]
    if (both := " ".join(words[1:])) in PARSERS:
        return both
    return words[1] if words[-1] == "run" and words[1] in PARSERS else ""


def _does(path: str, command: Any) -> str:
    program = _program(path)
    return f"Run this program: {PROGRAMS[program][1]}" if program in PROGRAMS else sentence(command.help or "")


def _command_lines(path: str, command: Any) -> list[str]:
    if program := _program(path):
        alone = ["```text", *_program_help("agent --standalone"), "```", ""] if program == "agent" else []
        return [f"## `{path}`", "", "```text", *_program_help(program), "```", "", *alone]
    with typer.Context(command, info_name=path) as context:
        usage = " ".join([path, *command.collect_usage_pieces(context)])
        rows = [record for parameter in command.params if (record := parameter.get_help_record(context)) is not None]
    lines = [f"## `{path}`", "", sentence(command.help or ""), "", "```text", usage, "```", ""]
    return lines + table(
        ["argument or option", "meaning"], [[f"`{names}`", html.escape(text.replace("  [", " ["), quote=False)] for names, text in rows]
    )


def _program_help(program: str) -> list[str]:
    """Return what `rkfleet PROGRAM run --help` prints at a fixed width."""
    shown = io.StringIO()
    os.environ["COLUMNS"] = str(HELP_COLUMNS)
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        PARSERS[program](["--help"])
    return shown.getvalue().strip().splitlines()


# ---- Kinds ---------------------------------------------------------------------------------------------------------------------


def kinds_page() -> str:
    """Return docs/reference/kinds.md."""
    lines = [
        "# Kinds",
        "",
        "Every field, as `kubectl explain --recursive KIND` shows it, with its limits. `metadata` is that of Kubernetes. People write",
        "`spec` (of Replica and ModelRevision: the controller does), the controller writes `status`, each part of it by one writer.",
        "Conditions are told in [conditions](conditions.md). Written by `make docs` from `rkfleet/kinds/`.",
        "",
    ]
    for kind in KINDS:
        lines += _kind_lines(kind)
    return page(lines)


def _kind_lines(kind: type[Object]) -> list[str]:
    resource = kind.resource
    scope = "namespaced" if resource.namespaced else "cluster-scoped"
    short = f" Short name{'s' if len(resource.short_names) > 1 else ''}: {', '.join(f'`{name}`' for name in resource.short_names)}."
    about = f"`{resource.api_version}`, {scope}.{short if resource.short_names else ''} {kind.__doc__ or ''}"
    schema: Mapping[str, Any] = schema_of(kind)
    parts = {name: node for name, node in schema["properties"].items() if name not in {"apiVersion", "kind", "metadata"}}
    fields = [row for name, node in parts.items() for row in _field_rows(name, node, required=name in schema.get("required", ()))]
    lines = [f"## {resource.kind}", "", about.strip(), ""]
    if fields:
        lines += table(["field", "type", "meaning"], fields)
    rules = [rule for name, node in parts.items() for rule in _rules(name, node)]
    if rules:
        lines += ["Rules over several fields, and over a change:", "", *(f"- `{path}`: {sentence(message)}" for path, message in rules), ""]
    writers = [
        [f"`{name}`", ", ".join(f"`{field}`" for field in owner.fields), ", ".join(f"`{type}`" for type in owner.conditions)]
        for name, owner in resource.owners.items()
    ]
    if writers:
        lines += table(["writer of the status", "fields", "conditions"], writers)
    return lines


def _field_rows(path: str, node: Mapping[str, Any], *, required: bool) -> list[list[str]]:
    type = node.get("type", "integer or string" if node.get("x-kubernetes-int-or-string") else "any")
    inner = node
    if type == "array":
        inner, type = node["items"], f"array of {node['items'].get('type', 'any')}"
    rows = [[f"`{path}`", type, " ".join(_meaning(node, inner, required=required))]]
    if path.endswith("status.conditions"):
        return rows  # The same in every kind; conditions.md tells what they say.
    below = f"{path}[]" if inner is not node else path
    for name, child in inner.get("properties", {}).items():
        rows += _field_rows(f"{below}.{name}", child, required=name in inner.get("required", ()))
    return rows


def _meaning(node: Mapping[str, Any], inner: Mapping[str, Any], *, required: bool) -> Iterator[str]:
    yield node.get("description", "")
    if required:
        yield "Required."
    words = [word for word in inner.get("enum", ()) if word != ""]
    if words:
        yield f"One of {', '.join(f'`{word}`' for word in words)}."
    low, high = inner.get("minimum"), inner.get("maximum")
    if low is not None and high is not None:
        yield f"{low}..{high}."
    elif low is not None or high is not None:
        yield f"At least {low}." if high is None else f"At most {high}."
    if "maxItems" in node:
        yield f"At most {node['maxItems']} entries."
    if node.get("default") not in (None, "", [], {}) and not isinstance(node["default"], dict):
        yield f"Default `{json.dumps(node['default']).strip(chr(34))}`."


def _rules(path: str, node: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for rule in node.get("x-kubernetes-validations", ()):
        yield f"{path}{rule.get('fieldPath', '')}", rule["message"]
    if node.get("type") == "array":
        yield from _rules(f"{path}[]", node["items"])
    for name, child in node.get("properties", {}).items():
        yield from _rules(f"{path}.{name}", child)


# ---- Failures ------------------------------------------------------------------------------------------------------------------


def failures_page() -> str:
    """Return docs/reference/failures.md."""
    rows = [
        [str(mode.number), sentence(mode.seen), f"`{mode.reason}`", sentence(mode.cause), mode.remedy, f"[report]({mode.source})"]
        for mode in agent.failures.modes.MODES
    ]
    lines = [
        "# Failures of boards with an NPU",
        "",
        "What goes wrong on boards with the vendor's runtime and driver, by the name under which rkfleet shows it. Where a worker ended",
        "of it, the name is the reason of `Loaded` and `Ready` of its Replica, the message has the sizes, versions and limits of the",
        "case, and `status.lastExit` has the runtime's own words besides. Numbers 5, 16, 18, 19, 22, 23 and 25 have no line in any log;",
        "they are told from what is measured on the board: a finding of `rkfleet doctor -o json` has the number of its row as `failure`. A",
        "failure that is not here keeps the reason `LoadFailed` or `CrashLoopBackOff` and the runtime's own words.",
        "",
        "Of several that fit, the most specific is shown: first a kill by the kernel, then what keeps a runtime from starting (library,",
        "node, chip), then refusals that name their number, then memory, then the model file, and last what only the way a process ended",
        "suggests. The kernel's log is read where the agent may (`kernel.dmesg_restrict`); where it may not, the worker's log says so.",
        "Written by `make docs` from `agent/failures/modes.py`.",
        "",
        *table(["number", "what one sees", "reason", "why", "helps", "source"], rows),
    ]
    return page(lines)


# ---- Sessions ------------------------------------------------------------------------------------------------------------------


def sessions_page() -> str:
    """Return docs/concepts/sessions.md with today's transition table between its marks."""
    before, _, rest = (DOCS / "concepts/sessions.md").read_text().partition(BEGIN)
    rows = [[f"`{state.value}`", end.value, f"`{message.__name__}`", f"`{to.value}`"] for (state, end, message), to in _transitions()]
    drawn = table(["state", "sender", "message", "next state"], rows)
    return page([f"{before}{BEGIN}", "", *drawn, f"{END}{rest.partition(END)[2]}"])


def _transitions() -> list[tuple[tuple[session.State, session.End, type[session.Message]], session.State]]:
    return list(session.TRANSITIONS.items())


def performance_page() -> str:
    """Return docs/concepts/performance-model.md with the leave-one-out errors of today's table between its marks."""
    before, _, rest = (DOCS / "concepts/performance-model.md").read_text().partition(BEGIN)
    benchmarks = load_table()
    kinds = sorted({(row.soc, row.dtype) for row in benchmarks.rows})
    rows = [
        [
            soc,
            dtype,
            release,
            str(lines.token_seconds.rows),
            *(f"{line.spread:.2f}" for line in (lines.token_seconds, lines.prompt_seconds, lines.memory_bytes)),
        ]
        for soc, dtype in kinds
        for release in sorted(PROTOCOLS)
        if (lines := lines_of(benchmarks, soc, dtype, release)) is not None
    ]
    drawn = table(["chip", "dtype", "SDK", "rows", "seconds per token", "first token", "memory"], rows)
    return page([f"{before}{BEGIN}", "", *drawn, f"{END}{rest.partition(END)[2]}"])


def serving_page() -> str:
    """Return docs/reference/serving-api.md with the table of fields."""
    before, _, rest = (DOCS / "reference/serving-api.md").read_text().partition(BEGIN)
    lines = [f"{before}{BEGIN}", ""]
    lines += [*(f"- **{effect}**: {meaning}" for effect, meaning in compatibility.MEANINGS.items()), ""]
    for path in dict.fromkeys(field.path for field in compatibility.FIELDS):
        rows = [[f"`{one.name}`", one.llamacpp, one.rkllm, one.note] for one in compatibility.FIELDS if one.path == path]
        lines += [f"### {path}", "", *table(["field", "llamacpp", "rkllm", ""], rows)]
    return page([*lines, f"{END}{rest.partition(END)[2]}"])


# ---- Tables of the vendor's toolkit --------------------------------------------------------------------------------------------


def platforms_page() -> str:
    """Return docs/reference/toolkit-platforms.md."""
    lines = [
        "# What RKLLM-Toolkit takes",
        "",
        "The tables that `rkfleet toolkit convert` checks before it starts anything, and whose rows its refusals name. `rkfleet toolkit",
        "platforms --soc CHIP --release RELEASE` shows the rows of one chip and one release. A value without a release is taken by all",
        f"that are known here: {', '.join(platforms.RELEASES)}.",
        "Sources: the vendor's guides and the release tags of its repository. Written by `make docs` from `toolkit/platforms.py`.",
        "",
    ]
    rows = list(platforms.rows())
    for name in dict.fromkeys(row.table for row in rows):
        cells = [[row.key, ", ".join(f"`{value}`" for value in platforms.spans(row))] for row in rows if row.table == name]
        lines += [f"## `{name}`", "", *table(["row", "takes"], cells)]
    return page(lines)


PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "reference/metrics.md": metrics_page,
    "reference/cli.md": cli_page,
    "reference/kinds.md": kinds_page,
    "reference/failures.md": failures_page,
    "concepts/sessions.md": sessions_page,
    "reference/serving-api.md": serving_page,
    "reference/toolkit-platforms.md": platforms_page,
    "concepts/performance-model.md": performance_page,
}


def main() -> int:
    """Write every page, or compare it; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; end with status 1 if a page differs")
    check = parser.parse_args().check
    stale = [name for name, made in PAGES.items() if not (DOCS / name).exists() or (DOCS / name).read_text() != made()]
    for name in stale:
        if check:
            print(f"docs/{name} is not what the code says; run: make docs", file=sys.stderr)  # noqa: T201
        else:
            (DOCS / name).parent.mkdir(exist_ok=True)
            (DOCS / name).write_text(PAGES[name]())
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
