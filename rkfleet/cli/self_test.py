"""`rkfleet doctor --self-test` on a terminal: what is being tried now, and what was found, as it comes.

In: the words of the command line. Out: the self-test's own exit status. It runs `python -m agent.doctor --self-test --events` and shows its
events; the program itself prints plain lines, and needs no library for terminals. Called by `programs.py`, which becomes that program
instead where nobody looks.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["run", "show"]

_MARKS: Final = {"passed": "[green]✓[/]", "failed": "[red]✗[/]", "skipped": "[dim]-[/]"}
_STOPPED: Final = 128 + signal.SIGINT


def run(words: Sequence[str]) -> int:
    """Run the self-test, show it, and return its exit status."""
    from rich.console import Console

    command = [sys.executable, "-m", "agent.doctor", *words, "--events"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            show(child.stdout, Console())
        except KeyboardInterrupt:  # it got the same signal, and unloads the model before it ends
            child.wait()
            return _STOPPED
        return child.wait()


def show(lines: Iterable[str], console: Console) -> None:
    """Show events as they come; other lines are shown as they are."""
    from rich.markup import escape
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        doing = progress.add_task("The board")
        for line in lines:
            event = _event(line)
            match event.get("event"):
                case "begin":
                    progress.reset(doing, description=escape(str(event["title"])))
                case "end":
                    for text in _outcome(event, escape):
                        console.print(text, highlight=False)
                case "over":
                    console.print(_sum(event, escape), highlight=False)
                case _:
                    console.print(escape(line.rstrip("\n")), highlight=False)


def _event(line: str) -> Mapping[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _outcome(event: Mapping[str, Any], escape: Any) -> list[str]:
    seconds = f" [dim]{event['seconds']:.1f} s[/]" if event.get("seconds") else ""
    found = [f"{_MARKS[event['status']]} [bold]{escape(event['title'])}[/]  {escape(event['sentence'])}{seconds}"]
    if event["status"] != "failed":
        return found
    if known := event.get("failure"):
        found.append(f"  [yellow]known failure {known['number']}, {known['reason']}:[/] {escape(known['message'])}")
    if event.get("remedy"):
        found.append(f"  [cyan]try:[/] {escape(event['remedy'])}")
    return [*found, *(f"  [dim]| {escape(line)}[/]" for line in event.get("lines", ()))]


def _sum(event: Mapping[str, Any], escape: Any) -> str:
    simulated = "\n[yellow]simulated: yes; no NPU and no model were used[/]" if event.get("simulated") else ""
    number = f"{event['passed']} passed, {event['failed']} failed, {event['skipped']} skipped in {event['seconds']:.0f} s"
    return f"[bold]{number}[/]{simulated}\nreport: {escape(event['report'])}"
