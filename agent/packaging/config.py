"""What the command lines of `rkfleet agent install` and `uninstall` say.

In: arguments. Out: a call that does it. Called by `agent/packaging/__main__.py`. The arguments of the agent itself are checked here by its
own parser, so that a service is not installed that cannot start.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from agent import config
from agent.packaging import plan
from agent.packaging.install import RUNNING, Installer, unit_files
from agent.standalone import config as standalone_config
from rkfleet.errors import FailedPrecondition, Invalid, PermissionDenied
from rkfleet.identity import read_join_token

__all__ = ["parse_arguments"]

ROOT: Final = Path("/")


def parse_arguments(arguments: Sequence[str]) -> Callable[[], None]:
    """Return what the command line asks for; exits with status 2 and a usage line when it cannot be read.

    The call raises PermissionDenied without root, Invalid and FailedPrecondition as their messages say.
    """
    parser = _parser()
    found, more = parser.parse_known_args(arguments)
    if found.command == "uninstall":
        if more:
            parser.error(f"uninstall does not know {more[0]}")
        return functools.partial(_uninstall, found)
    if bool(found.controller) == bool(found.models):
        parser.error("install needs either --controller URL or --standalone --model FILE")
    if bool(found.models) != found.standalone:
        parser.error("--standalone and --model FILE go together")
    # The rest is the agent's, whose own parser judges it.
    return functools.partial(_install, found, tuple(word for word in more if word != "--"))


def _install(found: argparse.Namespace, more: tuple[str, ...]) -> None:
    _need_root(found, "install")
    if plan.is_hidden(found.python):
        raise FailedPrecondition(
            f"rkfleet runs from {found.python}, which a service does not see; install it where it does: python3 -m venv /opt/rkfleet && "
            "in a checkout /opt/rkfleet/bin/pip install '.[agent,cpu]', then /opt/rkfleet/bin/rkfleet agent install"
        )
    models = []
    for model in (path.absolute() for path in found.models or ()):
        named = [one for one in found.companions if one.model == model]
        for option, path in (("--model", model), *((f"--{one.role}", one.path) for one in named)):
            models.append((option, str(_readable_model(path, found.prefix))))
    if found.token_file is not None:
        read_join_token(found.token_file)  # says now what the service would say later
    choices = plan.Choices(
        python=found.python,
        controller=found.controller,
        name=found.name or platform.node().partition(".")[0].lower(),
        token=found.token_file.read_bytes() if found.token_file is not None else b"",
        models=tuple(models),
        more=more,
        npu_load=found.npu_load,
    )
    # Its usage line says what is wrong.
    (standalone_config.parse_arguments if models else config.parse_arguments)(plan.agent_arguments(choices))
    entries = plan.entries(choices, unit_files())
    _installer(found).install(entries, token=plan.JOIN_TOKEN)
    if found.npu_load:
        _say("debugfs opens for the agent at the next boot, or with: systemctl restart sys-kernel-debug.mount")


def _uninstall(found: argparse.Namespace) -> None:
    _need_root(found, "uninstall")
    _installer(found).uninstall(purge=found.purge)


def _installer(found: argparse.Namespace) -> Installer:
    return Installer(found.prefix, _say, dry_run=found.dry_run, systemd=found.prefix == ROOT and RUNNING.is_dir())


def _need_root(found: argparse.Namespace, word: str) -> None:
    if found.prefix == ROOT and not found.dry_run and os.geteuid() != 0:
        raise PermissionDenied(f"rkfleet agent {word} writes to /etc and needs root; try: sudo {sys.prefix}/bin/rkfleet agent {word} ...")


def _readable_model(path: Path, prefix: Path) -> Path:
    """Return the path of a model as the service will see it.

    Raises:
        Invalid: The service could not read it.
    """
    at = prefix / str(path).removeprefix("/")
    if plan.is_hidden(str(path)) and not path.is_relative_to("/home") and not path.is_relative_to("/root"):
        raise Invalid(f"model file {path} lies where the service does not see it; put it into /var/lib/rkfleet-models, for example")
    try:
        if not at.stat().st_mode & stat.S_IROTH:
            raise Invalid(f"model file {at} may not be read by the service; try: chmod o+r {at}")
    except OSError as error:
        raise Invalid(f"model file {at} cannot be read: {error.strerror or error}") from error
    return path


def _say(sentence: str) -> None:
    sys.stdout.write(f"{sentence}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rkfleet agent", description="Make the agent a service of this system, or take it away again.")
    commands = parser.add_subparsers(dest="command", required=True)
    install = commands.add_parser(
        "install",
        help="write the units, make the user, enable and start",
        allow_abbrev=False,
        epilog="Other options go to the agent as they are, for example --serving-host 0.0.0.0 --advertise-host 10.0.0.17; "
        "see rkfleet agent run --help.",
    )
    add = install.add_argument
    add("--controller", default="", metavar="URL", help="API of the controller, https://HOST:7443")
    add("--token-file", type=Path, metavar="FILE", help="token and pin of the first start: rkfleet join-token create --token-file FILE")
    add("--name", default="", help="name of the board (default: the host's)")
    add("--standalone", action="store_true", help="serve by itself, without a fleet")
    standalone_config.add_model_options(install, required=False)
    add("--npu-load", action="store_true", help="let the agent read the load of the NPU from debugfs (mounts it with a group)")
    add("--python", default=sys.executable, help="interpreter that has rkfleet, as the running system sees it (default: this one)")
    uninstall = commands.add_parser("uninstall", allow_abbrev=False, help="stop, and remove what install wrote")
    uninstall.add_argument("--purge", action="store_true", help="also remove identity, ledger and artifacts")
    for command in (install, uninstall):
        command.add_argument("--prefix", type=Path, default=ROOT, metavar="DIR", help="root to write below (default %(default)s)")
        command.add_argument("--dry-run", action="store_true", help="say every step and take none")
    return parser
