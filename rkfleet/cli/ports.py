"""The ports that the programs of `rkfleet up` listen on unless they are told otherwise."""

from __future__ import annotations

from typing import Final

__all__ = ["API_PORT", "GATEWAY_PORT", "REGISTRY_PORT", "SESSION_PORT"]

API_PORT: Final = 7443
SESSION_PORT: Final = 7444
REGISTRY_PORT: Final = 7445
GATEWAY_PORT: Final = 7480
