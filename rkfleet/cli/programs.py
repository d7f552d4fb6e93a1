"""Commands that become programs, each with its own words.

`rkfleet controller|registry|agent|gateway|simulated-boards run`, `rkfleet controller backup|restore`, `rkfleet agent install|uninstall`,
`rkfleet simulate|doctor|toolkit`, `rkfleet simulated-runtime build`. Each becomes the program; further words are the program's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final

import typer

__all__ = ["PROGRAMS", "doctor", "program_app", "simulate", "simulated_runtime_app", "toolkit"]

PROGRAMS: Final = {
    "controller": ("controller", "The controller: API, store, reconcilers, board sessions."),
    "registry": ("controller.registry", "The model registry."),
    "agent": ("agent", "The agent of one board."),
    "gateway": ("gateway", "The OpenAI endpoint of the fleet."),
    "simulated-boards": ("simulation.boards", "The host of simulated boards."),
}

_BACKUP_COMMANDS: Final = {
    "backup": "Back it up into one file, also while it runs; see backup --help.",
    "restore": "Bring it back to a backup; see restore --help.",
}
_SERVICE_COMMANDS: Final = {
    "install": "Make the agent a service of this system; see install --help.",
    "uninstall": "Stop the service and remove what install wrote; see uninstall --help.",
}
_PASSED_ON: Final = {"allow_extra_args": True, "ignore_unknown_options": True}


def program_app(name: str) -> typer.Typer:
    """Return the sub-command of one program."""
    module, help_text = PROGRAMS[name]
    app = typer.Typer(help=help_text, no_args_is_help=True)

    @app.callback()
    def group() -> None:
        """Keep `run` a word of its own while it is the only command."""

    @app.command(context_settings=_PASSED_ON, add_help_option=False, help="Run it; see run --help.")
    def run(context: typer.Context) -> None:
        os.execv(sys.executable, [sys.executable, "-m", module, *context.args])  # noqa: S606 (the same interpreter)

    for word, sentence in _SERVICE_COMMANDS.items() if name == "agent" else ():
        app.command(word, context_settings=_PASSED_ON, add_help_option=False, help=sentence)(_word_of("agent.packaging", word))
    for word, sentence in _BACKUP_COMMANDS.items() if name == "controller" else ():
        app.command(word, context_settings=_PASSED_ON, add_help_option=False, help=sentence)(_word_of("controller", word))
    group.__doc__ = help_text
    return app


def _word_of(module: str, word: str) -> Callable[[typer.Context], None]:
    def become(context: typer.Context) -> None:
        os.execv(sys.executable, [sys.executable, "-m", module, word, *context.args])  # noqa: S606 (the same interpreter)

    return become


def simulate(context: typer.Context) -> None:
    """Hollow boards by the thousand, to test how much a controller carries; see simulate --help."""
    os.execv(sys.executable, [sys.executable, "-m", "simulation.hollow", *context.args])  # noqa: S606 (the same interpreter)


def simulated_runtime_app() -> typer.Typer:
    """Return the sub-command that builds the simulated runtime."""
    app = typer.Typer(help="A librkllmrt.so that needs no NPU.", no_args_is_help=True)

    @app.callback()
    def group() -> None:
        """Keep `build` a word of its own while it is the only command."""

    @app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
    def build(context: typer.Context) -> None:
        """Build a librkllmrt.so that needs no NPU, with gcc, and print its path."""
        os.execv(sys.executable, [sys.executable, "-m", "simulation.runtime", *context.args])  # noqa: S606 (the same interpreter)

    group.__doc__ = app.info.help
    return app


def doctor(context: typer.Context) -> None:
    """Say what is wrong with this board and what to type; --self-test tries a model out; needs no controller; see doctor --help."""
    if "--self-test" in context.args and "--events" not in context.args and sys.stdout.isatty():
        from rkfleet.cli import self_test

        raise typer.Exit(self_test.run(context.args))
    os.execv(sys.executable, [sys.executable, "-m", "agent.doctor", *context.args])  # noqa: S606 (the same interpreter)


def toolkit(context: typer.Context) -> None:
    """Convert, quantize, simulate and prove a model on this machine; see toolkit --help."""
    os.execv(sys.executable, [sys.executable, "-m", "toolkit", *context.args])  # noqa: S606 (the same interpreter)
