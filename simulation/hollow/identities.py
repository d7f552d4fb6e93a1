"""The identities of hollow boards: enrolled for real, one join token and one P-256 key each, and kept in memory or in one file.

In: an admin's client, names of boards, and perhaps the file of an earlier run. Out: an `Enrolled` for each. Called once by `app.py`.
Nothing of trust is shortened: the CA is compared with the pin of the token, each key signs its own request, and a board whose name is
taken by another key is refused by the controller.

A controller remembers boards and this program does not, unless it is told to (`--state FILE`): without the file a second run with the
same names is refused, and the message says what to do. A board of the file that was deleted from the fleet joins anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec

from rkfleet import enroll
from rkfleet.client import ApiClient
from rkfleet.disk import SystemDisk, write_durably
from rkfleet.enrolment import JOIN_TOKENS_PATH
from rkfleet.errors import AlreadyExists, FailedPrecondition, PermissionDenied
from rkfleet.identity import Enrolment
from rkfleet.kinds import Board

__all__ = ["Enrolled", "ensure_identities", "read_state", "write_state"]

ENROL_AT_ONCE: Final = 16  # The controller signs one after the other; more would only wait there, each in a thread.
STATE_BYTES_MAX: Final = 64 << 20  # 10,000 boards have 30 MB.


class Enrolled(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One board's identity: what a shipped agent keeps in its `identity/` directory."""

    name: str
    fleet_id: str
    session_address: str
    machine_id: str
    key_pem: str
    certificate_pem: str
    ca_pem: str


class _State(msgspec.Struct, frozen=True):
    boards: tuple[Enrolled, ...] = ()


def read_state(path: Path) -> tuple[Enrolled, ...]:
    """Return the identities that an earlier run left in `path`; none if there is no such file.

    Raises:
        FailedPrecondition: The file is there and cannot be used.
    """
    try:
        if path.stat().st_size > STATE_BYTES_MAX:
            raise FailedPrecondition(f"--state {path} is larger than {STATE_BYTES_MAX} bytes; give another file")
        return msgspec.json.decode(path.read_bytes(), type=_State).boards
    except FileNotFoundError:
        return ()
    except (OSError, msgspec.MsgspecError) as error:
        raise FailedPrecondition(f"--state {path} cannot be used: {error}; give another file") from error


def write_state(path: Path, boards: Iterable[Enrolled]) -> None:
    """Keep identities in `path`, mode 0600, because it holds their keys.

    Raises:
        FailedPrecondition: The file cannot be written.
    """
    content = msgspec.json.encode(_State(tuple(boards)))
    try:
        write_durably(path, content, path.with_name(f".{path.name}.partial"), SystemDisk())
    except OSError as error:
        raise FailedPrecondition(f"--state {path} cannot be written: {error.strerror or error}") from error


async def ensure_identities(
    client: ApiClient, names: Sequence[str], kept: Sequence[Enrolled], machine_id: Callable[[], str], on_enrolled: Callable[[int], None]
) -> Mapping[str, Enrolled]:
    """Return an identity for each name: the kept one if its Board is still there, else a new one.

    Args:
        client: An admin's.
        names: Of all boards.
        kept: Identities of earlier runs; of other fleets and names are passed over.
        machine_id: Makes the identity of a machine that does not exist.
        on_enrolled: Called with the number of boards that have one.

    Raises:
        AlreadyExists: A board of such a name is in the fleet and its key is not kept here.
        FleetError: The controller cannot be reached or refuses.
    """
    existing = {one["metadata"]["name"] for one in (await client.list(Board.resource.name)).items}
    known = {one.name: one for one in kept if one.name in existing}
    if taken := sorted(existing.intersection(names) - known.keys()):
        raise AlreadyExists(
            f"boards {', '.join(taken[:3])}{f' and {len(taken) - 3} more' if len(taken) > 3 else ''} exist already and their keys are not"
            f" here; give the --state file of the run that made them, choose another --prefix, or delete them first:"
            f" kubectl delete boards {' '.join(taken[:3])}{' ...' if len(taken) > 3 else ''}"
        )
    found = {name: known[name] for name in names if name in known}
    waiting = [name for name in names if name not in found]
    ca_pem = ""
    with ThreadPoolExecutor(ENROL_AT_ONCE, thread_name_prefix="enrol") as threads:

        async def work() -> None:
            nonlocal ca_pem
            while waiting:
                name = waiting.pop(0)
                answer: Any = await client.request("POST", JOIN_TOKENS_PATH, body={"role": "board"})
                enrolment = Enrolment(
                    role="board",
                    name=name,
                    controller=client.cluster.server,
                    token=answer["token"],
                    ca_pin=answer["caPin"],
                    machine_id=machine_id(),
                )
                loop = asyncio.get_running_loop()
                ca_pem = ca_pem or await loop.run_in_executor(threads, enroll.fetch_ca, enrolment.controller, enrolment.ca_pin)
                found[name] = await loop.run_in_executor(threads, _enrol, enrolment, ca_pem)
                on_enrolled(len(found))

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(ENROL_AT_ONCE, len(waiting))):
                    tasks.create_task(work())
        except BaseExceptionGroup as group:
            waiting.clear()
            raise group.exceptions[0] from None
    _check_fleet(found.values())
    return found


def _enrol(enrolment: Enrolment, ca_pem: str) -> Enrolled:
    key = enroll.new_key()
    answer = enroll.request_certificates(enrolment, key, ca_pem)
    return Enrolled(
        name=enrolment.name,
        fleet_id=answer.fleet_id,
        session_address=answer.session_address,
        machine_id=enrolment.machine_id,
        key_pem=enroll.private_pem(key).decode(),
        certificate_pem=answer.certificate_pem,
        ca_pem=answer.ca_pem,
    )


def _check_fleet(boards: Iterable[Enrolled]) -> None:
    """See to it that the kept identities are of one fleet: names can be equal in two."""
    fleets = sorted({one.fleet_id for one in boards})
    if len(fleets) > 1:
        raise PermissionDenied(f"the identities are of fleets {', '.join(fleets)}; give the --state file of this fleet only")
