"""The store contract, kept over the API of Kubernetes, which is here the product's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.store_suite import StoreSuite
from tests.support.kubernetes_stores import open_kubernetes_store
from tests.support.stores import OpenStore


class TestKubernetesStore(StoreSuite):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        return lambda: open_kubernetes_store(tmp_path)
