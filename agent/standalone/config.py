"""What the command line of a board without a fleet says, as one frozen value.

In: arguments of `python -m agent --standalone`. Out: `Options`. Called by `agent/__main__.py`. It stands apart from `agent/config.py`
because the two programs share neither a required argument nor a directory.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.config import Config, add_client_options, add_machine_options, read_client_flags
from rkfleet.ports import port_argument

__all__ = ["HOST", "PORT", "Companion", "Options", "add_model_options", "parse_arguments"]

PORT: Final = 8080  # What llama.cpp's own server takes, so that clients which were set up for it find this one.
HOST: Final = "127.0.0.1"  # /v1 asks nobody for a key here.
BOARD: Final = "standalone"
MODELS_MAX: Final = 16  # Each is a process with its weights in memory.
NAME_LENGTH_MAX: Final = 128  # As `ModelDeployment.spec.servedModelName`.

_COMPANIONS: Final = {
    "template": "chat template (Jinja) of the RKLLM model before it (default: MODEL.jinja or chat_template.jinja beside it)",
    "adapter": "LoRA of the RKLLM model before it; may be repeated, requests name it MODEL:ADAPTER",
    "encoder": "image encoder (.rknn) of the RKLLM model before it",
    "config": "JSON file that says what the encoder takes (default: config.json beside it)",
}


class Companion(msgspec.Struct, frozen=True, kw_only=True):
    """A file that goes with a model: `role` as in `AssignedFile`, its absolute path, and whose it is where it was named for a model."""

    role: str
    path: Path
    model: Path | None = None


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How one board serves model files by itself.

    Attributes:
        models: Model files, absolute.
        companions: Files that were named for one of them.
        names: Name that clients ask for, one for each model; empty takes the file's.
        port: Port on loopback; None takes PORT if it is free, else any; 0 takes any.
        context_tokens: Largest context of one request; 0 takes what the model was trained for, within limits.
        agent: Everything that a board of a fleet may be told about its machine as well.
    """

    models: tuple[Path, ...]
    companions: tuple[Companion, ...] = ()
    names: tuple[str, ...] = ()
    port: int | None = None
    context_tokens: int = 0
    agent: Config


def parse_arguments(arguments: Sequence[str]) -> Options:
    """Read the command line; exits with status 2 and a usage line when it cannot be read."""
    parser = _parser()
    values = vars(parser.parse_args(arguments))
    models = tuple(path.absolute() for path in values["models"])
    companions = tuple(values.pop("companions", ()))
    names = tuple(values["names"] or ())
    if len(models) > MODELS_MAX:
        parser.error(f"--model is given {len(models)} times, at most {MODELS_MAX} are served by one board")
    if len(set(models)) < len(models):
        parser.error(f"--model names {next(str(path) for path in models if models.count(path) > 1)} twice")
    if names and len(names) != len(models):
        parser.error(f"--name is given {len(names)} times and --model {len(models)} times; give a name for each model, or none")
    read_client_flags(parser, values)
    if values["client_host"] and not values["client_tls_cert"]:
        parser.error(
            f"--client-host {values['client_host']}: a board without a fleet has no certificate; give --client-tls-cert and its key"
        )
    port, context_tokens = values["port"], values["context_tokens"]
    fields = ((name, values[name]) for name in Config.__struct_fields__ if name in values)
    machine: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields}
    agent = Config(controller="", name=BOARD, ops_host=HOST, ops_port=port or 0, **machine)
    return Options(models=models, companions=companions, names=names, port=port, context_tokens=context_tokens, agent=agent)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rkfleet agent run --standalone",
        description="Serve model files on this machine's loopback, without a controller: OpenAI's API, one process for each model.",
    )
    add = parser.add_argument
    add("--standalone", action="store_true", required=True, help="serve by itself; without it the agent belongs to a fleet")
    add_model_options(parser, required=True)
    add("--name", dest="names", type=_served_name, action="append", metavar="SERVED", help="name for clients (default: the file's name)")
    add("--port", type=port_argument, default=None, help=f"port (default {PORT}, or any free one when that is taken; 0 = any)")
    add(
        "--data-dir",
        type=Path,
        default=Path.home() / ".rkfleet" / "standalone",
        help="what is remembered of model files (default ~/.rkfleet/standalone)",
    )
    add(
        "--context",
        dest="context_tokens",
        type=_tokens,
        default=0,
        metavar="N",
        help="tokens of prompt and answer together (default: what the model was trained for, at most 4096)",
    )
    add_client_options(parser)
    add_machine_options(parser, log_level="error")
    return parser


def add_model_options(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add `--model`, and what may stand behind it for a model of the NPU: `models` are paths, `companions` those with their model."""
    add = parser.add_argument
    what = "GGUF or RKLLM file; may be repeated"
    add(
        "--model", dest="models", type=Path, action="append", default=None if required else [], required=required, metavar="FILE", help=what
    )
    for role, what in _COMPANIONS.items():
        add(f"--{role}", dest="companions", type=Path, action=_AddCompanion, const=role, default=(), metavar="FILE", help=what)


class _AddCompanion(argparse.Action):
    """A file of the `--model` before it."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, path: object, option: str | None = None) -> None:
        assert isinstance(path, Path)
        role = str(self.const)
        models = [model.absolute() for model in namespace.models or ()]
        if not models:
            parser.error(f"{option} {path} stands before every --model; write it behind the one that it goes with")
        before = [one for one in namespace.companions if one.model == models[-1] and one.role == role]
        if before and role != "adapter":
            parser.error(f"{option} is given twice for --model {models[-1]}")
        namespace.companions = (*namespace.companions, Companion(role=role, path=path.absolute(), model=models[-1]))


def _served_name(text: str) -> str:
    if not text or len(text) > NAME_LENGTH_MAX or any(letter.isspace() for letter in text):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} must be 1..{NAME_LENGTH_MAX} characters without spaces")
    return text


def _tokens(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1 << 20:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of tokens, 1..{1 << 20}")
    return int(text)
