"""The page `docs/reference/kubectl.md`: the table of commands and versions, as a run of all rows found it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "kubectl.md"

HEAD = """# Commands of kubectl

Which commands work with which version of kubectl. The tests write this page: they run every row with the real programs, over TLS with a
token, and each row asserts what the fleet has stored afterwards. `make soak-kubectl` runs every version, `make test` three of them.
A row that does not work carries the number of its reason below the table; a row whose reason is no longer true fails its test.

"""

TAIL = """
What cannot work with kinds that are not kubectl's own: `logs`, `exec`, `top`, `rollout status`, `autoscale`. The client refuses them before
it asks the server; `rkfleet logs`, `rkfleet top` and `rkfleet rollout status` stand in their place.
"""


def page(minors: Sequence[int], commands: Sequence[str], reasons: Mapping[tuple[str, int], str]) -> str:
    """Return the page; `reasons` has the rows that do not work, by command and version."""
    numbers = {reason: number for number, reason in enumerate(dict.fromkeys(reasons.values()), start=1)}
    lines = [
        "| Command | " + " | ".join(f"1.{minor}" for minor in minors) + " |",
        "|---|" + "---|" * len(minors),
        *(
            f"| `{command}` | "
            + " | ".join(f"no ({numbers[reasons[command, minor]]})" if (command, minor) in reasons else "yes" for minor in minors)
            + " |"
            for command in commands
        ),
    ]
    notes = [f"{number}. {reason[:1].upper()}{reason[1:]}." for reason, number in numbers.items()]
    return HEAD + "\n".join(lines) + "\n" + ("\n" + "\n".join(notes) + "\n" if notes else "") + TAIL
