"""What is said about models that need not be loaded all the time."""

import math

from agent.demand import Demand
from agent.planning.residency import Use
from tests.support.clocks import ManualClock


def test_only_what_changes_something_wakes_the_loop() -> None:
    """Most requests find their model loaded."""
    wakes: list[None] = []
    clock = ManualClock()
    demand = Demand(clock, lambda: wakes.append(None))
    demand.want("a")
    assert len(wakes) == 1
    demand.want("a")
    demand.touch("a")
    assert len(wakes) == 1
    demand.unload("a")
    demand.want("a")
    demand.touch("a", 0.0)
    assert len(wakes) == 4


def test_the_last_request_says_how_long_a_model_is_kept() -> None:
    """Idle time counts from the last word; one that says nothing leaves it to the deployment."""
    clock = ManualClock()
    demand = Demand(clock, lambda: None)
    began = clock.monotonic()
    demand.touch("a", math.inf)
    clock.advance(5)
    demand.want("a")
    assert demand.uses() == {"a": Use(last_at=began + 5, keep_seconds=math.inf)}
    demand.touch("a", 300.0)
    assert demand.uses()["a"].keep_seconds == 300.0
    demand.touch("a")
    assert demand.uses()["a"].keep_seconds is None


def test_what_was_let_go_is_remembered_to_have_been_loaded_and_what_left_the_board_is_forgotten() -> None:
    clock = ManualClock()
    demand = Demand(clock, lambda: None)
    demand.slept("a")
    assert (demand.uses()["a"].unloaded, demand.uses()["a"].slept) == (True, True)
    demand.want("a")
    assert (demand.uses()["a"].unloaded, demand.uses()["a"].slept) == (False, True)
    demand.want("b")
    demand.retain({"b"})
    assert demand.uses().keys() == {"b"}
