"""The real kubectl works with a kind that is one struct in a registry."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rkfleet.kinds import KINDS
from rkfleet.kinds.base import Registry
from tests.support.api import running_api
from tests.support.kubectl import Kubectl
from tests.support.widget import Widget

pytestmark = pytest.mark.kubectl


def widget(size: int) -> dict[str, object]:
    return {"apiVersion": "test.rkfleet.dev/v1alpha1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"sizeBytes": size}}


def test_a_new_kind_is_listed_explained_applied_judged_and_printed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running_api(tmp_path, registry=Registry((*KINDS, Widget))) as api:
            kubectl = Kubectl(api.kubeconfig, tmp_path / "home")
            assert "wg" in await kubectl.ok("api-resources", "--api-group=test.rkfleet.dev", "--no-headers")
            assert "sizeBytes\t<integer> -required-" in await kubectl.ok("explain", "widget.spec")
            assert "Size of the widget." in await kubectl.ok("explain", "widget.spec.sizeBytes")
            await kubectl.ok("apply", "-f", "-", stdin=widget(50))
            refused = await kubectl.run("apply", "-f", "-", stdin=widget(40))
            assert (refused.code, "spec.sizeBytes: sizeBytes may only grow" in refused.err) == (1, True)
            printed = await kubectl.ok("get", "wg")
            assert [line.split() for line in printed.splitlines()] == [["NAME", "COLOUR"], ["w", "blue"]]

    asyncio.run(scenario())
