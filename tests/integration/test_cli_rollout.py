"""`rkfleet rollout status` against a real API: it ends when the rollout does, when it is stuck, and when its time is over."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rkfleet.cli.rollout import follow_rollout
from rkfleet.client import ApiClient, load_cluster
from rkfleet.clock import SystemClock
from rkfleet.errors import DeadlineExceeded, FailedPrecondition, NotFound
from tests.support.api import RunningApi, running_api
from tests.support.objects import DEPLOYMENTS, deployment

TIME = "2026-01-01T00:00:00Z"


async def say_status(api: RunningApi, status: str, reason: str, message: str = "") -> None:
    said = {
        "type": "Progressing",
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": TIME,
        "observedGeneration": 1,
    }
    status_now = {"observedGeneration": 1, "updatedReplicas": 1, "availableReplicas": 1, "conditions": [said]}
    headers = {"content-type": "application/merge-patch+json"}
    answer = await api.call("PATCH", f"{DEPLOYMENTS}/qwen/status", {"status": status_now}, headers=headers)
    assert answer.status_code == 200, answer.text


async def follow(directory: Path, *, status: tuple[str, str, str] | None, timeout_seconds: float, name: str = "qwen") -> list[str]:
    said: list[str] = []
    async with running_api(directory) as api:
        await api.call("POST", DEPLOYMENTS, deployment())
        if status is not None:
            await say_status(api, *status)
        async with ApiClient(load_cluster(api.kubeconfig), SystemClock()) as client:
            await follow_rollout(client, "default", name, timeout_seconds, said.append)
    return said


def test_a_finished_rollout_ends_it(tmp_path: Path) -> None:
    said = asyncio.run(follow(tmp_path, status=("True", "RolloutComplete", ""), timeout_seconds=20))
    assert said == ["deployment 'qwen' is rolled out: 1 of 1 updated, 1 available, revision "]


def test_a_rollout_that_does_not_finish_in_time_is_told_with_what_it_waits_for(tmp_path: Path) -> None:
    message = "0 of 1 replicas run revision x; waits for a board"
    with pytest.raises(DeadlineExceeded, match=r"did not complete within 0 s.*waits for a board") as caught:
        asyncio.run(follow(tmp_path, status=("True", "RollingOut", message), timeout_seconds=0.3))
    assert caught.value.exit_status == 7


@pytest.mark.parametrize("reason", ["ProgressDeadlineExceeded", "SurgeImpossible"])
def test_a_stuck_rollout_ends_it_with_the_reason(tmp_path: Path, reason: str) -> None:
    with pytest.raises(FailedPrecondition, match="is stuck: nothing has moved") as caught:
        asyncio.run(follow(tmp_path, status=("False", reason, "nothing has moved"), timeout_seconds=20))
    assert caught.value.exit_status == 1


@pytest.mark.parametrize("name", ["other", "qwen-2"])
def test_a_deployment_that_is_not_there_is_not_waited_for(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFound, match=name):
        asyncio.run(follow(tmp_path, status=None, timeout_seconds=20, name=name))


def test_without_a_timeout_the_state_is_shown_once(tmp_path: Path) -> None:
    said: Any = asyncio.run(follow(tmp_path, status=None, timeout_seconds=0))
    assert said == ["deployment 'qwen': waiting for the controller to see generation 1"]
