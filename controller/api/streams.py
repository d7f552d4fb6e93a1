"""What every answer that stays open has in common: its pieces, and the client that leaves.

In: ASGI's receive. Out: messages. `watch.py` and `logs.py` stream with these, and end with `rkfleet/racing.py`.
"""

from __future__ import annotations

from starlette.types import Message, Receive

__all__ = ["body", "client_leaves"]


def body(piece: bytes, *, more: bool = True) -> Message:
    """Return a piece of a body."""
    return {"type": "http.response.body", "body": piece, "more_body": more}


async def client_leaves(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
