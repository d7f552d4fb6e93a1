"""The store contract, kept by SQLite."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.store.sql.store import SqlStore
from rkfleet.kinds import KINDS
from tests.contract.own_objects_suite import OwnObjectsSuite
from tests.support.stores import OpenStore


class TestSqliteStore(OwnObjectsSuite):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        return lambda: SqlStore.open(tmp_path / "store.db", KINDS)
