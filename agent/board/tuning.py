"""Brings a board's clocks to its profile, and back to what they were.

In: the file system root, a profile, and a file that remembers. Out: one `Item` for each clock, with what was wanted and what was found when
it was read back. Called by the helper `agent/clocks.py`, which is root, and by `agent/board/clock_control.py`, where the agent may write
itself; both block. Only the standard library is imported.

Before the first write, what every file said and what will be written to it is made durable, together with the boot. So a kill at any
moment leaves a record that undoes it; and a boot, which puts every clock back by itself, makes the record void. Undoing touches a file only
if it still says what was written: what somebody else has changed since is theirs, is left, and is told.

Sources: Linux `Documentation/admin-guide/pm/cpufreq.rst` (scaling_setspeed works under governor userspace only), `sysfs-class-devfreq`.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from agent.board.profile import Domain, Item, Outcome, Profile
from agent.board.readings import read_int, read_text

__all__ = ["Record", "apply", "can_write", "read", "read_record", "undo"]

USERSPACE: Final = "userspace"
CLOCK_SHARE_MIN: Final = 0.97  # A PLL makes what is nearest to the request.
RECORD_BYTES_MAX: Final = 64 << 10  # Some thirty files at 200 bytes; anything larger is not ours.
_KILO: Final = 1000


class Write(NamedTuple):
    """A value that was or will be written to a file below the root, and what the file said before."""

    item: str
    path: str
    before: str
    wrote: str


class Record(NamedTuple):
    """What was changed since a boot, in the order of writing.

    Attributes:
        complete: Every write was made; else a kill may have come in between.
        problem: Why the file could not be read.
    """

    boot_id: str = ""
    writes: tuple[Write, ...] = ()
    complete: bool = True
    problem: str = ""


# ---- reading -------------------------------------------------------------------------------------------------------------------------


def read(root: Path, profile: Profile) -> tuple[Item, ...]:
    """Return how each clock stands to the profile now; writes nothing."""
    return (*(_read_domain(root, domain) for domain in profile.domains), _read_idle(root, profile))


def _read_domain(root: Path, domain: Domain) -> Item:
    directory = _directory(root, domain)
    wanted = f"{USERSPACE} {_shown(domain.hertz)}"
    if directory is None:
        return Item(domain.name, f"/{domain.directory}", wanted, "no such node", "missing", needed=domain.needed)
    governor, files = read_text(root / directory / _files(domain).governor), _files(domain)
    request, current = read_int(root / directory / files.request), read_int(root / directory / files.current)
    got = f"{governor or 'unknown governor'} {_shown(current * files.unit) if current is not None else 'unknown frequency'}"
    outcome: Outcome = "differs"
    if governor == USERSPACE and request == domain.hertz // files.unit and current is not None:
        if current * files.unit >= CLOCK_SHARE_MIN * domain.hertz:
            outcome = "pinned"
        elif (highest := _highest(root / directory, domain)) is not None and highest < domain.hertz and current * files.unit >= highest:
            outcome = "highest"
    return Item(domain.name, f"/{directory}", wanted, got, outcome, needed=domain.needed)


def _read_idle(root: Path, profile: Profile) -> Item:
    """Kernels without deep idle states have nothing to switch off: that is as good as switched off."""
    said = {path: text for path in _idle_files(profile) if (text := read_text(root / path)) is not None}
    on = [path for path, text in said.items() if text != "1"]
    node = "/sys/devices/system/cpu/cpu*/cpuidle/state1"
    got = f"{len(said) - len(on)} of {len(said)} cores off" if said else "no such node"
    return Item("idle", node, "off", got, "differs" if on else "pinned" if said else "missing", needed=False)


class _Files(NamedTuple):
    governor: str
    request: str
    current: str
    unit: int


_NAMES: Final[Mapping[str, _Files]] = {
    "devfreq": _Files("governor", "userspace/set_freq", "cur_freq", 1),
    "cpufreq": _Files("scaling_governor", "scaling_setspeed", "scaling_cur_freq", _KILO),
}


def _files(domain: Domain) -> _Files:
    return _NAMES[domain.kind]


def _directory(root: Path, domain: Domain) -> str | None:
    """Return the clock's directory below the root, or None if the kernel has no such clock."""
    found = sorted(glob.glob(domain.directory, root_dir=root))
    return found[0] if found else None


def _highest(directory: Path, domain: Domain) -> int | None:
    """Return the highest frequency that this very chip offers, in hertz: chips of one kind differ by their bin."""
    if domain.kind == "cpufreq":
        kilohertz = read_int(directory / "cpuinfo_max_freq")
        return kilohertz * _KILO if kilohertz else None
    offered = (read_text(directory / "available_frequencies") or "").split()
    return max((int(word) for word in offered if word.isascii() and word.isdecimal()), default=None)


def _idle_files(profile: Profile) -> Iterable[str]:
    return (f"sys/devices/system/cpu/cpu{cpu}/cpuidle/state1/disable" for cpu in range(profile.cpus))


def _shown(hertz: int) -> str:
    return f"{hertz / 1e6:.0f} MHz"


def can_write(root: Path, profile: Profile) -> bool:
    """Return whether this process may write to every needed clock that is there; False if none is."""
    needed = [(domain, directory) for domain in profile.domains if domain.needed and (directory := _directory(root, domain)) is not None]
    files = [root / directory / _files(domain).governor for domain, directory in needed]
    return bool(files) and all(os.access(one, os.W_OK, effective_ids=True) for one in files)


# ---- applying ------------------------------------------------------------------------------------------------------------------------


def apply(root: Path, profile: Profile, record_file: Path, boot_id: str) -> tuple[Item, ...]:
    """Bring every clock to the profile and read back; what is so already is not written.

    Raises:
        OSError: The record cannot be made durable. Nothing was written then, because it could not be undone.
    """
    record = read_record(record_file)
    known = {write.path: write for write in _of_boot(record, boot_id)}
    planned = tuple(_planned(root, profile))
    # Of a file that was written before, what it said before that is what must come back.
    merged = {**known, **{one.path: one._replace(before=known[one.path].before) if one.path in known else one for one in planned}}
    writes = tuple(merged.values())
    if merged != known:
        _save(record_file, Record(boot_id, writes, complete=False))
    refused: dict[str, str] = {}
    for write in planned:
        if write.item not in refused and (why := _put(root, write.path, write.wrote)):
            refused[write.item] = why
    if merged != known or (known and not record.complete):
        with contextlib.suppress(OSError):  # Without it the record says less, and undoes as much.
            _save(record_file, Record(boot_id, writes))
    return tuple(_with_refusal(item, refused.get(item.name, "")) for item in read(root, profile))


def _with_refusal(item: Item, why: str) -> Item:
    return item._replace(outcome="refused", why=why) if why and item.outcome == "differs" else item


def _planned(root: Path, profile: Profile) -> Iterable[Write]:
    """Yield the writes that bring the clocks to the profile, in order: a request is taken under governor userspace only."""
    for path in _idle_files(profile):
        if (before := read_text(root / path)) is not None and before != "1":
            yield Write("idle", path, before, "1")
    for domain in profile.domains:
        if (directory := _directory(root, domain)) is None:
            continue
        files, wanted = _files(domain), str(domain.hertz // _files(domain).unit)
        governor = read_text(root / directory / files.governor)
        if governor is not None and governor != USERSPACE:
            yield Write(domain.name, f"{directory}/{files.governor}", governor, USERSPACE)
        # Under another governor the request says nothing that would have to come back: the governor brings its own.
        request = (read_text(root / directory / files.request) or "") if governor == USERSPACE else ""
        if request != wanted:
            yield Write(domain.name, f"{directory}/{files.request}", request, wanted)


def _put(root: Path, path: str, text: str) -> str:
    """Write to a node; return why it did not take it, empty if it did."""
    try:
        descriptor = os.open(root / path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            # Nodes of sysfs have no length to cut; plain files, which tests have in their place, do.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{text}\n".encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        return f"/{path} does not take {text}: {error.strerror}"
    return ""


# ---- undoing -------------------------------------------------------------------------------------------------------------------------


def undo(root: Path, record_file: Path, boot_id: str) -> tuple[Item, ...]:
    """Put back what was changed since this boot, and forget it; what has another value by now is left.

    Raises:
        OSError: The record cannot be removed.
    """
    record = read_record(record_file)
    ours = _by_item(_of_boot(record, boot_id))
    items = [_undo_item(root, name, writes, complete=record.complete) for name, writes in ours.items()]
    if record.problem:
        items.append(Item("record", str(record_file), "", "", "left", record.problem, needed=False))
    if not any(item.outcome == "refused" for item in items):
        record_file.unlink(missing_ok=True)
    return tuple(items)


def _by_item(writes: Iterable[Write]) -> Mapping[str, tuple[Write, ...]]:
    found: dict[str, tuple[Write, ...]] = {}
    for write in writes:
        found[write.item] = (*found.get(write.item, ()), write)
    return found


def _undo_item(root: Path, name: str, writes: tuple[Write, ...], *, complete: bool) -> Item:
    """Undo the writes to one clock, the last first: all of them, or none if one of them is somebody else's by now."""
    node, before = "/" + str(Path(writes[0].path).parent), writes[0].before
    now = {write.path: read_text(root / write.path) for write in writes}
    governor = next((now[write.path] for write in writes if write.wrote == USERSPACE), USERSPACE)
    for write in writes:
        said = now[write.path]
        # A request that no governor follows, or one that the governor brought and a kill left without ours.
        idle = write.before == "" and (governor != USERSPACE or not complete)
        if said is not None and said not in (write.wrote, write.before) and not idle:
            was = f" nor {write.before} as it was before" if write.before else ""
            why = f"/{write.path} says {said}, not {write.wrote} as it was set{was}: somebody else has changed it, so it is left"
            return Item(name, node, before, said, "left", why)
    for write in reversed(writes):
        if write.before and now[write.path] == write.wrote and (why := _put(root, write.path, write.before)):
            return Item(name, node, before, write.wrote, "refused", why)
    return Item(name, node, before, before, "restored")


# ---- the record ----------------------------------------------------------------------------------------------------------------------


def read_record(path: Path) -> Record:
    """Return what was changed, or an empty record if nothing is known."""
    try:
        with path.open("rb") as file:
            body = file.read(RECORD_BYTES_MAX)
    except FileNotFoundError:
        return Record()
    except OSError as error:
        return Record(problem=f"{path} cannot be read: {error.strerror}")
    try:
        found: Any = json.loads(body)
        writes = tuple(Write(*(str(one[name]) for name in Write._fields)) for one in found["writes"])
        return Record(str(found["bootId"]), writes, bool(found["complete"]))
    except (ValueError, KeyError, TypeError):
        return Record(problem=f"{path} is spoiled, so what the clocks were before is not known; the next boot puts them back")


def _of_boot(record: Record, boot_id: str) -> tuple[Write, ...]:
    """Return what was written since this boot; an earlier boot's writes went with it."""
    return record.writes if record.boot_id == boot_id else ()


def _save(path: Path, record: Record) -> None:
    """Make the record durable: the whole of the new one or the whole of the old one is there after a kill."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    values = {"bootId": record.boot_id, "complete": record.complete, "writes": [write._asdict() for write in record.writes]}
    body = json.dumps(values, indent=1)
    with scratch.open("w") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
