"""The tree of `rkfleet toolkit`, and the one place where its errors become a sentence and an exit status.

A command is a function `command` in a module of this package, imported when it is called, so that `--help` stays fast.
They are listed in the order of use: look, try, judge, foretell, choose, quantize, write.
"""

from __future__ import annotations

import os
import sys

import typer

from rkfleet.errors import FailedPrecondition, FleetError, Invalid
from toolkit.commands import (
    calibrate,
    chat,
    compare,
    convert,
    convert_onnx,
    gguf,
    inspect,
    perplexity,
    platforms,
    profile,
    publish,
    quantize,
    recommend,
)

__all__ = ["app", "main"]

app = typer.Typer(
    name="rkfleet toolkit",
    help="Convert, quantize, simulate and prove a model on this machine, before a single board sees it.",
    no_args_is_help=True,
    add_completion=False,  # The shell completes `rkfleet`; this program is what that becomes.
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)

for _name, _module in (
    ("inspect", inspect),
    ("chat", chat),
    ("perplexity", perplexity),
    ("compare", compare),
    ("profile", profile),
    ("recommend", recommend),
    ("platforms", platforms),
    ("calibrate", calibrate),
    ("quantize", quantize),
    ("gguf", gguf),
    ("convert", convert),
    ("convert-onnx", convert_onnx),
    ("publish", publish),
):
    app.command(_name)(_module.command)


@app.callback()
def _group() -> None:
    """Keep commands words of their own."""


def main() -> None:
    """Run the command line; every failure is one sentence on standard error and its exit status."""
    try:
        app(prog_name="rkfleet toolkit")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output left; nothing to add
        sys.exit(1)
    except OSError as error:  # What the parts below do not expect: a full disk, a directory that went away.
        print(f"error: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(FailedPrecondition.exit_status)
    except FleetError as error:
        print(f"error: {error.message}", file=sys.stderr)
        for cause in error.causes if isinstance(error, Invalid) else ():
            line = f"{cause.field}: {cause.message}"
            if line not in error.message:
                print(f"  {line}", file=sys.stderr)
        sys.exit(error.exit_status)
