"""Whether the board's ledger could be read when the agent started: pure.

In: sentences about files that could not be read, and what the board follows now. Out: the condition LedgerDamaged, also when it is False,
so that it goes away by being said to be.
"""

from __future__ import annotations

from collections.abc import Sequence

from rkfleet import conditions
from rkfleet.conditions import Condition, condition, explain

__all__ = ["ledger_damage"]


def ledger_damage(problems: Sequence[str], held_number: int) -> Condition:
    """Return LedgerDamaged.

    Args:
        problems: A sentence for each file of the ledger that could not be read; empty again after the next assignment was written.
        held_number: Number of the assignment that the board follows; 0 for none.
    """
    if not problems:
        return condition(conditions.LEDGER_DAMAGED, "False", conditions.LEDGER_INTACT)
    follows = f"the board follows assignment {held_number}" if held_number else "the board runs nothing until it is offered an assignment"
    why = f"{'; '.join(problems)}; {follows}"
    return condition(conditions.LEDGER_DAMAGED, "True", conditions.LEDGER_UNREADABLE, explain(why, "dmesg --level err, on the board"))
