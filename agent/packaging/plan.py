"""What an installation of the agent as a service consists of, as files. Pure: nothing is looked up or written here.

In: `Choices`. Out: files, links and what to do with them. Called by `agent/packaging/install.py`, which writes them below `/` or below the
root of an image.

Source: systemd.unit(5), systemd.service(5), systemd.exec(5), sysusers.d(5) of systemd 247 and later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

import msgspec

__all__ = [
    "AGENT_UNIT",
    "DATA_DIR",
    "JOIN_TOKEN",
    "MANIFEST",
    "STANDALONE_DIR",
    "USER",
    "Choices",
    "Entry",
    "agent_arguments",
    "entries",
    "is_hidden",
]

AGENT_UNIT: Final = "rkfleet-agent.service"
USER: Final = "rkfleet"
DATA_DIR: Final = "/var/lib/rkfleet"
STANDALONE_DIR: Final = f"{DATA_DIR}/standalone"
UNITS: Final = "/etc/systemd/system"
MANIFEST: Final = "/etc/rkfleet/installed.json"
JOIN_TOKEN: Final = "/etc/rkfleet/join-token"  # noqa: S105 (a path)
PYTHON: Final = "/opt/rkfleet/bin/python"  # As the units of this package spell it; replaced by where it is.
_CREDENTIAL: Final = "join-token"

# What the unit hides from the agent: ProtectHome and PrivateTmp.
_HOMES: Final = ("/home", "/root", "/run/user")
_TEMPORARY: Final = ("/tmp", "/var/tmp")  # noqa: S108 (named to be refused)


class Choices(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator decides.

    Attributes:
        python: Interpreter with rkfleet, as the running system will see it.
        controller: URL of the fleet's API; empty for a board without a fleet.
        name: Name of the board.
        token: Content of the file with the join token; empty for a board that has joined.
        models: Options and absolute paths of model files, and of what goes with them, of a board without a fleet.
        more: Further arguments of the agent.
        npu_load: Whether the group of the agent may look into debugfs, where the driver shows the load of the NPU.
    """

    python: str
    controller: str = ""
    name: str = ""
    token: bytes = b""
    models: tuple[tuple[str, str], ...] = ()
    more: tuple[str, ...] = ()
    npu_load: bool = False


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One file or, with `target`, one symbolic link, at an absolute path."""

    path: str
    content: bytes = b""
    mode: int = 0o644
    target: str = ""


def agent_arguments(choices: Choices) -> tuple[str, ...]:
    """Return the arguments of `python -m agent`."""
    if choices.models:
        models = (word for option_and_path in choices.models for word in option_and_path)
        return ("--standalone", "--data-dir", STANDALONE_DIR, *models, *choices.more)
    token = ("--token-file", f"${{CREDENTIALS_DIRECTORY}}/{_CREDENTIAL}") if choices.token else ()
    return ("--data-dir", DATA_DIR, "--controller", choices.controller, "--name", choices.name, *token, *choices.more)


def is_hidden(path: str) -> bool:
    """Return whether the unit hides this path from the agent, and nothing can be done about it but to put it elsewhere."""
    return _below(path, _HOMES + _TEMPORARY)


def entries(choices: Choices, units: Mapping[str, str]) -> tuple[Entry, ...]:
    """Return everything to write; `units` are the unit files of this package by name."""
    made = [Entry(path="/etc/sysusers.d/rkfleet.conf", content=_SYSUSERS.encode())]
    if choices.token:
        made.append(Entry(path=JOIN_TOKEN, content=choices.token, mode=0o600))
    for name, text in sorted(units.items()):
        made.append(Entry(path=f"{UNITS}/{name}", content=text.replace(PYTHON, unit_word(choices.python)).encode()))
        made += (
            Entry(path=f"{UNITS}/{wanting}.wants/{name}", target=f"../{name}") for wanting in re.findall(r"(?m)^WantedBy=(\S+)$", text)
        )
    made.append(Entry(path=f"{UNITS}/{AGENT_UNIT}.d/10-install.conf", content=_drop_in(choices).encode()))
    if choices.npu_load:
        made.append(Entry(path=f"{UNITS}/sys-kernel-debug.mount.d/rkfleet.conf", content=_DEBUGFS.encode()))
    return tuple(made)


def unit_word(text: str) -> str:
    """Return one word of a command line or of a list of paths, as unit files write it; `${NAME}` stays a variable."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    escaped = re.sub(r"\$(?!\{CREDENTIALS_DIRECTORY\})", "$$", escaped)
    return escaped if re.fullmatch(r"[\w@%+=:,./${}-]+", escaped) else f'"{escaped}"'


def _drop_in(choices: Choices) -> str:
    words = " ".join(unit_word(word) for word in (choices.python, "-m", "agent", *agent_arguments(choices)))
    lines = ["# Written by rkfleet agent install, which also takes it away.", "[Service]", "ExecStart=", f"ExecStart={words}"]
    if choices.token:
        lines.append(f"LoadCredential={_CREDENTIAL}:{JOIN_TOKEN}")
    seen = sorted({str(PurePosixPath(path).parent) for _, path in choices.models if _below(path, _HOMES)})
    if seen:
        # The directory, not the file: a file that is replaced is another file.
        lines += ["ProtectHome=tmpfs", *(f"BindReadOnlyPaths={unit_word(path.replace(':', chr(92) + ':'))}" for path in seen)]
    return "\n".join(lines) + "\n"


def _below(path: str, directories: tuple[str, ...]) -> bool:
    return any(PurePosixPath(path).is_relative_to(directory) for directory in directories)


_SYSUSERS: Final = f"""\
# Written by rkfleet agent install, which also takes it away. The agent opens the NPU's nodes as a member of render and video.
u {USER} - "rkfleet agent" {DATA_DIR}
m {USER} render
m {USER} video
"""

# Source: Documentation/filesystems/debugfs.rst (options gid and mode); mount(8) turns the group's name into its number.
_DEBUGFS: Final = f"""\
# Written by rkfleet agent install --npu-load, which also takes it away: the agent may read /sys/kernel/debug/rknpu/load.
[Mount]
Options=nosuid,nodev,noexec,gid={USER},mode=0750
"""
