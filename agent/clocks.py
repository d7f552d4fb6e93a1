"""The helper for clocks: the one privileged program of a board, `python -m agent.clocks`.

In: one of three verbs from the agent's user, over a socket: `read`, `apply`, `undo`. Out: one line of JSON with how each clock stands. It
runs as root because sysfs lets nobody else fix a clock, so that the agent need not. No path and no value crosses the socket: what `apply`
writes is the profile of the chip that it finds by itself, what `undo` writes is what it has recorded. It serves one caller at a time,
imports the standard library only, and changes nothing when it starts or stops.

`agent/packaging/rkfleet-clocks.service` runs it under systemd; `agent/board/clock_control.py` is its client.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agent.board import profile, soc, tuning
from agent.board.clock_wire import RECORD_NAME, SOCKET, VERB_BYTES_MAX, VERBS
from agent.board.kernel import observe_boot_id

__all__ = ["Helper", "main", "serve"]

RECORD: Final = Path("/var/lib/rkfleet-clocks") / RECORD_NAME
USER: Final = "rkfleet"
CALLER_SECONDS: Final = 2.0  # A caller that says nothing keeps others waiting no longer than this.
BACKLOG: Final = 8
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid; unix(7), SO_PEERCRED.


class Helper:
    """What the three verbs do on this board.

    Args:
        root: File system root.
        record: File that remembers what was changed.
    """

    def __init__(self, root: Path, record: Path) -> None:
        self._root: Final = root
        self._record: Final = record
        self._soc: Final = soc.observe_soc(root)

    def answer(self, verb: str) -> tuple[tuple[profile.Item, ...], str]:
        """Do what a verb says; return how each clock stands, and in one sentence why nothing could be done."""
        found = profile.find_profile(self._soc)
        boot_id = observe_boot_id(self._root)
        items: tuple[profile.Item, ...] = ()
        problem = ""
        try:
            if verb == "undo":
                items = tuning.undo(self._root, self._record, boot_id)
            elif found is None:
                problem = f"there is no clock profile for {self._soc.model or 'this machine, which is no RK3588 or RK3576'}"
            elif verb == "apply":
                items = tuning.apply(self._root, found, self._record, boot_id)
            else:
                items = tuning.read(self._root, found)
        except OSError as error:
            problem = f"{self._record} cannot be written, so no clock was changed: {error.strerror}"
        return items, problem


def serve(helper: Helper, listener: socket.socket, allowed: frozenset[int]) -> None:
    """Answer callers whose user is allowed, one after the other, for ever."""
    while True:
        caller, _ = listener.accept()
        with caller:
            caller.settimeout(CALLER_SECONDS)
            with contextlib.suppress(OSError):
                items, problem = _answer(helper, caller, allowed)
                caller.sendall(json.dumps({"items": items, "problem": problem}).encode() + b"\n")


def _answer(helper: Helper, caller: socket.socket, allowed: frozenset[int]) -> tuple[tuple[profile.Item, ...], str]:
    pid, uid, _ = _CREDENTIALS.unpack(caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    verb = _verb(caller)  # Read from everybody: an answer on top of unread words would be lost with them.
    if uid not in allowed:
        _say(f"refused process {pid} of user {uid}")
        return (), f"user {uid} may not change clocks"
    if verb not in VERBS:
        return (), f"the verb must be one of {', '.join(VERBS)}"
    items, problem = helper.answer(verb)
    if verb != "read":
        _say(f"{verb} for process {pid} of user {uid}: {problem or 'done'}")
    return items, problem


def _verb(caller: socket.socket) -> str:
    """Return the line that the caller sent; empty for none, or for one that is too long."""
    line = b""
    while not line.endswith(b"\n"):
        piece = caller.recv(VERB_BYTES_MAX + 1 - len(line))
        if not piece:
            return ""
        line += piece
        if len(line) > VERB_BYTES_MAX:
            return ""
    return line.strip().decode("ascii", "replace")


def _listen(path: Path, gid: int) -> socket.socket:
    """Return a socket that root and the group of the agent's user can connect to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o117)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    if path.stat().st_gid != gid:
        os.chown(path, -1, gid)
    listener.listen(BACKLOG)
    return listener


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _once(helper: Helper, verb: str) -> int:
    """Do a verb without the socket, for whoever has no agent or takes it away; print a line for each clock and return the exit status."""
    items, problem = helper.answer(verb)
    for item in items:
        wanted = "" if item.outcome in {"pinned", "restored"} else f", wanted {item.wanted}"
        sys.stdout.write(f"{item.name.ljust(6)}{item.outcome.ljust(10)}{item.got}{wanted}{f': {item.why}' if item.why else ''}\n")
    if problem:
        _say(f"error: {problem}")
    good = {"pinned", "highest", "restored"}
    return 1 if problem or any(item.needed and item.outcome not in good for item in items) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m agent.clocks", description="Set this board's clocks for the agent. Run it as root.")
    add = parser.add_argument
    add("--socket", type=Path, default=SOCKET, metavar="FILE", help="where to listen (default %(default)s)")
    add("--record", type=Path, default=RECORD, metavar="FILE", help="what was changed, for undoing it (default %(default)s)")
    add("--user", default=USER, metavar="NAME", help="the agent's user, who may ask beside root (default %(default)s)")
    add("--filesystem-root", type=Path, default=Path("/"), metavar="DIR", help="where /proc and /sys are (default %(default)s)")
    add("--once", choices=VERBS, help="do this here and now, print what came of it, and end")
    words = parser.parse_args(arguments)
    helper = Helper(words.filesystem_root, words.record)
    if words.once:
        return _once(helper, words.once)
    try:
        user = pwd.getpwnam(words.user)
    except KeyError:
        _say(f"error: user {words.user!r} of --user does not exist")
        return 3
    try:
        listener = _listen(words.socket, user.pw_gid)
    except OSError as error:
        _say(f"error: cannot listen at {words.socket}: {error.strerror}")
        return 1
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    _say(f"listening at {words.socket} for root and {words.user}")
    try:
        serve(helper, listener, frozenset({0, user.pw_uid}))
    except KeyboardInterrupt:
        return 0
    finally:
        listener.close()
        words.socket.unlink(missing_ok=True)
    raise AssertionError("serving ends by a signal")


if __name__ == "__main__":
    sys.exit(main())
