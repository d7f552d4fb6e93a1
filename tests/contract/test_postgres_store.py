"""The store contract, kept by PostgreSQL."""

from __future__ import annotations

import pytest

from controller.store.sql.store import SqlStore
from rkfleet.kinds import KINDS
from tests.contract.own_objects_suite import OwnObjectsSuite
from tests.support.postgres import postgres_url
from tests.support.stores import OpenStore


class TestPostgresStore(OwnObjectsSuite):
    @pytest.fixture
    def open_store(self) -> OpenStore:
        url = postgres_url()
        return lambda: SqlStore.open(url, KINDS)
