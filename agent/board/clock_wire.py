"""What agent and helper agree on: where socket and record are, the three verbs, how long an answer may be.

A caller sends one verb and a newline; the helper answers `{"items": [[...], ...], "problem": "..."}` on one line, with the fields of
`profile.Item` in their order, and closes. Used by `agent/clocks.py` and `agent/board/clock_control.py`; standard library only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["ANSWER_BYTES_MAX", "RECORD_NAME", "SOCKET", "VERBS", "VERB_BYTES_MAX"]

# A directory of its own: systemd removes a unit's runtime directory when the unit stops, and the agent's must not take the socket along.
SOCKET: Final = Path("/run/rkfleet-clocks/clocks.sock")
# What was changed, for undoing it: in the directory of the helper, or of an agent that is root.
RECORD_NAME: Final = "clocks.json"
VERBS: Final = ("read", "apply", "undo")
VERB_BYTES_MAX: Final = 16
ANSWER_BYTES_MAX: Final = 64 << 10  # A profile has seven items at 300 bytes; sentences of refusals add some.
