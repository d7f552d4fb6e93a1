"""The ledger: what this board must run, on disk before anything acts on it.

In: assignments as the session offers them. Out: the accepted assignment, also after a cold boot without a controller, and a verdict for
every offer. The session writes it, the loop reads it, and the two meet nowhere else on the way in.

Fence: a lower number is refused, and so is the same number with other content, because either means that two controllers disagree about
this board. The exact bytes are kept, so the hash that the board reports is the hash that the controller minted.

Files: `ledger.json` and, in case a bad block spoils it, the one before, `ledger.prev.json`. Each is written beside its place, flushed
and renamed, so there is a whole one at every moment. Each has a hash of all that it says: of a file in which a bit has flipped nothing is
believed. A newest file that could not be read is written again from what is held, so that there are two good ones again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from rkfleet.assignment import Assignment, assignment_sha256, decode_assignment
from rkfleet.disk import Disk, in_thread, write_durably
from rkfleet.errors import Invalid
from rkfleet.session import AssignmentAnswer, AssignmentOffer, Verdict

__all__ = ["Entry", "Ledger", "judge"]

CURRENT: Final = "ledger.json"
PREVIOUS: Final = "ledger.prev.json"
_SCRATCH: Final = "ledger.json.new"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")

_log = logging.getLogger(__name__)


class Entry(msgspec.Struct, frozen=True):
    """One accepted assignment; number 0 with an empty hash is "none yet"."""

    number: int
    sha256: str
    body: str
    assignment: Assignment


class _File(msgspec.Struct, frozen=True):
    """A file; `check` is over number and hash, and empty in files of before it was written."""

    number: int
    sha256: str
    body: str
    check: str = ""


_NOTHING: Final = Entry(0, "", "", Assignment())


class Ledger:
    """The accepted assignment of one data directory; it is read once, and afterwards disk follows every change before `accept` returns.

    Attributes:
        problems: Sentences about files that could not be read at the start; empty again when an assignment has been written since.
        disk_problem: Why the last write failed; empty when it did not.
    """

    def __init__(self, directory: Path, disk: Disk, on_change: Callable[[], None]) -> None:
        """Read the ledger of `directory`, falling back to the one before if the newest cannot be read.

        Args:
            directory: Data directory of the agent.
            disk: Disk that it is on.
            on_change: Called when what is held or `disk_problem` changed; must not block.
        """
        self._directory: Final = directory
        self._disk: Final = disk
        self._on_change: Final = on_change
        self._judging: Final = asyncio.Lock()
        problems: list[str] = []
        self._held = _read(directory / CURRENT, problems) or _read(directory / PREVIOUS, problems) or _NOTHING
        for problem in problems:
            _log.warning("%s; going on with assignment %d", problem, self._held.number)
        self.problems: tuple[str, ...] = tuple(problems)
        self.disk_problem = ""

    @property
    def held(self) -> Entry:
        """The accepted assignment."""
        return self._held

    async def accept(self, offer: AssignmentOffer) -> AssignmentAnswer:
        """Judge an offer and, if it is accepted, have it on disk before returning.

        A repeated offer of what is held is accepted without a write. Offers are judged one at a time.
        """
        async with self._judging:
            refusal, entry = judge(self._held, offer)
            if refusal is not None:
                return refusal
            if entry != self._held:
                try:
                    await in_thread(self._write, entry)
                except OSError as error:
                    reason = error.strerror or str(error)
                    self._note_disk(f"assignment {offer.number} cannot be written to {self._directory / CURRENT}: {reason}")
                    return AssignmentAnswer(number=offer.number, verdict=Verdict.DISK, reason=self.disk_problem)
                self._held, self.problems = entry, ()
                self._on_change()
            self._note_disk("")
            return AssignmentAnswer(number=offer.number, verdict=Verdict.ACCEPTED)

    async def mend(self) -> None:
        """Write the newest file again from what is held, if it could not be read; a full disk is said, and nothing is lost by it."""
        async with self._judging:
            if self.problems and self._held.number:
                try:
                    await in_thread(self._write_current, self._held)
                except OSError as error:
                    self._note_disk(f"{self._directory / CURRENT} cannot be written again: {error.strerror or error}")

    def _note_disk(self, problem: str) -> None:
        if problem != self.disk_problem:
            self.disk_problem = problem
            self._on_change()

    def _write(self, entry: Entry) -> None:
        if self._held.number:
            write_durably(self._directory / PREVIOUS, _encode(self._held), self._directory / _SCRATCH, self._disk)
        self._write_current(entry)

    def _write_current(self, entry: Entry) -> None:
        write_durably(self._directory / CURRENT, _encode(entry), self._directory / _SCRATCH, self._disk)


def judge(held: Entry, offer: AssignmentOffer) -> tuple[AssignmentAnswer | None, Entry]:
    """Return the answer that refuses an offer and what is held on, or None and the entry to hold. Pure."""
    number = offer.number

    def refused(verdict: Verdict, reason: str) -> tuple[AssignmentAnswer, Entry]:
        return AssignmentAnswer(number=number, verdict=verdict, reason=reason), held

    if number < 1:
        return refused(Verdict.INVALID, f"assignment number {number} must be at least 1")
    if number < held.number:
        return refused(Verdict.OLDER, f"assignment {number} is older than {held.number}, which this board holds")
    if number == held.number and offer.sha256 != held.sha256:
        return refused(Verdict.CHANGED, f"assignment {number} had sha256 {held.sha256[:12]} and now has {offer.sha256[:12]}")
    if number == held.number:
        return None, held
    try:
        return None, _entry(number, offer.body, offer.sha256)
    except Invalid as error:
        return refused(Verdict.INVALID, error.message)


def _entry(number: int, body: bytes, sha256: str) -> Entry:
    actual = assignment_sha256(body)
    if actual != sha256:
        raise Invalid(f"assignment {number} has sha256 {actual[:12]} instead of {sha256[:12]}")
    assignment = decode_assignment(body)
    uids: set[str] = set()
    for replica in assignment.replicas:
        name = f"assignment {number}: replica {replica.namespace}/{replica.name}"
        if not replica.uid or replica.uid in uids:
            raise Invalid(f"{name} has uid {replica.uid!r}, which is empty or that of another one")
        uids.add(replica.uid)
        if not replica.files:
            raise Invalid(f"{name} has no files")
        for file in replica.files:
            # Digests become file names on this board.
            if _DIGEST.fullmatch(file.digest) is None:
                raise Invalid(f"{name}: {file.digest[:80]!r} is not a sha256 digest")
    try:
        return Entry(number, sha256, body.decode(), assignment)
    except UnicodeDecodeError as error:
        raise Invalid(f"assignment {number} is not UTF-8: {error}") from error


def _encode(entry: Entry) -> bytes:
    return msgspec.json.encode(_File(entry.number, entry.sha256, entry.body, _check(entry.number, entry.sha256)))


def _check(number: int, sha256: str) -> str:
    return hashlib.sha256(f"{number} {sha256}".encode()).hexdigest()


def _read(path: Path, problems: list[str]) -> Entry | None:
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_File)
        if content.check not in {"", _check(content.number, content.sha256)}:
            raise Invalid(f"its number {content.number} is not the one that was written")
        return _entry(content.number, content.body.encode(), content.sha256)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, Invalid) as error:
        problems.append(f"{path.name} cannot be used: {error}")
        return None
