"""Every command of kubectl with every version of it, over TLS with a token; the table that comes of it is checked in."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from controller.machinery.manager import Manager
from controller.machinery.reconciler import Source
from controller.reconcilers.act import Applier
from controller.reconcilers.garbage import GarbageReconciler
from controller.reconcilers.loops import garbage_keys
from controller.reconcilers.views import make_views
from rkfleet.clock import SystemClock
from rkfleet.kinds import KINDS
from tests.support.api import RunningApi, new_id, running_api
from tests.support.kubectl import Kubectl, kubectl_minors
from tests.support.kubectl_rows import ROWS, Bench, Row
from tests.support.kubectl_rows.table import PAGE, page
from tests.support.objects import namespace
from tests.support.silent_events import SilentEvents

pytestmark = pytest.mark.kubectl

AT_ONCE = 3  # Rows under way: more than the cores of a small machine, because rows also wait.
COMMANDS = [row.command for row in ROWS]
MINORS = (27, 28, 29, 30, 31, 32, 33)
OFTEN = (27, 30, 33)  # The oldest, one between, the newest; the others run in the campaign.


def _garbage(api: RunningApi) -> Manager:
    """Return what collects garbage: it ends deletions with --cascade=foreground and orphan."""
    clock = SystemClock()
    views = make_views(api.store, clock=clock, random=random.Random(1))
    garbage = GarbageReconciler(views, api.store, KINDS, Applier(api.store, clock, new_id, SilentEvents()))

    manager = Manager(clock=clock, random=random.Random(2))
    manager.add("garbage", garbage, *(Source(cache, garbage_keys(garbage, KINDS)) for cache in views))
    return manager


async def _failure(row: Row, bench: Bench) -> str:
    """Return how the row failed; empty when it works."""
    try:
        await row.check(bench)
    except (AssertionError, TimeoutError, asyncio.IncompleteReadError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


async def _failures(directory: Path, minor: int) -> dict[str, str]:
    """Run every row with one version; returns those that failed."""
    async with running_api(directory) as api:
        manager = _garbage(api)
        collecting = asyncio.ensure_future(manager.run())
        places = asyncio.Semaphore(AT_ONCE)
        kubectl = Kubectl(api.kubeconfig, directory / "home", minor)
        await kubectl.ok("api-resources")  # Fills the cache of discovery, that rows share as a person's commands do.

        async def run(number: int, row: Row) -> tuple[str, str]:
            async with places:
                name = f"row-{number}"
                await api.call("POST", "/api/v1/namespaces", namespace(name))
                return row.command, await _failure(row, Bench(api, kubectl, minor, name))

        try:
            found = await asyncio.gather(*(run(number, row) for number, row in enumerate(ROWS)))
        finally:
            collecting.cancel()
            await asyncio.wait([collecting])
    return {command: failure for command, failure in found if failure}


def _check(directory: Path, minor: int) -> None:
    failures = asyncio.run(_failures(directory, minor))
    expected = {row.command for row in ROWS if row.reason(minor)}
    broken = {command: failure for command, failure in failures.items() if command not in expected}
    assert not broken, "\n".join(f"kubectl 1.{minor} {command}: {failure}" for command, failure in broken.items())
    mended = expected - set(failures)
    assert not mended, f"with kubectl 1.{minor} these work now; take their reasons away and run make soak-kubectl: {sorted(mended)}"


def test_every_command_does_what_it_says(tmp_path: Path) -> None:
    minors = [minor for minor in OFTEN if minor in kubectl_minors()] or kubectl_minors()[-1:]
    for minor in minors:
        _check(tmp_path / str(minor), minor)


@pytest.mark.soak
@pytest.mark.parametrize("minor", MINORS)
def test_every_command_does_what_it_says_in_every_version(tmp_path: Path, minor: int) -> None:
    if minor not in kubectl_minors():
        pytest.skip(f"there is no kubectl.1.{minor} beside kubectl")
    _check(tmp_path, minor)


def test_the_table_of_commands_is_what_the_rows_say() -> None:
    """What rows say is what they do: the tests above hold each row to its reason, or to having none."""
    made = page(MINORS, COMMANDS, {(row.command, minor): row.reason(minor) for row in ROWS for minor in MINORS if row.reason(minor)})
    if os.environ.get("RKFLEET_UPDATE"):
        PAGE.write_text(made)
    assert PAGE.read_text() == made, "the table has changed; RKFLEET_UPDATE=1 writes it anew"


def test_the_rows_have_names_of_their_own() -> None:
    assert len(set(COMMANDS)) == len(COMMANDS)
