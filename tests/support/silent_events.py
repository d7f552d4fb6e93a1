"""A recorder of events that keeps none, for tests in which nobody reads them."""

from __future__ import annotations

from typing import Any


class SilentEvents:
    """Takes events and forgets them."""

    def record(self, *arguments: Any, **keywords: Any) -> None:
        """Forget the event."""
