"""Scenarios with a name: what an operator would want to have seen once. Their transcripts are in `tests/scenario/fleets/`.

Each coroutine is one scenario; its first line stands at the head of the transcript.
"""

from __future__ import annotations

import itertools

from rkfleet import conditions
from rkfleet.kinds import Board as BoardKind
from rkfleet.kinds import ModelDeployment
from rkfleet.kinds.board import Runtime
from tests.support.scenario.board import OLDER, RUNTIME
from tests.support.scenario.declared import is_complete
from tests.support.scenario.fleet import Fleet, Scenario
from tests.support.scenario.promises import PromiseBroken
from tests.support.scenario.virtual import START

IN_PLACE = {"maxUnavailable": 1, "maxSurge": 0}
SURGE = {"maxUnavailable": 0, "maxSurge": 1}


async def first_rollout(fleet: Fleet) -> None:
    """Two boards and two replicas, from nothing to routes."""
    await _begin(fleet, boards=2)
    await fleet.deploy("chat", "qwen2", 2)
    await fleet.converge()


async def surge_rollout(fleet: Fleet) -> None:
    """A new model by surge: two boards with room for two each, three replicas, never fewer than three available."""
    await _serving(fleet, boards=2, slots=2, replicas=3, strategy=SURGE)
    await fleet.edit(ModelDeployment, "chat", {"template": {"model": "qwen3"}})
    await fleet.converge()


async def in_place_rollout(fleet: Fleet) -> None:
    """A new model in place: two boards that hold one replica each."""
    await _serving(fleet, boards=2, slots=1, replicas=2, strategy=IN_PLACE)
    await fleet.edit(ModelDeployment, "chat", {"template": {"model": "qwen3"}})
    await fleet.converge()


async def board_lost_and_back(fleet: Fleet) -> None:
    """A board loses its power for four minutes: its replica moves, and what it held is left out when it is back."""
    await _serving(fleet, boards=3, slots=1, replicas=2, strategy=IN_PLACE, placement={"boardLostSeconds": 60})
    lost = fleet.boards[fleet.replicas("chat")[0].spec.board_name]
    lost.kill(power=True)
    await fleet.sleep(240.0)
    lost.boot()
    await fleet.converge()


async def controller_dies_in_a_rollout(fleet: Fleet) -> None:
    """The controller is killed between two writes of a rollout in place, and started again half a minute later."""
    await _serving(fleet, boards=2, slots=1, replicas=2, strategy=IN_PLACE)
    await fleet.edit(ModelDeployment, "chat", {"template": {"model": "qwen3"}})
    await fleet.until(lambda: any(one.spec.activation == "Draining" for one in fleet.replicas("chat")), what="a replica drains")
    fleet.store_file.kill = (0, True)
    await fleet.until(lambda: fleet.controller is not None and not fleet.controller.process.alive, what="the controller is dead")
    await fleet.sleep(30.0)
    fleet.start_controller()
    await fleet.converge()


async def board_disk_full(fleet: Fleet) -> None:
    """A board's disk is full when it is to fetch, and when it is to write its ledger; it goes on when there is room."""
    await _begin(fleet, boards=1, slots=2)
    await fleet.until(lambda: _is_ready(fleet, "b0"), what="b0 is Ready")
    disk = fleet.boards["b0"].disk
    disk.room = 1500
    fleet.say("b0", "disk has room for 1500 bytes")
    await fleet.deploy("chat", "qwen2", 1)
    await fleet.sleep(45.0)
    disk.room = None
    fleet.say("b0", "disk has room")
    await fleet.until(lambda: is_complete(fleet, "chat"), what="chat is complete")
    disk.room = 0
    fleet.say("b0", "disk is full")
    await fleet.edit(ModelDeployment, "chat", {"replicas": 2})
    await fleet.sleep(45.0)
    disk.room = None
    fleet.say("b0", "disk has room")
    await fleet.converge()


async def old_stream_beside_the_new(fleet: Fleet) -> None:
    """A path dies under one connection; what it held back comes to a stream that the board's new session has closed."""
    await _serving(fleet, boards=2, slots=1, replicas=2, strategy=IN_PLACE)
    board = fleet.boards["b0"]
    wires = board.cable.hold(3600.0)
    fleet.say("b0", "stream is held back")
    await fleet.edit(ModelDeployment, "chat", {"template": {"serving": {"contextTokens": 2048}}})
    await fleet.sleep(11.5)
    for wire in wires:
        wire.board.break_("connection timed out", tell=False)
    await fleet.until(lambda: fleet.promises.named(BoardKind, "b0").status.session.number == 2, what="b0 has a new session")
    fleet.say("b0", "what was held back arrives")
    board.cable.release(wires)
    await fleet.converge()


async def partition_heals(fleet: Fleet) -> None:
    """Nothing of a board comes through for 50 s; what is told to it meanwhile is told again when it is back."""
    await _serving(fleet, boards=2, slots=1, replicas=2, strategy=IN_PLACE)
    cut = fleet.boards["b0"]
    cut.cable.cut(up=True, down=False)
    fleet.say("b0", "is cut off upwards")
    await fleet.edit(ModelDeployment, "chat", {"template": {"serving": {"contextTokens": 2048}}})
    await fleet.sleep(50.0)
    cut.cable.heal()
    fleet.say("b0", "is connected again")
    await fleet.converge()


async def board_away_in_a_rollout(fleet: Fleet) -> None:
    """A board is cut off just before a rollout in place: its replica, still called Ready, counts for nobody's minimum."""
    await _serving(fleet, boards=3, slots=1, replicas=3, strategy=IN_PLACE)
    board = fleet.boards["b0"]
    board.cable.cut(up=True, down=True)
    fleet.say("b0", "is cut off both ways")
    hub = fleet.controller.hub if fleet.controller else None
    await fleet.until(lambda: hub is not None and not hub.presence("b0")[0], what="b0 is missed")
    await fleet.edit(ModelDeployment, "chat", {"template": {"model": "qwen3"}})
    await fleet.sleep(40.0)
    board.cable.heal()
    fleet.say("b0", "is connected again")
    await fleet.converge()


async def lost_while_it_should_drain(fleet: Fleet) -> None:
    """A board never hears that its replica drains and is lost; on its return the successor waits until the old worker is gone."""
    await _serving(fleet, boards=1, slots=1, replicas=1, strategy=IN_PLACE, placement={"boardLostSeconds": 300})
    board = fleet.boards["b0"]
    assert board.agent is not None
    ledger = board.agent.ledger
    before = ledger.held.number
    board.weather.chunk_seconds = (1.0, 1.0)
    await fleet.edit(ModelDeployment, "chat", {"template": {"model": "qwen3"}})
    await fleet.until(lambda: ledger.held.number > before, what="the successor is staged on b0")
    board.cable.cut(up=False, down=True, registry=False)
    fleet.say("b0", "is cut off downwards")
    await fleet.sleep(120.0)
    board.cable.heal()
    fleet.say("b0", "is connected again")
    await fleet.converge()


async def cold_boot_without_a_controller(fleet: Fleet) -> None:
    """Controller away, then a board is cut from the mains and boots: it serves what its ledger says, and joins again later."""
    await _serving(fleet, boards=1, slots=1, replicas=1, strategy=IN_PLACE)
    fleet.kill_controller()
    await fleet.sleep(10.0)
    board = fleet.boards["b0"]
    board.kill(power=True)
    await fleet.sleep(5.0)
    board.boot()
    uid = fleet.replicas("chat")[0].metadata.uid
    await fleet.until(lambda: board.agent is not None and board.agent.answers(uid), what="the board answers without a controller")
    fleet.say("b0", "answers by its ledger alone")
    await fleet.sleep(60.0)
    fleet.start_controller()
    await fleet.converge()


async def agent_killed_in_a_write(fleet: Fleet) -> None:
    """The agent is killed in the middle of each of its first writes in turn, and comes up with the old ledger or the new one."""
    await _begin(fleet, boards=1)
    await fleet.deploy("chat", "qwen2", 1)
    board = fleet.boards["b0"]
    for call in range(9):
        if board.running:
            board.disk.kill_after = call
            await fleet.sleep(12.0)
        if not board.running:
            board.boot()
    board.disk.kill_after = None
    await fleet.converge()


async def spoiled_file(fleet: Fleet) -> None:
    """A byte of a model rots on a board; before its worker starts again the file is read, thrown away and fetched anew."""
    await _serving(fleet, boards=1, slots=1, replicas=1, strategy=IN_PLACE)
    board = fleet.boards["b0"]
    board.rot()
    board.kill(power=False)
    board.boot()
    await fleet.converge()


async def board_deleted_and_joined_again(fleet: Fleet) -> None:
    """An operator deletes a Board that serves; it is refused until it has joined again, and then numbers go on above its ledger."""
    await _serving(fleet, boards=2, slots=1, replicas=1, strategy=IN_PLACE)
    name = fleet.replicas("chat")[0].spec.board_name
    await fleet.delete(BoardKind, name)
    await fleet.sleep(30.0)
    await fleet.enrol(name)
    await fleet.converge()


async def hour_away(fleet: Fleet) -> None:
    """A board is away for an hour, its agent is killed in it and its clock jumps ten years: nothing of that hour is missing."""
    await _serving(fleet, boards=2, slots=1, replicas=1, strategy=IN_PLACE, placement={"boardLostSeconds": 7200})
    board = fleet.boards[fleet.replicas("chat")[0].spec.board_name]
    began = fleet.loop.time()
    board.cable.cut(up=True, down=True)
    fleet.say(board.name, "is cut off")
    await fleet.sleep(1500.0)
    board.clock.offset_seconds = 10 * 365 * 86400.0
    fleet.say(board.name, "its clock jumps by ten years")
    await fleet.sleep(290.0)
    board.kill(power=False)
    await fleet.sleep(5.0)
    board.boot()
    await fleet.sleep(began + 3600.0 - fleet.loop.time())
    board.cable.heal()
    fleet.say(board.name, "is connected again")
    await fleet.until(lambda: _is_ready(fleet, board.name), what="the board is back")
    await fleet.converge()
    _nothing_is_missing(fleet, board.name, began, began + 3600.0)


def _nothing_is_missing(fleet: Fleet, board: str, since: float, until: float) -> None:
    """See to it that the controller has a sample of each minute of an outage, and what happened in it, at the right times."""
    found = fleet.promises.named(BoardKind, board)
    assert found is not None
    text = fleet.outages.openmetrics(board, found.metadata.uid, {}).decode()
    times = [float(line.split()[-1]) for line in text.splitlines() if line.startswith("rkfleet_assignment_number{")]
    taken = [moment - START.timestamp() for moment in times]
    gaps = [after - before for before, after in itertools.pairwise([since, *taken, until])]
    # The session notices a dead link after half a minute; a minute and the last one of its agent are what a kill may cost.
    if not gaps or max(gaps) > 125.0 or sorted(gaps)[-3] > 95.0 or len(taken) < 56:
        raise PromiseBroken(f"of an hour {len(taken)} samples are there, {max(gaps):.0f} s apart at most")


async def store_disk_full(fleet: Fleet) -> None:
    """The controller's disk is full for a minute in a rollout; boards go on, and the rollout does when there is room."""
    await _serving(fleet, boards=2, slots=1, replicas=2, strategy=IN_PLACE)
    await fleet.edit(ModelDeployment, "chat", {"template": {"model": "qwen3"}})
    await fleet.until(lambda: any(one.spec.activation == "Draining" for one in fleet.replicas("chat")), what="a replica drains")
    fleet.store_file.full = True
    fleet.say("store", "disk is full")
    await fleet.sleep(60.0)
    fleet.store_file.full = False
    fleet.say("store", "disk has room")
    await fleet.converge()


async def runtime_rollout(fleet: Fleet) -> None:
    """Another runtime version, rolled out like a model: half of the fleet runs each for an hour, then the new one goes back."""
    await _serving(fleet, boards=4, slots=1, replicas=4, strategy=IN_PLACE, runtimes=(RUNTIME, OLDER))
    assert _versions(fleet) == ["1.0", "1.0", "1.0", "1.0"]
    await fleet.edit(ModelDeployment, "chat", {"template": {"serving": {"runtimeVersion": "<1.0"}}})
    await fleet.until(lambda: _versions(fleet).count("0.9") == 2, what="half of the boards run 0.9")
    await fleet.edit(ModelDeployment, "chat", {"paused": True})
    await fleet.until(lambda: _versions(fleet) == ["0.9", "0.9", "1.0", "1.0"], what="four workers serve")
    fleet.say("world", "two boards run 0.9 and two run 1.0")
    workers = _workers(fleet)
    await fleet.sleep(3600.0)
    assert _workers(fleet) == workers, "somebody restarted though nothing was to do"
    serving = [one for one in fleet.replicas("chat") if one.spec.activation == "Serving"]
    assert [conditions.is_true(one.status.conditions, conditions.READY) for one in serving] == [True] * 4
    await fleet.edit(ModelDeployment, "chat", {"paused": False, "template": {"serving": {"runtimeVersion": ""}}})
    await fleet.converge()
    assert _versions(fleet) == ["1.0", "1.0", "1.0", "1.0"]


def _workers(fleet: Fleet) -> set[tuple[str, str]]:
    """Return the replica and the library of every worker that answers."""
    agents = [board.agent for board in fleet.boards.values() if board.agent is not None]
    ready = {uid for agent in agents for uid, state in agent.supervisor.states().items() if state.phase == "Ready"}
    return {(one.spec.uid, one.spec.library) for agent in agents for one in agent.backend.workers if not one.gone and one.spec.uid in ready}


def _versions(fleet: Fleet) -> list[str]:
    return sorted(library for _, library in _workers(fleet))


async def _begin(fleet: Fleet, *, boards: int, slots: int = 1, runtimes: tuple[Runtime, ...] = (RUNTIME,)) -> None:
    fleet.start_controller()
    fleet.start_gateway()
    for number in range(boards):
        await fleet.add_board(f"b{number}", slots, runtimes=runtimes)
    await fleet.push_model("qwen2")
    await fleet.push_model("qwen3")


async def _serving(
    fleet: Fleet, *, boards: int, slots: int, replicas: int, strategy: dict[str, int], runtimes: tuple[Runtime, ...] = (RUNTIME,),
    **spec: object,
) -> None:  # fmt: skip
    """Have a deployment that serves; it is why, not what is shown."""
    await _begin(fleet, boards=boards, slots=slots, runtimes=runtimes)
    await fleet.deploy("chat", "qwen2", replicas, strategy=strategy, **spec)
    await fleet.until(lambda: is_complete(fleet, "chat"), what="chat is complete")
    await fleet.sleep(5.0)
    fleet.say("world", "chat serves; the scenario begins")


def _is_ready(fleet: Fleet, board: str) -> bool:
    found = fleet.promises.named(BoardKind, board)
    return found is not None and conditions.is_true(found.status.conditions, conditions.READY)


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        first_rollout, surge_rollout, in_place_rollout, board_lost_and_back, controller_dies_in_a_rollout, board_disk_full,
        old_stream_beside_the_new, partition_heals, board_away_in_a_rollout, lost_while_it_should_drain,
        cold_boot_without_a_controller, agent_killed_in_a_write, spoiled_file, board_deleted_and_joined_again, hour_away, store_disk_full,
        runtime_rollout,
    )
}  # fmt: skip
