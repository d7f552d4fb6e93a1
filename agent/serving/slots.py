"""Who used which place of a worker last, so that computed prompts are used again by their own user only.

In: requests with their owner (tenant and conversation) and the places that are free. Out: the place to take, and whether what the runtime
remembers there may be used again. Called by `agent/serving/proxy.py`.

llama.cpp keeps the tokens of the last request in each slot and skips what a new prompt has in common with them. That never changes an
answer, but it shows: in `cached_tokens` and in the time to the first token, by which a client could find out, word by word, how somebody
else's prompt begins. So the agent chooses the slot itself (`id_slot`) and lets the runtime compare only with the owner's own tokens
(`cache_prompt`). Embeddings run in whatever slot the runtime has free, so all that may be free is forgotten before each. Runtimes on the
NPU are told the tenant and keep to it themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

__all__ = ["Owner", "Slots"]

PREFIX_BYTES_KEPT: Final = 8 << 10  # Of a prompt: enough to tell conversations with one system prompt apart.
SIMILAR_SHARE: Final = 0.5  # Of the shorter prompt; below it a place without memory is the better one, and the memory stays.


class Owner(msgspec.Struct, frozen=True, gc=False):
    """Whose tokens these are: a tenant's, and within it one conversation's if the client named it."""

    tenant: str
    conversation: str = ""


class _Memory(msgspec.Struct, frozen=True, gc=False):
    owner: Owner
    prefix: bytes
    length: int
    turn: int


class Slots:
    """The memory of every worker's places, by replica uid."""

    def __init__(self) -> None:
        self._memories: Final[dict[str, dict[int, _Memory]]] = {}
        self._turn = 0

    def choose(self, uid: str, free: Sequence[int], owner: Owner, prompt: bytes) -> int:
        """Return the place that remembers most of this prompt for its owner, else an unused one, else the one used longest ago."""
        memories = self._memories.get(uid, {})
        prefix = prompt[:PREFIX_BYTES_KEPT]

        def similar(slot: int) -> float:
            memory = memories.get(slot)
            if memory is None or memory.owner != owner:
                return 0.0
            return _common(prefix, memory.prefix) / max(1, min(len(prefix), len(memory.prefix)))

        best = max(free, key=similar)
        if similar(best) >= SIMILAR_SHARE:
            return best
        return min(free, key=lambda slot: memories[slot].turn if slot in memories else -1)

    def take(self, uid: str, slot: int, owner: Owner, prompt: bytes) -> bool:
        """Give the place to a request; return whether what it remembers is the owner's own."""
        memories = self._memories.setdefault(uid, {})
        before = memories.get(slot)
        self._turn += 1
        memories[slot] = _Memory(owner, prompt[:PREFIX_BYTES_KEPT], len(prompt), self._turn)
        return before is not None and before.owner == owner

    def remembered_bytes(self, uid: str, owner: Owner, prompt: bytes) -> int:
        """Return how much of this prompt some place may remember for its owner: never too little, as only its beginning is compared."""
        most = 0
        for memory in self._memories.get(uid, {}).values():
            if memory.owner == owner:
                common = _common(prompt, memory.prefix)
                most = max(most, min(memory.length, len(prompt)) if common == PREFIX_BYTES_KEPT else common)
        return most

    def forget(self, uid: str, but: Iterable[int] = ()) -> None:
        """Trust no place of this worker any more, except those in which requests run: something else was computed there."""
        kept = set(but)
        memories = self._memories.get(uid, {})
        for slot in [slot for slot in memories if slot not in kept]:
            del memories[slot]

    def keep(self, uids: Iterable[str]) -> None:
        """Forget workers that are not there any more."""
        for uid in self._memories.keys() - set(uids):
            del self._memories[uid]


def _common(left: bytes, right: bytes) -> int:
    """Return how many bytes two prompts begin with together."""
    length = min(len(left), len(right))
    return next((at for at in range(length) if left[at] != right[at]), length)
