"""What sessions need of the rest of the controller, as Protocols, and how often things happen on a session.

The assignment loop, the registry's token issuer, the event recorder and the join tokens implement these; `app.py` puts them together in a
`Seams`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple, Protocol

import msgspec

from controller.store.base import Store
from rkfleet.clock import Clock
from rkfleet.kinds.board import Board
from rkfleet.meta import Ref
from rkfleet.metrics import Metrics
from rkfleet.session import Grant

__all__ = ["AssignmentMinter", "GrantIssuer", "Offer", "Record", "SampleKeeper", "Seams", "Settle", "Tempo", "TimedSample"]


class Tempo(msgspec.Struct, frozen=True):
    """How often things happen on a session.

    Attributes:
        heartbeat_seconds: A Report at least this often. 5,000 boards then cost an eighth of a core.
        report_interval_seconds_min: A Report at most this often: soon enough for somebody who watches, and four writes a second at worst.
        store_retry_seconds: Pause before a write that the store could not take; jittered, since all boards meet a full disk at once.
        refused_retry_seconds: Pause before a board that could not write or read an assignment is offered it again, with its next report.
    """

    heartbeat_seconds: float = 10.0
    report_interval_seconds_min: float = 0.25
    store_retry_seconds: float = 1.0
    refused_retry_seconds: float = 30.0


class Offer(Protocol):
    """A minted assignment: number, exact bytes, and their hex hash."""

    @property
    def number(self) -> int: ...  # noqa: D102 (said above)

    @property
    def body(self) -> bytes: ...  # noqa: D102

    @property
    def sha256(self) -> str: ...  # noqa: D102


class AssignmentMinter(Protocol):
    """Plans and numbers the assignment of a board; implemented by the assignment loop."""

    async def mint(self, board: str, held_number: int = 0, held_sha256: str = "") -> Offer:
        """Return what the board must run, from a consistent list; numbered above `held_number` unless that has this very content.

        Raises:
            NotFound: There is no such Board.
            Unavailable: The store cannot read or write now.
        """
        ...


class GrantIssuer(Protocol):
    """Gives out tokens for bytes; implemented by `controller/trust/pull_tokens.py`."""

    async def grant(self, board: str, digests: tuple[str, ...]) -> Grant:
        """Return sources and a token for those of the board's own blobs, or a refusal; the request id is filled in by the caller."""
        ...


class Record(Protocol):
    """Notes an Event, best effort; implemented by the machinery's event recorder."""

    def __call__(
        self, ref: Ref, uid: str, type: Literal["Normal", "Warning"], reason: str, message: str, *, kind: str, api_version: str
    ) -> None:
        """Note that something happened to an object."""
        ...


class Settle(Protocol):
    """Uses up the join token of a board that came into session; implemented by `controller/trust/tokens.py`."""

    def settles(self, name: str, key_sha256: str) -> bool:
        """Return whether there is one; must not block."""
        ...

    def settle(self, name: str, key_sha256: str) -> None:
        """Use it up; may block for a file sync.

        Raises:
            Unavailable: The file cannot be written now.
        """
        ...


class TimedSample(NamedTuple):
    """Figures of a board at a moment by this controller's clock: series as Prometheus writes them, and their values."""

    taken: datetime
    readings: tuple[tuple[str, float], ...]


class SampleKeeper(Protocol):
    """Keeps samples of outages; implemented by `controller/outages.py`."""

    def keep(self, board: str, uid: str, samples: Sequence[TimedSample]) -> None:
        """Keep the samples of a Board, oldest first; may block for the disk, and passes over those that it has.

        Raises:
            Unavailable: The disk refuses; the same may be given again.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Seams:
    """Everything that sessions hold of others.

    Attributes:
        store: Where Boards, Replicas and Events are.
        clock: Monotonic time for presence, wall time for writes.
        jitter: Spreads retries.
        new_uid: Source of object uids.
        minter: Plans assignments.
        issuer: Gives out tokens for bytes.
        tokens: Join tokens that a first session uses up.
        record: Notes Events.
        metrics: Where sessions, messages and writes are counted.
        on_presence: Called with a board's name whenever its presence changed or somebody else was refused; must not block.
        tempo: Heartbeat, report interval and pauses.
        samples: Keeps samples of outages; None takes none, and boards are told so.
    """

    store: Store
    clock: Clock
    jitter: random.Random
    new_uid: Callable[[], str]
    minter: AssignmentMinter
    issuer: GrantIssuer
    tokens: Settle
    record: Record
    metrics: Metrics
    on_presence: Callable[[str], None]
    tempo: Tempo = field(default_factory=Tempo)
    samples: SampleKeeper | None = None

    def note(self, board: str, uid: str, type: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Note an Event about a Board."""
        kind = Board.resource
        self.record(Ref(kind.name, "", board), uid, type, reason, message, kind=kind.kind, api_version=kind.api_version)
