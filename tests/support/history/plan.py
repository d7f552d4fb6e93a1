"""What a history is to be like, from a seed: who takes part, how short the event log is, when what is killed.

A seed gives the same plan each time, and the same choices of every client; how the processes run beside each other is not repeated.
"""

from __future__ import annotations

import random
from typing import Literal

import msgspec

from tests.support.history.databases import Database
from tests.support.history.watchers import Manner

__all__ = ["CALM_SECONDS_MAX", "Death", "Plan", "plan_of"]

NAMES = ("a", "b", "c", "d", "e", "f")
SELECTIONS = ("", "", "", "group=odd", "group=even", "name=a", "name=b")
MANNERS: tuple[Manner, ...] = ("steady", "restless", "slow", "away")

LONG_STOP_SECONDS = 6.0  # Longer than PostgreSQL lets a controller stand still inside a turn.
CALM_SECONDS_MAX = 20.0  # It takes milliseconds; a database that recovers takes a second or two.


class Death(msgspec.Struct, frozen=True):
    """Something dies, or stands still as if its machine did.

    Attributes:
        after_seconds: Since the last one was alive again.
        victim: Index of a server, or the database.
        down_seconds: How long it stays so, if it is a server.
        stops: It goes on where it was.
    """

    after_seconds: float
    victim: int | Literal["database"]
    down_seconds: float
    stops: bool = False


class Plan(msgspec.Struct, frozen=True):
    """See the module.

    Attributes:
        names: Of the objects.
        log_events: Length of the event log; it is compacted when it is twice as long.
        padding: Bytes of each object that mean nothing.
        watchers: Selection and manner of each.
        rest_seconds: Between the last death and the end.
        operations_min: It does not end before so many, however slow the machine is.
        calm_seconds_max: For whatever must succeed once nothing dies any more.
    """

    seed: int
    names: tuple[str, ...]
    clients: int
    log_events: int
    padding: int
    watchers: tuple[tuple[str, Manner], ...]
    deaths: tuple[Death, ...]
    rest_seconds: float
    operations_min: int = 0
    calm_seconds_max: float = CALM_SECONDS_MAX


def plan_of(seed: int, database: Database) -> Plan:
    """Return the plan of a seed."""
    chance = random.Random(seed)
    deaths = []
    for _ in range(chance.randint(2, 5)):
        victim: int | Literal["database"] = chance.randrange(database.servers)
        if database.crashes and chance.random() < 0.3:
            victim = "database"
        stops = chance.random() < 0.25 and victim != "database"
        down_seconds = LONG_STOP_SECONDS if stops and chance.random() < 0.1 else chance.choice((0.0, 0.0, 0.1, 0.3))
        deaths.append(Death(chance.uniform(0.05, 0.7), victim, down_seconds, stops))
    return Plan(
        seed=seed,
        names=NAMES[: chance.randint(2, len(NAMES))],
        clients=chance.randint(3, 7),
        log_events=chance.choice((5, 20, 60, 200)),
        padding=chance.choice((0, 0, 2_000, 8_000)),
        watchers=tuple((chance.choice(SELECTIONS), chance.choice(MANNERS)) for _ in range(chance.randint(2, 6))),
        deaths=tuple(deaths),
        rest_seconds=chance.uniform(0.1, 0.4),
    )
