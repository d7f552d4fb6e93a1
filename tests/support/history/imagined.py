"""Histories of a store that keeps its word, played without one: what the checker must pass, and what its mutants start from.

A chance moves clients step by step. An operation happens at one step between its question and its answer; an answer may be lost, and the
operation then happens at any later step or never. Watchers are as far behind as chance wants, and see everything in the end.
"""

from __future__ import annotations

import random
from typing import Literal

import msgspec

from tests.support.history.records import Connection, Delivery, History, Operation, Seen, selects

__all__ = ["imagine"]

NAMES = ("a", "b", "c")
SELECTIONS = ("", "group=odd", "name=a")


class Logged(msgspec.Struct, frozen=True):
    type: Literal["ADDED", "MODIFIED", "DELETED"]
    seen: Seen
    before: Seen | None


class Watcher:
    def __init__(self, number: int, selection: str, start: int) -> None:
        self.name = f"watcher-{number}"
        self.selection = selection
        self.start = self.position = start
        self.deliveries: list[Delivery] = []


class _Imagining:
    def __init__(self, seed: int, clients: int, watchers: int, loss: float) -> None:
        self.chance = random.Random(seed)
        self.base = self.chance.choice((0, 7))
        self.now = 0.0
        self.state: dict[str, Seen] = {}
        self.log: list[Logged] = []
        self.loss = loss
        self.values = 0
        self.under_way: dict[str, Operation] = {}
        self.happened: dict[str, Operation] = {}
        self.lost: list[Operation] = []
        self.operations: list[Operation] = []
        self.connections: list[Connection] = []
        self.clients = [f"client-{number}" for number in range(clients)]
        self.watchers = [Watcher(number, SELECTIONS[number % len(SELECTIONS)], self.base) for number in range(watchers)]

    @property
    def revision(self) -> int:
        return self.base + len(self.log)

    def play(self, steps: int) -> History:
        for _ in range(steps):
            self.now += 1.0
            if self.lost and self.chance.random() < 0.1:
                late = self.lost.pop(self.chance.randrange(len(self.lost)))
                if self.chance.random() < 0.6:
                    self.do(late)
            elif self.watchers and self.chance.random() < 0.4:
                self.watch(self.chance.choice(self.watchers))
            else:
                self.move(self.chance.choice(self.clients))
        for client in self.clients:
            while client in self.under_way or client in self.happened:
                self.now += 1.0
                self.move(client)
        self.operations.append(msgspec.structs.replace(self.do(self.asked("client-0", "list")), returned=self.now + 1))
        for watcher in self.watchers:
            while watcher.position < self.revision:
                self.now += 1.0
                self.deliver(watcher)
            self.close(watcher, last=True)
        return History(base=self.base, operations=tuple(self.operations), connections=tuple(self.connections))

    def move(self, client: str) -> None:
        if client in self.happened:
            self.operations.append(msgspec.structs.replace(self.happened.pop(client), returned=self.now))
        elif client in self.under_way:
            one = self.under_way.pop(client)
            if self.chance.random() < self.loss:
                self.operations.append(msgspec.structs.replace(one, outcome="unknown"))
                self.lost.append(one)
            else:
                self.happened[client] = self.do(one)
        else:
            self.under_way[client] = self.asked(client)

    def asked(self, client: str, verb: str = "") -> Operation:
        chosen = verb or self.chance.choice(("create", "create", "update", "update", "patch", "patch", "delete", "get", "list"))
        name = self.chance.choice(NAMES)
        known = self.state.get(name)
        value = ""
        if chosen in ("create", "update", "patch"):
            self.values += 1
            value = f"v{self.values}"
        bound = known is not None and self.chance.random() < 0.5
        match chosen:
            case "list":
                selection = self.chance.choice(("", "", "group=odd")) if not verb else ""
                return Operation(client=client, verb="list", invoked=self.now, selection=selection)
            case "update" if bound and known is not None:
                return Operation(client=client, verb="update", name=name, value=value, expected=known.revision, invoked=self.now)
            case "delete" if bound and known is not None:
                return Operation(client=client, verb="delete", name=name, uid=known.uid, invoked=self.now)
            case "create" | "update" | "patch" | "delete" | "get":
                return Operation(client=client, verb=chosen, name=name, value=value, invoked=self.now)
            case other:
                raise AssertionError(other)

    def do(self, one: Operation) -> Operation:
        """Let an operation happen now and return it with its outcome."""
        now = self.state.get(one.name)
        replace = msgspec.structs.replace
        if one.verb == "list":
            shown = tuple(seen for name, seen in sorted(self.state.items()) if selects(one.selection, name, seen.value))
            pages = (self.revision,) * self.chance.randint(1, 2)
            return replace(one, outcome="ok", seen=shown, pages=pages)
        if one.verb == "create":
            if now is not None:
                return replace(one, outcome="exists")
            seen = Seen(one.name, f"u{self.revision + 1}", self.revision + 1, one.value)
            self.write("ADDED", seen, None)
            return replace(one, outcome="ok", seen=(seen,))
        if now is None:
            return replace(one, outcome="absent")
        if one.verb == "get":
            return replace(one, outcome="ok", seen=(now,))
        if one.expected not in (0, now.revision) or one.uid not in ("", now.uid):
            return replace(one, outcome="conflict")
        if one.verb == "delete":
            self.write("DELETED", replace(now, revision=self.revision + 1), now)
            return replace(one, outcome="ok", uid=now.uid)
        change = {"note": one.value} if one.verb == "patch" else {"value": one.value, "note": ""}
        seen = replace(now, revision=self.revision + 1, **change)
        self.write("MODIFIED", seen, now)
        return replace(one, outcome="ok", seen=(seen,))

    def write(self, type: Literal["ADDED", "MODIFIED", "DELETED"], seen: Seen, before: Seen | None) -> None:
        self.log.append(Logged(type, seen, before))
        if type == "DELETED":
            del self.state[seen.name]
        else:
            self.state[seen.name] = seen

    def watch(self, watcher: Watcher) -> None:
        what = self.chance.random()
        if what < 0.1:
            self.close(watcher, last=False)
        elif what < 0.2:
            watcher.deliveries.append(Delivery("BOOKMARK", watcher.position, self.now))
        elif what < 0.25:
            self.close(watcher, last=False)  # It fell behind and begins anew from now.
            watcher.start = watcher.position = self.revision
        elif watcher.position < self.revision:
            self.deliver(watcher)

    def deliver(self, watcher: Watcher) -> None:
        entry = self.log[watcher.position - self.base]
        watcher.position += 1
        was = entry.before is not None and selects(watcher.selection, entry.before.name, entry.before.value)
        is_ = entry.type != "DELETED" and selects(watcher.selection, entry.seen.name, entry.seen.value)
        type: Literal["ADDED", "MODIFIED", "DELETED"] = "MODIFIED" if was and is_ else "ADDED" if is_ else "DELETED"
        if was or is_:
            watcher.deliveries.append(Delivery(type, entry.seen.revision, self.now, entry.seen))

    def close(self, watcher: Watcher, *, last: bool) -> None:
        self.connections.append(
            Connection(
                watcher=watcher.name,
                start=watcher.start,
                deliveries=tuple(watcher.deliveries),
                selection=watcher.selection,
                last=last,
            )
        )
        watcher.start, watcher.deliveries = watcher.position, []


def imagine(seed: int, *, steps: int = 300, clients: int = 4, watchers: int = 3, loss: float = 0.1) -> History:
    """Return the history of a seed.

    Args:
        seed: Of the chance.
        steps: How often something moves.
        clients: How many write and read.
        watchers: How many watch: all objects, those of a label, one, in turn.
        loss: Part of the operations whose answer is lost.
    """
    return _Imagining(seed, clients, watchers, loss).play(steps)
