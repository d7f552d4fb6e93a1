"""The options of `rkfleet doctor --self-test`.

In: the doctor's parser, then its words. Out: `Options`. Called by `agent/doctor.py` and `program.py`; apart from the latter because a
doctor without a self-test needs nothing of it but these.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from agent.selftest.values import Options
from rkfleet.errors import Invalid, NotFound

__all__ = ["add_arguments", "given_option", "options_of"]

MODELS_MAX: Final = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the self-test's options to the doctor's."""
    group = parser.add_argument_group(
        "self-test", "Run a model and measure; at most five minutes, no controller. See the guide to the first board."
    )
    add = group.add_argument
    add("--self-test", action="store_true", help="try out runtime library and model, and write a report")
    add(
        "--model",
        dest="models",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help=".rkllm file; given twice, both are loaded together",
    )
    add("--adapter", type=Path, metavar="FILE", help="LoRA of the model, converted (.rkllm)")
    add("--encoder", type=Path, metavar="FILE", help="image encoder of the model (.rknn)")
    add("--config", type=Path, metavar="FILE", help="the model's config.json, for the encoder (default: the one beside it)")
    add("--template", type=Path, metavar="FILE", help="chat template (Jinja); runtimes before 1.2 bring none")
    add("--reference", default="", metavar="MODEL", help="row of the benchmark table to compare with (default: by the file's name)")
    add("--dtype", default="", metavar="D", help="quantization of that row, such as w8a8 (default: what the runtime says)")
    add("--events", action="store_true", help="print JSON objects while it runs, for programs")


def given_option(words: argparse.Namespace) -> str:
    """Return the first option of the self-test that was given, empty for none."""
    names = {
        "models": "--model",
        **{name: f"--{name}" for name in ("adapter", "encoder", "config", "template", "reference", "dtype", "events")},
    }
    return next((option for name, option in names.items() if getattr(words, name)), "")


def options_of(words: argparse.Namespace) -> Options:
    """Return what to test.

    Raises:
        NotFound: A file that was named is not there.
        Invalid: More models than can be tested, or files that need one.
    """
    if len(words.models) > MODELS_MAX:
        raise Invalid(f"--model was given {len(words.models)} times; at most {MODELS_MAX} models are loaded together")
    beside = words.encoder.parent / "config.json" if words.encoder is not None else None
    config = words.config or (beside if beside is not None and beside.is_file() else None)
    named = {"adapter": words.adapter, "encoder": words.encoder, "config": config, "template": words.template}
    for name, path in [*(("model", path) for path in words.models), *named.items()]:
        if path is not None and not path.is_file():
            raise NotFound(f"file {path} of --{name} is not there")
        if path is not None and not words.models:
            raise Invalid(f"--{name} needs a --model")
    if words.encoder is not None and config is None:
        raise Invalid(f"--encoder needs the model's config.json; there is none beside {words.encoder}, name it with --config")
    return Options(
        models=tuple(words.models),
        libraries=tuple(words.runtime_libraries),
        reference=words.reference,
        dtype=words.dtype,
        root=words.filesystem_root,
        data_dir=words.data_dir,
        **named,
    )
