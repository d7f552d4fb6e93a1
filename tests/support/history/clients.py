"""Those who write and read in a history, one request after the other, and write down what came of it.

In: servers, a chance, a recorder. Out: operations in the recorder. A client asks any server at any time. What it expects of an object is
what it saw of it last, which is often old: refusals are part of a history.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from rkfleet.clock import Clock
from tests.support.history.recorder import Recorder
from tests.support.history.records import Outcome, Seen
from tests.support.history.wire import MODELS, Wire, model_of, note_of, query_of, seen_in

__all__ = ["Client"]

VERBS = ("create", "create", "update", "update", "update", "patch", "patch", "patch", "delete", "get", "get", "list")
SILENT = ("unknown", "refused")  # Nobody is there.
EXPECTING = 0.5  # Part of the updates and deletions that expect what was seen last.
REST_SECONDS = 0.02  # After a request without an answer; a server is started again within a tenth of a second.


class Client:
    """One of them.

    Args:
        name: In the history.
        wires: To every server.
        names: Of the objects.
        padding: Bytes that its objects carry, so that watches fill their buffers.
    """

    def __init__(
        self,
        name: str,
        wires: Sequence[Wire],
        recorder: Recorder,
        *,
        chance: random.Random,
        names: Sequence[str],
        padding: int,
        clock: Clock,
    ) -> None:
        self._name = name
        self._wires = wires
        self._recorder = recorder
        self._chance = chance
        self._names = names
        self._padding = padding
        self._clock = clock
        self._seen: dict[str, Seen] = {}
        self.stopping = False

    async def run(self) -> None:
        """Ask until told to stop."""
        while not self.stopping:
            verb, name = self._chance.choice(VERBS), self._chance.choice(self._names)
            match verb:
                case "list":
                    answered = await self.list(self._chance.choice(("", "", "group=odd")), self._chance.choice((0, 1, 2, 3)))
                case "get":
                    answered = await self.get(name)
                case "delete":
                    answered = await self.delete(name, expecting=self._chance.random() < EXPECTING)
                case "create":
                    answered = await self.create(name, self._recorder.value())
                case "patch":
                    answered = await self.patch(name)
                case _:
                    answered = await self.update(name, self._recorder.value(), expecting=self._chance.random() < EXPECTING)
            if not answered:
                await self._clock.sleep(REST_SECONDS)

    @property
    def _wire(self) -> Wire:
        return self._chance.choice(self._wires)

    async def create(self, name: str, value: str) -> bool:
        """Create an object; return whether anybody answered."""
        asked = self._recorder.ask(self._name, "create", name=name, value=value)
        outcome, obj = await self._wire.ask("POST", MODELS, model_of(name, value, padding=self._padding))
        asked.answered(outcome, *self._noted(obj if outcome == "ok" else None))
        return outcome not in SILENT

    async def update(self, name: str, value: str, *, expecting: bool) -> bool:
        """Replace an object."""
        expected = self._seen[name].revision if expecting and name in self._seen else 0
        asked = self._recorder.ask(self._name, "update", name=name, value=value, expected=expected)
        outcome, obj = await self._wire.ask("PUT", f"{MODELS}/{name}", model_of(name, value, expected, self._padding))
        asked.answered(outcome, *self._noted(obj if outcome == "ok" else None))
        return outcome not in SILENT

    async def patch(self, name: str) -> bool:
        """Set the note of an object."""
        value = self._recorder.value()
        asked = self._recorder.ask(self._name, "patch", name=name, value=value)
        outcome, obj = await self._wire.ask("PATCH", f"{MODELS}/{name}", note_of(value))
        asked.answered(outcome, *self._noted(obj if outcome == "ok" else None))
        return outcome not in SILENT

    async def delete(self, name: str, *, expecting: bool) -> bool:
        """Delete an object."""
        uid = self._seen[name].uid if expecting and name in self._seen else ""
        asked = self._recorder.ask(self._name, "delete", name=name, uid=uid)
        body = {"kind": "DeleteOptions", "apiVersion": "v1", **({"preconditions": {"uid": uid}} if uid else {})}
        outcome, status = await self._wire.ask("DELETE", f"{MODELS}/{name}", body)
        if outcome == "ok":
            asked.answered(outcome, uid=status["details"]["uid"])
        else:
            asked.answered(outcome)
        return outcome not in SILENT

    async def get(self, name: str) -> bool:
        """Read an object."""
        asked = self._recorder.ask(self._name, "get", name=name)
        outcome, obj = await self._wire.ask("GET", f"{MODELS}/{name}")
        asked.answered(outcome, *self._noted(obj if outcome == "ok" else None))
        return outcome not in SILENT

    async def list(self, selection: str, limit: int) -> bool:
        """Read all objects of a selection, page by page from any server."""
        asked = self._recorder.ask(self._name, "list", selection=selection)
        seen: list[Seen] = []
        pages: list[int] = []
        token = ""
        outcome: Outcome = "ok"
        while outcome == "ok" and (token or not pages):
            paging = {"limit": str(limit)} if limit else {}
            outcome, page = await self._wire.ask("GET", MODELS, **query_of(selection), **paging, **({"continue": token} if token else {}))
            if outcome == "ok":
                pages.append(int(page["metadata"]["resourceVersion"]))
                seen += [one for item in page["items"] for one in self._noted(item)]
                token = page["metadata"].get("continue", "")
        asked.answered(outcome, *seen, pages=tuple(pages))
        return outcome not in SILENT

    def _noted(self, obj: object) -> tuple[Seen, ...]:
        if obj is None:
            return ()
        seen = seen_in(obj)
        self._seen[seen.name] = seen
        return (seen,)
