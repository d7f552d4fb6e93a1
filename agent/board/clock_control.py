"""Who sets the clocks: the helper if it is there, this process if it may, else nobody, and then how to get the helper.

In: the file system root, a file for the record, the helper's socket. Out: `Answer`. Called by `agent/watch.py`. Reading needs no privilege
and is done here; `apply` and `undo` block, the helper's answer for at most `HELPER_SECONDS`.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final, Literal

import msgspec

from agent.board import kernel, profile, soc, tuning
from agent.board.clock_wire import ANSWER_BYTES_MAX
from agent.board.profile import Item

__all__ = ["Answer", "ClockControl"]

# Thirty writes; a change of the memory's clock waits for a picture to end, some tens of milliseconds.
HELPER_SECONDS: Final = 10.0


class _Told(msgspec.Struct, frozen=True):
    """What the helper answers."""

    items: tuple[Item, ...] = ()
    problem: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of setting clocks.

    Attributes:
        by: Who did it.
        problem: Why nobody could; empty if somebody did, even if single clocks did not follow.
    """

    items: tuple[Item, ...] = ()
    by: Literal["helper", "agent", "nobody"] = "nobody"
    problem: str = ""


class ClockControl:
    """The clocks of one board.

    Args:
        root: File system root.
        record: File that remembers what this process itself changed.
        helper: Socket of the helper.
    """

    def __init__(self, root: Path, record: Path, helper: Path) -> None:
        self._root: Final = root
        self._record: Final = record
        self._helper: Final = helper
        self._profile: Final = profile.find_profile(soc.observe_soc(root))

    @property
    def has_profile(self) -> bool:
        """Whether it is known how this chip's clocks are fixed."""
        return self._profile is not None

    def read(self) -> tuple[Item, ...]:
        """Return how each clock stands to the profile; nothing without a profile."""
        return tuning.read(self._root, self._profile) if self._profile is not None else ()

    def apply(self) -> Answer:
        """Fix the clocks. Blocks."""
        if self._profile is None:
            return Answer()
        silence = ""
        if self._helper.exists():
            told, silence = self._ask("apply")
            if told is not None:
                return Answer(items=told.items, by="helper", problem=told.problem)
        if tuning.can_write(self._root, self._profile):
            try:
                items = tuning.apply(self._root, self._profile, self._record, self._boot_id())
            except OSError as error:
                return Answer(problem=f"{self._record} cannot be written, so no clock was changed: {error.strerror}")
            return Answer(items=items, by="agent")
        return Answer(problem=silence or f"the agent may not write clocks and there is no helper at {self._helper}")

    def undo(self) -> Answer:
        """Put back what the helper or this process changed. Blocks; does nothing where nothing was changed."""
        items: tuple[Item, ...] = ()
        silence = ""
        by: Literal["helper", "agent", "nobody"] = "nobody"
        if self._helper.exists():
            told, silence = self._ask("undo")
            if told is not None:
                items, silence, by = told.items, told.problem, "helper"
        if self._record.exists():
            try:
                items, by = (*items, *tuning.undo(self._root, self._record, self._boot_id())), "agent"
            except OSError as error:
                silence = f"{self._record} cannot be removed: {error.strerror}"
        return Answer(items=items, by=by, problem=silence)

    def _boot_id(self) -> str:
        return kernel.observe_boot_id(self._root)

    def _ask(self, verb: str) -> tuple[_Told | None, str]:
        """Return what the helper answers, or why it does not."""
        body = b""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
                channel.settimeout(HELPER_SECONDS)
                channel.connect(str(self._helper))
                channel.sendall(f"{verb}\n".encode())
                while len(body) < ANSWER_BYTES_MAX and (piece := channel.recv(ANSWER_BYTES_MAX - len(body))):
                    body += piece
            return msgspec.json.decode(body, type=_Told), ""
        except OSError as error:
            return None, f"the helper at {self._helper} does not answer: {error.strerror or error}"
        except msgspec.MsgspecError as error:
            return None, f"the helper at {self._helper} says what cannot be read: {error}"
