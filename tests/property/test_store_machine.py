"""Every store against a plain dictionary, see `tests/support/store_machine.py`."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from controller.store.base import Store
from controller.store.sql.store import SqlStore
from rkfleet.kinds import KINDS
from tests.support.kubernetes_stores import open_kubernetes_store
from tests.support.postgres import postgres_url, server
from tests.support.store_machine import LOG_EVENTS, StoreMachine


def examples(count: int) -> settings:
    return settings(max_examples=count, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class SqliteMachine(StoreMachine):
    """A file."""

    def opened(self) -> AbstractAsyncContextManager[Store]:
        return SqlStore.open(self.directory / "store.db", KINDS, log_events_max=LOG_EVENTS)


class PostgresMachine(StoreMachine):
    """A database of a real server."""

    url = ""

    def opened(self) -> AbstractAsyncContextManager[Store]:
        self.url = self.url or postgres_url()
        return SqlStore.open(self.url, KINDS, log_events_max=LOG_EVENTS)

    def teardown(self) -> None:
        super().teardown()
        server().drop(self.url)


class TwoControllersMachine(PostgresMachine):
    """Two stores on one database, which take turns by the call, so that each goes on with what the other began."""

    def opened(self) -> AbstractAsyncContextManager[Store]:
        @contextlib.asynccontextmanager
        async def both() -> AsyncIterator[Store]:
            async with super(TwoControllersMachine, self).opened() as one, super(TwoControllersMachine, self).opened() as other:
                self.turns = itertools.cycle((one, other))
                yield one

        return both()

    @property
    def store(self) -> Store:
        return next(self.turns)


class KubernetesMachine(StoreMachine):
    """The API of Kubernetes, here our own over SQLite."""

    def opened(self) -> AbstractAsyncContextManager[Store]:
        return open_kubernetes_store(self.directory, {"log_events_max": LOG_EVENTS})


MACHINES = [
    pytest.param(SqliteMachine, 15, id="sqlite"),
    pytest.param(PostgresMachine, 5, id="postgres"),
    pytest.param(TwoControllersMachine, 6, id="two-controllers"),
    pytest.param(KubernetesMachine, 3, id="kubernetes"),
]


@pytest.mark.parametrize(("machine", "count"), MACHINES)
def test_a_store_is_its_dictionary(machine: type[StoreMachine], count: int) -> None:
    run_state_machine_as_test(machine, settings=examples(count))


@pytest.mark.soak
@pytest.mark.parametrize(("machine", "count"), MACHINES)
def test_a_store_is_its_dictionary_for_longer(machine: type[StoreMachine], count: int, soak_factor: int) -> None:
    run_state_machine_as_test(machine, settings=examples(count * soak_factor))
