"""The store contract, kept by PostgreSQL."""

from __future__ import annotations

import pytest

from controller.store.sql.store import SqlStore
from rkfleet.kinds import KINDS
from tests.contract.store_suite import StoreSuite
from tests.support.postgres import postgres_url
from tests.support.stores import OpenStore


class TestPostgresStore(StoreSuite):
    @pytest.fixture
    def open_store(self) -> OpenStore:
        url = postgres_url()
        return lambda: SqlStore.open(url, KINDS)
