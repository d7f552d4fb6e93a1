"""Why is this not running: from an object to one sentence and one command.

In: what is stored (`World`) and which object is asked about. Out: an `Explanation`. `rkfleet explain` and `rkfleet board drain` call it.
It is apart from the command because it decides and prints nothing, and apart from the controller's planners because it reads only what
they wrote: conditions, specs and what is placed where.

Causes are followed from object to object (deployment, its worst replica, the replica's board or Model, ...) until one has no cause of its
own. That one gives the command; all of them together give the sentence. An object that nothing is wrong with is `Well`, one that gets there
by itself is `Working`, and one that waits for a person `NeedsHelp`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal

import msgspec

from rkfleet import conditions
from rkfleet.clock import human_duration, parse_time
from rkfleet.conditions import Condition
from rkfleet.kinds import Board, Model, ModelDeployment, Object, Replica
from rkfleet.kinds.board import TAINT_DRAIN
from rkfleet.kinds.deployment import Template
from rkfleet.kinds.model import Variant
from rkfleet.meta import LABEL_DEPLOYMENT, matches
from rkfleet.quantity import parse_bytes
from rkfleet.versions import meets
from rkfleet.world import World, listed

__all__ = ["Cause", "Explanation", "Verdict", "explain"]

Verdict = Literal["Well", "Working", "NeedsHelp"]
_SEVERITY: Final[Mapping[Verdict, int]] = {"Well": 0, "Working": 1, "NeedsHelp": 2}
SAYS_LENGTH_MAX: Final = 600  # Of one condition; why each of 5,000 boards does not fit stands in the condition itself.
NAMED_MAX: Final = 5  # Names in one sentence; more is a list for `get`.

_BLOCKED: Final = frozenset({conditions.MODEL_NOT_FOUND, conditions.VARIANT_NOT_FOUND})
_AWAY: Final = frozenset({conditions.AWAITING_RECONNECT, conditions.BOARD_LOST, conditions.NEVER_CONNECTED})
_BY_ITSELF: Final = frozenset(
    {conditions.FETCHING, conditions.STAGED, conditions.LOADING, conditions.WAITING_FOR_PREDECESSOR, conditions.DRAINING}
)
_ON_THE_BOARD: Final = "on the board: systemctl status rkfleet-agent"


class Cause(msgspec.Struct, frozen=True, rename="camel"):
    """One object on the way to the root cause, and what it says."""

    kind: str
    namespace: str
    name: str
    says: str


class Explanation(msgspec.Struct, frozen=True, rename="camel"):
    """Why an object is as it is.

    Attributes:
        verdict: Well, Working (gets there by itself) or NeedsHelp (waits for a person).
        sentence: One sentence, from the object to its root cause.
        command: What helps, or shows more; may begin with where to type it.
        causes: From the object itself to the root cause.
    """

    verdict: Verdict
    sentence: str
    command: str
    causes: tuple[Cause, ...]


def explain(obj: Object, world: World) -> Explanation:
    """Return why an object is as it is."""
    found = _Explainer(world).about(obj)
    chain = list(_chain(found))
    root_first = chain[::-1]
    text = chain[0].says + "".join(f"{': ' if place else ', because '}{one.says}" for place, one in enumerate(chain[1:]))
    return Explanation(
        verdict=max((one.verdict for one in chain), key=lambda verdict: _SEVERITY[verdict]),
        sentence=f"{text[0].upper()}{text[1:]}.",
        command=next((one.command for one in root_first if one.command), ""),
        causes=tuple(Cause(one.about.resource.kind, one.about.metadata.namespace, one.about.metadata.name, one.says) for one in chain),
    )


class _Finding(msgspec.Struct, frozen=True):
    """What one object says, and the cause behind it."""

    about: Object
    verdict: Verdict
    says: str
    command: str = ""
    because: _Finding | None = None

    @property
    def severity(self) -> int:
        return max(_SEVERITY[one.verdict] for one in _chain(self))


def _chain(found: _Finding) -> Iterator[_Finding]:
    one: _Finding | None = found
    while one is not None:
        yield one
        one = one.because


class _Explainer:
    """Follows causes through one world. The way is board (while it is drained), deployment, replica, then a board or a Model: it ends."""

    def __init__(self, world: World) -> None:
        self._world: Final = world
        self._could: Final[dict[tuple[str, ...], list[Board]]] = {}

    def about(self, obj: Object) -> _Finding:
        match obj:
            case ModelDeployment():
                return self._deployment(obj)
            case Replica():
                return self._replica(obj)
            case Board():
                return self._board(obj)
            case Model():
                return self._model(obj)
            case _:
                raise AssertionError(f"{obj.resource.kind} is not explained")

    # ---- Deployments -----------------------------------------------------------------------------------------------------------

    def _deployment(self, one: ModelDeployment) -> _Finding:
        meta, status, name = one.metadata, one.status, f"deployment {one.metadata.name}"
        status_command = f"rkfleet rollout status {meta.name} -n {meta.namespace}"
        look = f"rkfleet describe modeldeployment {meta.name} -n {meta.namespace}"
        if meta.deletion_timestamp:
            return _Finding(one, "Working", f"{name} is being deleted and waits for its replicas to go", _replicas_command(one))
        if status.observed_generation < meta.generation:
            return _Finding(one, "Working", f"the controller has not yet looked at generation {meta.generation} of {name}", status_command)
        ready = _said(one.status.conditions, conditions.READY)
        progressing = _said(one.status.conditions, conditions.PROGRESSING)
        reasons = {ready.reason, progressing.reason}
        if reasons & _BLOCKED:
            return self._blocked(one, next(said for said in (ready, progressing) if said.reason in _BLOCKED))
        if ready.reason == conditions.SERVED_NAME_TAKEN:
            why, command = _words(ready, look)
            return _Finding(one, "NeedsHelp", f"{name} gets no requests: {why}", command)
        replicas = [replica for replica in self._world.of_deployment(one) if not replica.metadata.deletion_timestamp]
        if ready.status == "True" and not self._unplaced_of(replicas):
            return self._complete(one, replicas, ready)
        if progressing.reason == conditions.SURGE_IMPOSSIBLE and progressing.status != "Unknown":
            why, command = _words(progressing, look)
            return _Finding(one, "NeedsHelp", f"the rollout of {name} cannot go on: {why}", command)
        worst = self._worst(one, replicas)
        counts = f"{name} has {status.available_replicas} of {one.spec.replicas} replicas available"
        if status.available_replicas >= one.spec.replicas:  # Enough serve, and something else is not as declared: a drain, a rollout.
            counts = f"{name} is not as declared"
        if conditions.DEPLOYMENT_PAUSED in reasons and (worst is None or worst.severity < _SEVERITY["NeedsHelp"]):
            says = f"{name} is paused (spec.paused), so none of its {len(replicas)} replicas moves to the changed template"
            return _Finding(one, "NeedsHelp", says, f"rkfleet rollout resume {meta.name} -n {meta.namespace}")
        if progressing.reason == conditions.PROGRESS_DEADLINE_EXCEEDED:
            limit = one.spec.progress_deadline_seconds
            says = f"the rollout of {name} has not moved for {limit} s (spec.progressDeadlineSeconds)"
            return _Finding(one, "NeedsHelp", says, _words(progressing, look)[1], worst)
        if worst is not None:
            return _Finding(one, "Working", counts, status_command, worst)
        what = "the next step of the rollout is on its way" if replicas or not one.spec.replicas else "its replicas are not made yet"
        return _Finding(one, "Working", f"{counts}; {what}", status_command)

    def _complete(self, one: ModelDeployment, replicas: Sequence[Replica], ready: Condition) -> _Finding:
        meta, name = one.metadata, f"deployment {one.metadata.name}"
        paused = "; it is paused (spec.paused) and takes no change" if one.spec.paused else ""
        if ready.reason == conditions.SCALED_TO_ZERO:
            scale = f"rkfleet scale modeldeployment/{meta.name} --replicas 1 -n {meta.namespace}"
            return _Finding(one, "Well", f"{name} wants no replica and has none{paused}", scale)
        boards = sorted({replica.spec.board_name for replica in replicas if replica.spec.board_name})
        where = f" on {listed([self._board_words(board) for board in boards], NAMED_MAX)}" if boards else ""
        says = f"{name} is as declared: {one.spec.replicas} of {one.spec.replicas} replicas serve{where}{paused}"
        return _Finding(one, "Well", says)

    def _blocked(self, one: ModelDeployment, said: Condition) -> _Finding:
        meta, template = one.metadata, one.spec.template
        why, command = _words(said, f"rkfleet model list -n {meta.namespace}")
        model = self._world.models.get((meta.namespace, template.model))
        healed = model is not None and (
            said.reason == conditions.MODEL_NOT_FOUND or set(template.variants) <= {variant.name for variant in model.spec.variants}
        )
        if healed:
            says = f"what deployment {meta.name} missed has just come"
            return _Finding(one, "Working", says, f"rkfleet rollout status {meta.name} -n {meta.namespace}")
        if said.reason == conditions.MODEL_NOT_FOUND:
            near = difflib.get_close_matches(template.model, self._world.names(Model, meta.namespace), 1)
            why += f" (there is {near[0]})" if near else ""
        if one.status.current_revision:  # Something ran before this template: going back is one command.
            command = f"rkfleet rollout undo {meta.name} -n {meta.namespace}"
        return _Finding(one, "NeedsHelp", f"deployment {meta.name} starts no replica of its template: {why}", command)

    def _worst(self, one: ModelDeployment, replicas: Sequence[Replica]) -> _Finding | None:
        """Return what the replica says that needs help most; those of the wanted revision first. None if nothing is wrong with any."""
        wanted = one.status.update_revision
        worst: _Finding | None = None
        for replica in sorted(replicas, key=lambda replica: (replica.spec.revision_name != wanted, bool(replica.spec.board_name))):
            found = self._replica(replica)
            if found.severity > (worst.severity if worst else 0):
                worst = found
            if found.severity == _SEVERITY["NeedsHelp"]:
                break  # Of a thousand that wait for the same reason one is enough.
        return worst

    @staticmethod
    def _unplaced_of(replicas: Iterable[Replica]) -> list[Replica]:
        return [one for one in replicas if not one.spec.board_name and _said(one.status.conditions, conditions.SCHEDULED).status == "False"]

    # ---- Replicas --------------------------------------------------------------------------------------------------------------

    def _replica(self, one: Replica) -> _Finding:
        meta, spec, said = one.metadata, one.spec, one.status.conditions
        name, look = f"replica {meta.name}", f"rkfleet describe replica {meta.name} -n {meta.namespace}"
        if meta.deletion_timestamp:
            return _Finding(one, "Working", f"{name} is being deleted", look)
        if not spec.board_name:
            return self._unplaced(one)
        board = self._world.boards.get(spec.board_name)
        if board is None:
            return _Finding(one, "Working", f"board {spec.board_name} of {name} does not exist any more, so it is replaced", look)
        name = f"{name} on {self._board_words(spec.board_name)}"
        ready = _said(said, conditions.READY)
        if ready.status == "True":
            speed = one.status.measured.decode_tokens_per_second if one.status.measured else None
            rate = f", {speed:g} tokens/s" if speed else ""
            loaded = _said(said, conditions.LOADED)
            about = f"; {_words(loaded, '')[0]}" if loaded.message and loaded.status != "Unknown" else ""
            return _Finding(one, "Well", f"{name} serves{rate}{about}")
        if (away := self._away(board)) is not None:
            return _Finding(one, away.verdict, f"nothing is known of {name}", "", away)
        assignment = board.status.assignment
        if assignment.message:
            return _Finding(one, "NeedsHelp", f"{name} does not change", "", self._ailing(board))
        for type in (conditions.ARTIFACT_AVAILABLE, conditions.LOADED, conditions.READY):
            found = conditions.find(said, type)
            if found is not None and found.status != "True":
                return self._unready(one, name, found)
        waits = f"its assignment {assignment.number}" if assignment.accepted_number < assignment.number else "its next report"
        return _Finding(one, "Working", f"{name} waits for the board to answer with {waits}", look)

    def _unready(self, one: Replica, name: str, said: Condition) -> _Finding:
        meta, look = one.metadata, f"rkfleet describe replica {one.metadata.name} -n {one.metadata.namespace}"
        why, command = _words(said, look)
        if said.status == "Unknown" or said.reason in _AWAY:  # The board is back, its first report is on the way.
            return _Finding(one, "Working", f"{name} waits for the first report of its board", look)
        if said.reason == conditions.FETCH_FAILED and (model := self._model_of(one)) is not None:
            missing = self._model(model)
            if missing.verdict == "NeedsHelp":
                return _Finding(one, "NeedsHelp", f"{name} cannot fetch its files", "", missing)
        match said.reason:
            case conditions.CRASH_LOOP | conditions.LOAD_FAILED:
                what = "could not load the model" if said.reason == conditions.LOAD_FAILED else "ended although it should run"
                left = one.status.last_exit
                words = f" ({left.reason}: {left.message.rstrip('.')})" if left and left.message else f" ({left.reason})" if left else ""
                times = f", {one.status.restarts} restarts so far" if one.status.restarts else ""
                return _Finding(one, "NeedsHelp", f"the worker of {name} {what}{words}{times}", command)
            case conditions.DISK_FULL:
                return _Finding(one, "NeedsHelp", f"{name} has no room for its files: {why}", _words(said, "on the board: df -h")[1])
            case conditions.FETCHING:
                done = one.status.progress
                part = f", {100 * done.fetched_bytes // done.total_bytes}% are there" if done and done.total_bytes else ""
                return _Finding(one, "Working", f"{name} is fetching its files{part}", f"rkfleet get replicas -w -n {meta.namespace}")
            case reason if reason in _BY_ITSELF:
                return _Finding(one, "Working", f"{name}: {why}", command)
            case reason:
                return _Finding(one, "NeedsHelp", f"{name}: {why}", command)

    def _unplaced(self, one: Replica) -> _Finding:
        name, said = f"replica {one.metadata.name}", _said(one.status.conditions, conditions.SCHEDULED)
        look = f"rkfleet describe replica {one.metadata.name} -n {one.metadata.namespace}"
        if said.status != "False":
            return _Finding(one, "Working", f"{name} is not placed yet", look)
        why, command = _words(said, "rkfleet board list --wide")
        could = self._could_run(one)
        cordoned = [board for board in could if _is_cordoned(board)]
        if cordoned:
            return _Finding(one, "NeedsHelp", f"{name} has no board", "", self._cordoned(cordoned))
        for board in could:
            found = self._ailing(board) or (self._without_npu(board) if "NPU is not ready" in why else None)
            if found is not None:
                return _Finding(one, found.verdict, f"{name} has no board", "", found)
        if could and "memory" in why:
            command = "rkfleet top boards"
        return _Finding(one, "NeedsHelp", f"{name} has no board: {why}", command)

    @staticmethod
    def _cordoned(boards: Sequence[Board]) -> _Finding:
        names = [one.metadata.name for one in boards]
        drained = " to drain it" if any(taint.key == TAINT_DRAIN for taint in boards[0].spec.taints) else ""
        others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        says = f"board {names[0]}{others}, which could run it, was cordoned{drained}"
        return _Finding(boards[0], "NeedsHelp", says, f"rkfleet board uncordon {names[0]}")

    def _could_run(self, one: Replica) -> list[Board]:
        """Return the boards that are chosen by the selector and could run the replica if they were healthy, free and not cordoned."""
        namespace = one.metadata.namespace
        same = (namespace, one.spec.deployment_name, one.spec.revision_name)
        if same not in self._could:
            self._could[same] = list(self._capable(one, self._world.deployments.get((namespace, one.spec.deployment_name))))
        return self._could[same]

    def _capable(self, one: Replica, deployment: ModelDeployment | None) -> Iterator[Board]:
        model = self._model_of(one)
        if deployment is None or model is None:
            return
        allowed = set(deployment.spec.template.variants)
        variants = [variant for variant in model.spec.variants if not allowed or variant.name in allowed]
        selector = deployment.spec.placement.board_selector
        template = self._template_of(one)
        wanted = template.serving.runtime_version if template is not None else ""
        for _, board in sorted(self._world.boards.items()):
            if matches(selector, board.metadata.labels) and any(_runs(board, variant, wanted) for variant in variants):
                yield board

    def _model_of(self, one: Replica) -> Model | None:
        template = self._template_of(one)
        return self._world.models.get((one.metadata.namespace, template.model)) if template is not None else None

    def _template_of(self, one: Replica) -> Template | None:
        namespace = one.metadata.namespace
        revision = self._world.revisions.get((namespace, one.spec.revision_name))
        deployment = self._world.deployments.get((namespace, one.spec.deployment_name))
        return revision.spec.template if revision is not None else deployment.spec.template if deployment is not None else None

    # ---- Boards ----------------------------------------------------------------------------------------------------------------

    def _board(self, one: Board) -> _Finding:
        meta, name = one.metadata, self._board_words(one.metadata.name)
        if meta.deletion_timestamp:
            return _Finding(one, "Working", f"{name} is being deleted", f"rkfleet describe board {meta.name}")
        if (ailing := self._ailing(one) or self._without_npu(one)) is not None:
            return ailing
        replicas = self._world.on_board(meta.name)
        if any(taint.key == TAINT_DRAIN for taint in one.spec.taints):
            return self._drained(one, name, replicas)
        serving = sum(conditions.is_true(replica.status.conditions, conditions.READY) for replica in replicas)
        state = f"{name} is in session and {serving} of {len(replicas)} replicas on it serve"
        if one.spec.unschedulable:
            return _Finding(one, "Well", f"{state}; it is cordoned, so nothing new comes", f"rkfleet board uncordon {meta.name}")
        return _Finding(one, "Well", state)

    def _ailing(self, one: Board) -> _Finding | None:
        """Return what keeps a board from running what it should, or None for one that can."""
        name, look = self._board_words(one.metadata.name), f"rkfleet describe board {one.metadata.name}"
        if (away := self._away(one)) is not None:
            return away
        if one.status.assignment.message:
            return _Finding(
                one, "NeedsHelp", f"{name} refused what it should run: {_lower(one.status.assignment.message.rstrip('.'))}", look
            )
        for type, helps in ((conditions.DISK_PRESSURE, "on the board: df -h"), (conditions.MEMORY_PRESSURE, "rkfleet top boards")):
            said = _said(one.status.conditions, type)
            if said.status == "True":
                why, command = _words(said, helps)
                return _Finding(one, "NeedsHelp", f"{name} is under {type}: {why}", command)
        for type in (conditions.LEDGER_DAMAGED, conditions.IDENTITY_CONFLICT):
            said = _said(one.status.conditions, type)
            if said.status == "True":
                why, command = _words(said, look)
                return _Finding(one, "NeedsHelp", f"{name} has {type}: {why}", command)
        return None

    def _without_npu(self, one: Board) -> _Finding | None:
        """Return why a board cannot use its NPU, or None for one that can, or has none."""
        said = _said(one.status.conditions, conditions.NPU_READY)
        if said.status != "False":
            return None
        why, command = _words(said, f"rkfleet describe board {one.metadata.name}")
        return _Finding(one, "NeedsHelp", f"{self._board_words(one.metadata.name)} cannot use its NPU: {why}", command)

    def _drained(self, one: Board, name: str, replicas: Sequence[Replica]) -> _Finding:
        left = self._world.left_on(one)
        if not left:
            return _Finding(one, "Well", f"{name} is drained: nothing runs there", f"rkfleet board uncordon {one.metadata.name}")
        says = f"{name} is being drained and still has {listed(left, NAMED_MAX)}"
        owners = {(replica.metadata.namespace, replica.spec.deployment_name): None for replica in replicas}
        found = [self._deployment(owner) for key in owners if (owner := self._world.deployments.get(key)) is not None]
        worst = max((said for said in found if said.severity), key=lambda said: said.severity, default=None)
        return _Finding(one, "Working", says, "rkfleet get replicas -A -w --wide", worst)

    def _away(self, one: Board) -> _Finding | None:
        """Return what keeps a board from taking part, or None for one that is in session."""
        said, name = _said(one.status.conditions, conditions.READY), self._board_words(one.metadata.name)
        if said.status == "True":
            return None
        for_ = f" for {self._age(said)}" if said.last_transition_time else ""
        match said.reason:
            case conditions.BOARD_LOST:
                return _Finding(one, "NeedsHelp", f"{name} has been lost{for_}: it has no session", _ON_THE_BOARD)
            case conditions.AWAITING_RECONNECT:
                events = f"rkfleet events --for board/{one.metadata.name}"
                return _Finding(one, "Working", f"{name} has had no session{for_} and is expected back within a minute", events)
            case _:
                return _Finding(one, "NeedsHelp", f"{name} has enrolled and never opened a session", _ON_THE_BOARD)

    def _board_words(self, name: str) -> str:
        board = self._world.boards.get(name)
        return f"board {name} (simulated)" if board is not None and board.status.simulated else f"board {name}"

    def _age(self, said: Condition) -> str:
        return human_duration((self._world.now - parse_time(said.last_transition_time)).total_seconds())

    # ---- Models ----------------------------------------------------------------------------------------------------------------

    def _model(self, one: Model) -> _Finding:
        meta, name = one.metadata, f"model {one.metadata.name}"
        look = f"rkfleet describe model {meta.name} -n {meta.namespace}"
        if meta.deletion_timestamp:
            return _Finding(one, "Working", f"{name} is being deleted and waits for the replicas that run it", look)
        said = _said(one.status.conditions, conditions.READY)
        why, command = _words(said, look)
        if said.status == "True":
            return _Finding(one, "Well", f"{name} can be used: {why}")
        if not said.reason:
            return _Finding(one, "Working", f"{name} has not been looked at yet", look)
        return _Finding(one, "NeedsHelp", f"{name} cannot be fetched: {why}", command)


# ---- Words ---------------------------------------------------------------------------------------------------------------------


def _said(found: Iterable[Condition], type: str) -> Condition:
    """Return the condition of this type; absent is Unknown without a reason."""
    return conditions.find(found, type) or Condition(type=type, status="Unknown", reason="")


def _words(said: Condition, command: str) -> tuple[str, str]:
    """Return what a condition says, to stand in the middle of a sentence, and the command that helps; `command` if it names none."""
    why, helps = conditions.advice(said.message)
    return _lower(conditions.shorten(why or said.reason, SAYS_LENGTH_MAX)), helps or command


def _runs(board: Board, variant: Variant, runtime_version: str) -> bool:
    """Whether the board could run the variant if nothing else were there; `runtime_version` is what the template asks for."""
    fits = variant.soc in ("any", board.status.soc) and parse_bytes(variant.requires.memory) <= parse_bytes(board.status.allocatable.memory)
    return fits and any(
        one.name == variant.runtime and meets(one.version, variant.requires.runtime_version) and meets(one.version, runtime_version)
        for one in board.status.runtimes
    )


def _is_cordoned(board: Board) -> bool:
    return board.spec.unschedulable or any(taint.key == TAINT_DRAIN for taint in board.spec.taints)


def _replicas_command(one: ModelDeployment) -> str:
    return f"rkfleet get replicas -n {one.metadata.namespace} -l {LABEL_DEPLOYMENT}={one.metadata.name}"


def _lower(text: str) -> str:
    """Return a sentence as the middle of another: names and abbreviations keep their capitals."""
    return text[:1].lower() + text[1:] if text[1:2].islower() else text
