"""Which key and which machine a Board belongs to.

Both stand in annotations of the Board: they live and die with it, a restored database restores them, and an operator who moved a board's
card to another machine removes one with kubectl. Enrolment writes them, the session hub compares; this module is below both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from controller.store.base import Item

__all__ = ["KEY_ANNOTATION", "MACHINE_ANNOTATION", "Binding", "binding_of"]

KEY_ANNOTATION: Final = "rkfleet.dev/key-sha256"
MACHINE_ANNOTATION: Final = "rkfleet.dev/machine-id"


class Binding(msgspec.Struct, frozen=True):
    """Hex hash of the board's public key, and the machine's identity; empty while unbound."""

    key_sha256: str = ""
    machine_id: str = ""

    def annotations(self) -> dict[str, str]:
        """Return what is bound as annotations."""
        both = {KEY_ANNOTATION: self.key_sha256, MACHINE_ANNOTATION: self.machine_id}
        return {key: value for key, value in both.items() if value}


class _Metadata(msgspec.Struct, frozen=True):
    annotations: Mapping[str, str] = {}


class _Annotated(msgspec.Struct, frozen=True):
    metadata: _Metadata = _Metadata()


def binding_of(board: Item) -> Binding:
    """Return what a stored Board is bound to."""
    annotations = msgspec.json.decode(board.body, type=_Annotated).metadata.annotations
    return Binding(annotations.get(KEY_ANNOTATION, ""), annotations.get(MACHINE_ANNOTATION, ""))
