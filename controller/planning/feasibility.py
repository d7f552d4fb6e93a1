"""Whether a board can take a replica, and the reason with value and limit if it cannot.

In: a board with what is reserved on it (`BoardLoad`), and what a replica needs (`Need`). Out: a `Fit` with the variant to run, or a
`Misfit`. `planning/placement.py` asks for every board; it is apart because these rules are what operators read about.

The rules are asked in a fixed order, those about the board before those about a variant. Of several variants that all do not fit the one
that came furthest gives the reason: on an RK3588 with too little memory nobody wants to read that the RK3576 variant is for another chip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from controller.planning.actions import Value
from rkfleet import conditions
from rkfleet.kinds.board import Board, Taint, Toleration
from rkfleet.kinds.deployment import Placement
from rkfleet.kinds.model import Variant
from rkfleet.meta import format_selector, matches
from rkfleet.quantity import format_bytes, parse_bytes, round_bytes
from rkfleet.versions import meets

__all__ = ["BoardLoad", "Fit", "Misfit", "Need", "Reservation", "check_board", "reserved_bytes", "taint_text", "tolerates"]


_NPU_RUNTIMES = frozenset({"rkllm", "rknn"})


class Reservation(Value, frozen=True, kw_only=True):
    """What one replica or one worker that still runs holds on a board.

    Attributes:
        replaces: Uid of the one whose place it takes: the two share their memory, because never both are loaded.
        digests: Files by digest, with their bytes; replicas share equal files.
        cache_bytes: Storage for saved prompts (`serving.promptCache`).
        on_demand: Loaded by a request and unloaded for another (`serving.load`): of all on a board only the largest is counted.
    """

    memory_bytes: int
    replaces: str = ""
    deployment: str = ""
    digests: Mapping[str, int] = {}
    cache_bytes: int = 0
    on_demand: bool = False


class BoardLoad(Value, frozen=True, kw_only=True):
    """A board and everything that is placed on it or runs there, by uid.

    Attributes:
        memory_bytes: What replicas may reserve.
        storage_bytes: What artifacts may take; 0 where the board does not say.
    """

    board: Board
    memory_bytes: int
    storage_bytes: int = 0
    reservations: Mapping[str, Reservation] = {}


class Need(Value, frozen=True, kw_only=True):
    """What a replica asks for.

    Attributes:
        variants: Those that may be used, in order of preference.
        replaces: Uid of the replica whose place it takes; empty for none.
        order_stated: Whether the order is the template's; else it is the Model's.
        runtime_version: Comparisons that the runtime must meet besides those of the variant.
        cache_bytes: Storage for saved prompts.
        on_demand: As in `Reservation`.
    """

    deployment: str
    placement: Placement
    variants: Sequence[Variant]
    context_tokens: int
    replaces: str = ""
    order_stated: bool = False
    runtime_version: str = ""
    cache_bytes: int = 0
    on_demand: bool = False


class Fit(Value, frozen=True, kw_only=True):
    """The board can run this variant.

    Attributes:
        preference: Place of the variant in the order of preference, from 0.
        free_bytes: Memory that stays free afterwards.
    """

    variant: Variant
    preference: int
    free_bytes: int
    reservation: Reservation


class Misfit(Value, frozen=True, kw_only=True):
    """The board cannot. `group` says why, the same for all boards with this reason; `detail` adds the board's own value.

    Attributes:
        depth: How far the check came; of several variants the deepest reason is told.
    """

    depth: int
    group: str
    detail: str = ""


def check_board(load: BoardLoad, need: Need) -> Fit | Misfit:
    """Return the preferred variant that fits the board now, or why none does."""
    if (misfit := _check_board_itself(load.board, need.placement)) is not None:
        return misfit
    deepest = Misfit(depth=0, group="no variant of the Model is allowed")
    for preference, variant in enumerate(need.variants):
        found = _check_variant(load, need, variant, preference)
        if isinstance(found, Fit):
            return found
        if found.depth > deepest.depth:
            deepest = found
    return deepest


def reserved_bytes(reservations: Mapping[str, Reservation]) -> int:
    """Return the memory that these hold together: of a replica and the successor that waits for its place, the larger of the two.

    Of those that are loaded on demand the largest: the board unloads one for another, and never has more loaded than fits.
    """
    successors: dict[str, list[str]] = {}
    for uid, one in reservations.items():
        if one.replaces and one.replaces in reservations and one.replaces != uid:
            successors.setdefault(one.replaces, []).append(uid)
    followers = {uid for group in successors.values() for uid in group}

    def chain(uid: str) -> int:
        return max(reservations[uid].memory_bytes, sum(chain(other) for other in successors.get(uid, ())))

    heads = [uid for uid in reservations if uid not in followers]
    by_turns = max((chain(uid) for uid in heads if reservations[uid].on_demand), default=0)
    return by_turns + sum(chain(uid) for uid in heads if not reservations[uid].on_demand)


def tolerates(tolerations: Sequence[Toleration], taint: Taint) -> bool:
    """Return whether one of the tolerations matches the taint. Source: Kubernetes `core/v1/toleration.go`, ToleratesTaint."""
    return any(_tolerates(one, taint) for one in tolerations)


def taint_text(taint: Taint) -> str:
    """Return a taint as kubectl writes it: `key=value:effect`."""
    return f"{taint.key}={taint.value}:{taint.effect}" if taint.value else f"{taint.key}:{taint.effect}"


def _tolerates(one: Toleration, taint: Taint) -> bool:
    if one.effect and one.effect != taint.effect:
        return False
    if one.key and one.key != taint.key:
        return False
    if not one.key and one.operator != "Exists":
        return False
    return one.operator == "Exists" or one.value == taint.value


# ---- Rules about the board -----------------------------------------------------------------------------------------------------


def _check_board_itself(board: Board, placement: Placement) -> Misfit | None:
    group = next(_objections(board, placement), "")
    return Misfit(depth=1, group=group) if group else None


def _objections(board: Board, placement: Placement) -> Iterator[str]:
    if not matches(placement.board_selector, board.metadata.labels):
        yield f"not chosen by spec.placement.boardSelector ({format_selector(placement.board_selector)})"
    if board.metadata.deletion_timestamp:
        yield "being deleted"
    if board.spec.unschedulable:
        yield "cordoned (spec.unschedulable)"
    for taint in board.spec.taints:
        if not tolerates(placement.tolerations, taint):
            yield f"taint {taint_text(taint)} is not tolerated"
    ready = conditions.find(board.status.conditions, conditions.READY)
    if ready is None or ready.status != "True":
        yield f"no session ({ready.reason if ready else conditions.NEVER_CONNECTED})"
    for type in (conditions.MEMORY_PRESSURE, conditions.DISK_PRESSURE):
        if conditions.is_true(board.status.conditions, type):
            yield f"under {type}"


# ---- Rules about a variant on the board ------------------------------------------------------------------------------------------


def _check_variant(load: BoardLoad, need: Need, variant: Variant, preference: int) -> Fit | Misfit:
    status, requires = load.board.status, variant.requires
    if variant.soc not in ("any", status.soc):
        return Misfit(depth=2, group=f"no allowed variant is for the chip {status.soc or 'unknown'}")
    npu = conditions.find(status.conditions, conditions.NPU_READY) if variant.runtime in _NPU_RUNTIMES else None
    if npu is not None and npu.status == "False":
        return Misfit(depth=3, group=f"NPU is not ready ({npu.reason}), which variant {variant.name} needs")
    runtimes = [one for one in status.runtimes if one.name == variant.runtime]
    if not runtimes:
        return Misfit(depth=3, group=f"no runtime {variant.runtime}, which variant {variant.name} needs")
    fitting = [one for one in runtimes if meets(one.version, requires.runtime_version)]
    have = ", ".join(one.version or "unknown" for one in runtimes)
    if not fitting:
        group = f"{variant.runtime} is outside the {requires.runtime_version} of variant {variant.name}"
        return Misfit(depth=4, group=group, detail=f"has {have}")
    if not any(meets(one.version, need.runtime_version) for one in fitting):
        beside = f" and the {requires.runtime_version} of variant {variant.name}" if requires.runtime_version else ""
        group = f"no {variant.runtime} meets serving.runtimeVersion {need.runtime_version}{beside}"
        return Misfit(depth=4, group=group, detail=f"has {have}")
    driver = status.versions.npu_driver.version
    if not meets(driver, requires.driver_version):
        group = f"NPU driver is outside the {requires.driver_version} of variant {variant.name}"
        return Misfit(depth=5, group=group, detail=f"has {driver or 'none'}")
    if requires.npu_cores > status.capacity.npu_cores:
        group = f"fewer NPU cores than the {requires.npu_cores} of variant {variant.name}"
        return Misfit(depth=6, group=group, detail=f"has {status.capacity.npu_cores}")
    if need.context_tokens > variant.context_tokens:
        limit = f"serving.contextTokens {need.context_tokens} is above the {variant.context_tokens} of variant {variant.name}"
        return Misfit(depth=7, group=limit)
    return _check_room(load, need, variant, preference)


def _check_room(load: BoardLoad, need: Need, variant: Variant, preference: int) -> Fit | Misfit:
    reservation = Reservation(
        memory_bytes=parse_bytes(variant.requires.memory),
        replaces=need.replaces,
        deployment=need.deployment,
        digests={one.digest: one.size_bytes for one in variant.artifact.files},
        cache_bytes=need.cache_bytes,
        on_demand=need.on_demand,
    )
    files = {digest: size for one in (*load.reservations.values(), reservation) for digest, size in one.digests.items()}
    needed = sum(files.values()) + sum(one.cache_bytes for one in (*load.reservations.values(), reservation))
    if load.storage_bytes and needed > load.storage_bytes:
        prompts = f" and the {format_bytes(need.cache_bytes)} of serving.promptCache" if need.cache_bytes else ""
        group = f"too little storage for the {format_bytes(sum(reservation.digests.values()))} of variant {variant.name}{prompts}"
        return Misfit(depth=8, group=group, detail=f"has {format_bytes(load.storage_bytes)}, {format_bytes(needed)} would be used")
    memory = load.memory_bytes
    with_it = reserved_bytes({**load.reservations, "": reservation})
    if with_it > memory:
        group = f"variant {variant.name} needs {round_bytes(reservation.memory_bytes, up=True)} of memory"
        free = max(memory - reserved_bytes(load.reservations), 0)
        return Misfit(depth=9, group=group, detail=f"{round_bytes(free)} of {round_bytes(memory)} free")
    return Fit(variant=variant, preference=preference, free_bytes=memory - with_it, reservation=reservation)
