"""Day-two commands against a real API: what each does to the stored object, its words, its errors and exit statuses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rkfleet.kinds.board import TAINT_DRAIN
from tests.support.api import RunningApi, running_api
from tests.support.cli import Cli
from tests.support.objects import BOARDS, DEPLOYMENTS, GROUP_PATH, board, deployment, event
from tests.support.up import eventually

Json = dict[str, Any]
MERGE = {"content-type": "application/merge-patch+json"}
MODELS = f"{GROUP_PATH}/namespaces/default/models"
REVISIONS = f"{GROUP_PATH}/namespaces/default/modelrevisions"
REPLICAS = f"{GROUP_PATH}/namespaces/default/replicas"
EVENTS = "/api/v1/namespaces/default/events"
OLD: Json = {"model": "qwen2", "serving": {"contextTokens": 512}}


def story(directory: Path, tell: Callable[[RunningApi, Cli], Awaitable[None]]) -> None:
    """Run a story over an API and a command line."""

    async def run() -> None:
        async with running_api(directory) as api:
            await tell(api, Cli(api.kubeconfig))

    asyncio.run(run())


async def made(api: RunningApi, path: str, obj: Json, status: Json | None = None) -> Json:
    """Create an object, with a status if one is given."""
    answer = await api.call("POST", path, obj)
    assert answer.status_code == 201, answer.text
    if status is not None:
        answer = await api.call("PATCH", f"{path}/{obj['metadata']['name']}/status", {"status": status}, headers=MERGE)
        assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


async def read(api: RunningApi, path: str) -> Json:
    return (await api.call("GET", path)).json()  # type: ignore[no-any-return]


def of(kind: str, name: str, spec: Json, **metadata: Any) -> Json:
    return {"apiVersion": "rkfleet.dev/v1alpha1", "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec}


def said(type: str, status: str, reason: str, message: str = "") -> Json:
    time = "2026-01-01T00:00:00Z"
    return {"type": type, "status": status, "reason": reason, "message": message, "lastTransitionTime": time}


def model(name: str = "qwen2") -> Json:
    file = {"path": "m", "digest": f"sha256:{'a' * 64}", "sizeBytes": 1000}
    variant = {"name": "q4", "soc": "any", "dtype": "q4_1", "runtime": "llamacpp", "artifact": {"files": [file]}}
    return of("Model", name, {"variants": [{**variant, "requires": {"memory": "1Gi"}}]}, namespace="default")


async def with_history(api: RunningApi, name: str = "qwen") -> Json:
    """A deployment at the second of two revisions, beside a namesake's."""
    await made(api, MODELS, model())
    stored = await made(
        api, DEPLOYMENTS, deployment(name), {"observedGeneration": 1, "currentRevision": f"{name}-b", "updateRevision": f"{name}-b"}
    )
    owner = {"apiVersion": "rkfleet.dev/v1alpha1", "kind": "ModelDeployment", "name": name, "uid": stored["metadata"]["uid"]}
    for number, (suffix, template, uid) in enumerate(
        (("a", OLD, owner["uid"]), ("b", {"model": "qwen2"}, owner["uid"]), ("x", OLD, "other")), start=1
    ):
        spec = {"revision": number, "modelUID": "m", "deploymentName": name, "template": template}
        meta = {"namespace": "default", "labels": {"rkfleet.dev/deployment": name}, "ownerReferences": [{**owner, "uid": uid}]}
        await made(api, REVISIONS, of("ModelRevision", f"{name}-{suffix}", spec, **meta))
    return stored


# ---- rollout -------------------------------------------------------------------------------------------------------------------


def test_the_history_says_what_is_current_and_what_each_revision_changed(tmp_path: Path) -> None:
    async def tell(api: RunningApi, cli: Cli) -> None:
        await with_history(api)
        head, columns, first, second = (await cli.ok("rollout", "history", "qwen")).splitlines()
        assert head == "modeldeployment.rkfleet.dev/qwen"
        assert columns.split() == ["REVISION", "STATE", "NAME", "MODEL", "CREATED", "CHANGED"]
        assert first.split()[:2] == ["1", "qwen-a"]
        assert second.split()[:4] == ["2", "current", "qwen-b", "qwen2"]
        assert second.endswith("serving.contextTokens: 512 -> 1024")
        whole = await cli.ok("rollout", "history", "qwen", "--revision", "1")
        assert whole.startswith("modeldeployment.rkfleet.dev/qwen with revision #1\n")
        assert yaml.safe_load(whole.partition("\n")[2])["template"]["serving"]["contextTokens"] == 512
        listed = json.loads(await cli.ok("rollout", "history", "qwen", "-o", "json"))
        assert [one["metadata"]["name"] for one in listed["items"]] == ["qwen-a", "qwen-b"]
        one = json.loads(await cli.ok("rollout", "history", "qwen", "--revision", "2", "-o", "json"))
        assert one["kind"] == "ModelRevision"
        error = await cli.fails(3, "rollout", "history", "qwen", "--revision", "9")
        assert error == "error: unable to find revision 9 in the history of deployment 'qwen'; it has 1, 2\n"
        assert "not found" in await cli.fails(3, "rollout", "history", "nope")

    story(tmp_path, tell)


def test_undo_replaces_the_whole_template_by_the_one_before(tmp_path: Path) -> None:
    """Fields that only today's template has do not stay."""

    async def tell(api: RunningApi, cli: Cli) -> None:
        await with_history(api)
        template = {"model": "qwen2", "variants": ["q4"], "metadata": {"annotations": {"a": "b"}}}
        await api.call("PATCH", f"{DEPLOYMENTS}/qwen", {"spec": {"template": template}}, headers=MERGE)
        assert await cli.ok("rollout", "undo", "qwen") == "modeldeployment.rkfleet.dev/qwen rolled back\n"
        now = (await read(api, f"{DEPLOYMENTS}/qwen"))["spec"]["template"]
        assert "annotations" not in now.get("metadata", {})
        assert now.get("variants", []) == []
        assert now.get("serving", {}).get("contextTokens", 1024) == 1024, "revision 2, the newest whose template is another"
        assert await cli.ok("rollout", "undo", "qwen", "--to-revision", "1") == "modeldeployment.rkfleet.dev/qwen rolled back\n"
        assert (await read(api, f"{DEPLOYMENTS}/qwen"))["spec"]["template"]["serving"]["contextTokens"] == 512
        again = await cli.ok("rollout", "undo", "qwen", "--to-revision", "1")
        assert again == "modeldeployment.rkfleet.dev/qwen skipped rollback (current template already matches revision 1)\n"

    story(tmp_path, tell)


def test_undo_says_why_it_cannot(tmp_path: Path) -> None:
    async def tell(api: RunningApi, cli: Cli) -> None:
        assert "not found" in await cli.fails(3, "rollout", "undo", "nope")
        await made(api, DEPLOYMENTS, deployment("fresh"))
        assert "has nothing to go back to: it has no revision yet" in await cli.fails(1, "rollout", "undo", "fresh")
        await with_history(api)
        error = await cli.fails(3, "rollout", "undo", "qwen", "--to-revision", "3")
        assert "unable to find revision 3" in error
        assert "it has 1, 2" in error, "revisions of a namesake are not ours"
        await cli.ok("rollout", "pause", "qwen")
        error = await cli.fails(1, "rollout", "undo", "qwen")
        assert error.startswith(
            "error: you cannot roll back the paused deployment 'qwen'; resume it first with `rkfleet rollout resume qwen"
        )
        await cli.ok("rollout", "resume", "qwen")
        await api.call("DELETE", f"{MODELS}/qwen2")
        assert "revision 1 runs model 'qwen2', which does not exist" in await cli.fails(1, "rollout", "undo", "qwen")

    story(tmp_path, tell)


def test_pause_and_resume_can_be_said_twice(tmp_path: Path) -> None:
    async def tell(api: RunningApi, cli: Cli) -> None:
        await made(api, DEPLOYMENTS, deployment())
        said = [await cli.ok("rollout", word, "qwen") for word in ("pause", "pause", "resume", "resume")]
        assert said == [f"modeldeployment.rkfleet.dev/qwen {word}\n" for word in ("paused", "already paused", "resumed", "already resumed")]
        assert not (await read(api, f"{DEPLOYMENTS}/qwen"))["spec"].get("paused", False)

    story(tmp_path, tell)


def test_restart_changes_the_template_by_an_annotation_alone(tmp_path: Path) -> None:
    async def tell(api: RunningApi, cli: Cli) -> None:
        await made(api, DEPLOYMENTS, deployment(template={"model": "qwen2", "metadata": {"annotations": {"mine": "stays"}}}))
        assert await cli.ok("rollout", "restart", "qwen") == "modeldeployment.rkfleet.dev/qwen restarted\n"
        annotations = (await read(api, f"{DEPLOYMENTS}/qwen"))["spec"]["template"]["metadata"]["annotations"]
        assert annotations.keys() == {"mine", "rkfleet.dev/restartedAt"}
        await cli.ok("rollout", "pause", "qwen")
        assert "can't restart the paused deployment 'qwen'" in await cli.fails(1, "rollout", "restart", "qwen")

    story(tmp_path, tell)


def test_a_rollout_that_no_board_can_hold_ends_the_status_with_the_change_that_helps(tmp_path: Path) -> None:
    async def tell(api: RunningApi, cli: Cli) -> None:
        message = "waits for room for one more replica. Try: kubectl patch modeldeployment qwen"
        status = {"observedGeneration": 1, "conditions": [said("Progressing", "False", "SurgeImpossible", message)]}
        await made(api, DEPLOYMENTS, deployment(), status)
        error = await cli.fails(1, "rollout", "status", "qwen")
        assert error == f"error: deployment 'qwen' is stuck: {message}\n"
        await api.call(
            "PATCH", f"{DEPLOYMENTS}/qwen/status", {"status": {"conditions": [said("Progressing", "True", "RollingOut")]}}, headers=MERGE
        )
        assert "0 of 1 updated" in await cli.ok("rollout", "status", "qwen", "--no-watch")

    story(tmp_path, tell)


# ---- board ---------------------------------------------------------------------------------------------------------------------


def test_cordon_and_uncordon_leave_other_taints_alone(tmp_path: Path) -> None:
    async def tell(api: RunningApi, cli: Cli) -> None:
        other = {"key": "maintenance", "value": "fan", "effect": "NoSchedule"}
        await made(api, BOARDS, {**board("b"), "spec": {"taints": [other]}})
        await made(api, BOARDS, board("c"))
        assert await cli.ok("board", "cordon", "b", "c") == "board.rkfleet.dev/b cordoned\nboard.rkfleet.dev/c cordoned\n"
        assert await cli.ok("board", "cordon", "b") == "board.rkfleet.dev/b already cordoned\n"
        assert await cli.ok("board", "drain", "b", "--no-wait") == "board.rkfleet.dev/b cordoned\n"
        spec = (await read(api, f"{BOARDS}/b"))["spec"]
        assert spec["unschedulable"]
        assert [(one["key"], one["effect"]) for one in spec["taints"]] == [("maintenance", "NoSchedule"), (TAINT_DRAIN, "NoExecute")]
        assert await cli.ok("board", "drain", "b", "--no-wait") == "board.rkfleet.dev/b already cordoned\n"
        assert await cli.ok("board", "uncordon", "b", "c") == "board.rkfleet.dev/b uncordoned\nboard.rkfleet.dev/c uncordoned\n"
        spec = (await read(api, f"{BOARDS}/b"))["spec"]
        assert not spec.get("unschedulable", False)
        assert spec["taints"] == [other]
        assert await cli.ok("board", "uncordon", "b") == "board.rkfleet.dev/b already uncordoned\n"
        assert "not found" in await cli.fails(3, "board", "cordon", "nope")

    story(tmp_path, tell)


async def with_placed_replica(api: RunningApi) -> None:
    """A board in session with one replica of a deployment, and a successor that finds no board."""
    await made(api, MODELS, model(), {"conditions": [said("Ready", "True", "ArtifactsPresent")]})
    await made(api, BOARDS, board("b"), {
        "soc": "cpu", "allocatable": {"memory": "4Gi"}, "runtimes": [{"name": "llamacpp"}], "session": {"number": 3},
        "conditions": [said("Ready", "True", "SessionOpen")],
    })  # fmt: skip
    ready = {"observedGeneration": 1, "availableReplicas": 1, "conditions": [said("Ready", "True", "RolloutComplete")]}
    await made(api, DEPLOYMENTS, deployment(), ready)
    measured = {"timeToFirstTokenSeconds": 0.21, "decodeTokensPerSecond": 16.5}
    serving = {"restarts": 2, "measured": measured, "conditions": [said("Ready", "True", "Serving")]}
    placed = {"deploymentName": "qwen", "revisionName": "qwen-a", "slot": "0", "boardName": "b", "variantName": "q4"}
    revision = {"revision": 1, "modelUID": "m", "deploymentName": "qwen", "template": {"model": "qwen2"}}
    await made(api, REVISIONS, of("ModelRevision", "qwen-a", revision, namespace="default"))
    await made(api, REPLICAS, of("Replica", "qwen-a-0", placed, namespace="default"), serving)
    waits = {"conditions": [said("Scheduled", "False", "NoBoardFits", "No board of 1 can take the replica: cordoned: b. Try: X")]}
    await made(
        api, REPLICAS, of("Replica", "qwen-a-1", {**placed, "slot": "1", "boardName": "", "variantName": ""}, namespace="default"), waits
    )


def test_a_drain_with_nowhere_to_go_says_so_until_its_time_is_over(tmp_path: Path) -> None:
    async def tell(api: RunningApi, cli: Cli) -> None:
        await with_placed_replica(api)
        ran = await cli.run("board", "drain", "b", "--timeout", "1s")
        assert ran.code == 7
        first, waits, helps = ran.out.splitlines()
        assert first == "board.rkfleet.dev/b cordoned"
        assert waits.startswith(
            "board.rkfleet.dev/b waits: Board b is being drained and still has default/qwen-a-0, because deployment qwen"
        )
        assert waits.endswith("replica qwen-a-1 has no board: board b, which could run it, was cordoned to drain it.")
        assert helps == "  try: rkfleet board uncordon b"
        assert ran.err.startswith("error: not drained after 1 s: 'b': Board b is being drained")
        assert "It stays cordoned; take it back with: rkfleet board uncordon b" in ran.err
        explained = await cli.run("explain", "board/b")
        assert (explained.code, explained.out.splitlines()[1]) == (1, "try: rkfleet board uncordon b")

    story(tmp_path, tell)


def test_a_drain_ends_when_nothing_is_left(tmp_path: Path) -> None:
    async def tell(api: RunningApi, cli: Cli) -> None:
        await with_placed_replica(api)
        async with asyncio.TaskGroup() as group:
            drain = group.create_task(cli.run("board", "drain", "b", "--timeout", "15s"))

            async def drained() -> bool:
                return bool((await read(api, f"{BOARDS}/b"))["spec"].get("unschedulable"))

            await eventually(drained, "the board is cordoned", 10)
            await api.call("DELETE", f"{REPLICAS}/qwen-a-0")
        ran = drain.result()
        assert ran.code == 0, ran
        assert ran.out.splitlines()[-1] == "board.rkfleet.dev/b drained"

    story(tmp_path, tell)


# ---- explain, top --------------------------------------------------------------------------------------------------------------


def test_explain_finds_what_is_meant_and_ends_with_what_it_found(tmp_path: Path) -> None:
    async def tell(api: RunningApi, cli: Cli) -> None:
        await with_placed_replica(api)
        assert await cli.ok("explain", "qwen-a-0") == "Replica qwen-a-0 on board b serves, 16.5 tokens/s.\n"
        assert (await cli.ok("explain", "board/b")).startswith("Board b is in session and 1 of 1 replicas on it serve.")
        assert (await cli.ok("explain", "model", "qwen2")).startswith("Model qwen2 can be used")
        broken = await cli.run("explain", "qwen", "-o", "json")
        assert broken.code == 1
        found = json.loads(broken.out)
        assert (found["kind"], found["name"], found["verdict"]) == ("ModelDeployment", "qwen", "NeedsHelp")
        assert [cause["kind"] for cause in found["causes"]] == ["ModelDeployment", "Replica"]
        assert "is named 'qwenn' in namespace 'default'; there is modeldeployment/qwen" in await cli.fails(3, "explain", "qwenn")
        assert "events run nothing" in await cli.fails(1, "explain", "event/x")
        assert "explain takes one" in await cli.fails(1, "explain", "board/a", "board/b")
        assert "must be KIND/NAME" in await cli.fails(1, "explain", "board/a", "b")
        assert "kind 'nonsense' is not known" in await cli.fails(3, "explain", "nonsense/a")

    story(tmp_path, tell)


def test_top_has_memory_speed_and_whether_it_is_simulated(tmp_path: Path) -> None:
    async def tell(api: RunningApi, cli: Cli) -> None:
        await with_placed_replica(api)
        await made(api, BOARDS, board("c"), {"soc": "rk3588", "simulated": True, "allocatable": {"memory": "15Gi"}})
        heads, first, second = (await cli.ok("top", "boards")).splitlines()
        assert heads.split() == ["NAME", "STATUS", "SOC", "SIMULATED", "MEMORY", "MEMORY%", "REPLICAS", "TOKENS/S", "SESSION"]
        assert first.split() == ["b", "SessionOpen", "cpu", "false", "1024Mi/4096Mi", "25%", "1/1", "16.5", "3"]
        assert second.split() == ["c", "NeverConnected", "rk3588", "true", "0Mi/15360Mi", "0%", "0/0", "0"]
        heads, serving, waiting = (await cli.ok("top", "replicas")).splitlines()
        assert heads.split() == ["NAME", "STATUS", "BOARD", "VARIANT", "TTFT", "TOKENS/S", "RESTARTS", "SIMULATED"]
        assert serving.split() == ["qwen-a-0", "Serving", "b", "q4", "210ms", "16.5", "2", "false"]
        assert waiting.split() == ["qwen-a-1", "NoBoardFits", "0", "false"]
        assert (await cli.ok("top", "replicas", "-A")).splitlines()[1].split()[:2] == ["default", "qwen-a-0"]
        found = json.loads(await cli.ok("top", "boards", "-o", "json"))
        assert found[0]["reservedBytes"] == 2**30

    story(tmp_path, tell)


# ---- events, wait, scale -------------------------------------------------------------------------------------------------------


def test_events_are_shown_newest_last_and_by_what_they_are_about(tmp_path: Path) -> None:
    async def tell(api: RunningApi, cli: Cli) -> None:
        about = await made(api, DEPLOYMENTS, deployment())
        other = await made(api, BOARDS, board("b"))
        new = {**event(about, "a-new", "newest", type="Warning", reason="ModelNotFound"), "lastTimestamp": "2026-01-03T00:00:00Z"}
        old = {**event(about, "b-old", "oldest"), "lastTimestamp": "2026-01-01T00:00:00Z"}
        often = {
            **event(other, "c-often", "again", reason="Rebooted"),
            "firstTimestamp": "2026-01-01T00:00:00Z",
            "lastTimestamp": "2026-01-02T00:00:00Z",
            "count": 3,
        }
        for one in (new, old, often):
            await made(api, EVENTS, one)
        heads, *rows = (await cli.ok("events")).splitlines()
        assert heads.split() == ["LAST", "SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]
        assert [row.split()[-1] for row in rows] == ["oldest", "again", "newest"]
        assert "(x3 over " in rows[1]
        assert [row.split()[-1] for row in (await cli.ok("events", "--types", "warning")).splitlines()[1:]] == ["newest"]
        assert [row.split()[-2:] for row in (await cli.ok("events", "--for", "board/b", "-n", "nowhere")).splitlines()[1:]] == [
            ["board/b", "again"]
        ]
        assert (await cli.ok("events", "-A")).splitlines()[1].split()[0] == "default"
        assert [one["metadata"]["name"] for one in json.loads(await cli.ok("events", "-o", "json"))["items"]] == [
            "b-old",
            "c-often",
            "a-new",
        ]
        assert (await cli.run("events", "-n", "nowhere")).err == "No resources found.\n"
        assert "--types 'loud' must be Normal or Warning" in await cli.fails(1, "events", "--types", "loud")
        assert "must be KIND/NAME" in await cli.fails(1, "events", "--for", "b")

    story(tmp_path, tell)


def test_an_object_is_named_as_people_name_it(tmp_path: Path) -> None:
    """KIND/NAME and KIND NAME; the table has booleans as kubectl writes them, and whether a board is cordoned."""

    async def tell(api: RunningApi, cli: Cli) -> None:
        about = await made(api, BOARDS, board("b"))
        await made(api, EVENTS, {**event(about, "a", "later"), "lastTimestamp": "2026-01-02T00:00:00Z"})
        await made(api, EVENTS, {**event(about, "b", "sooner"), "lastTimestamp": "2026-01-01T00:00:00Z"})
        for words in (("board/b",), ("board", "b")):
            heads, row = (await cli.ok("get", *words)).splitlines()
            assert heads.split()[:6] == ["NAME", "STATUS", "SOC", "SIMULATED", "CORDONED", "MEMORY"]
            assert row.split()[:3] == ["b", "false", "false"]
            described = await cli.ok("describe", *words)
            assert described.index("sooner") < described.index("later")
        assert "must be KIND NAME or KIND/NAME" in await cli.fails(1, "get", "board/b", "c")
        for verb in ("describe", "delete"):
            assert "names a kind and no object" in await cli.fails(1, verb, "board")
        assert await cli.ok("delete", "board/b") == "board.rkfleet.dev/b deleted\n"

    story(tmp_path, tell)


def test_wait_ends_with_the_condition_the_value_or_the_deletion(tmp_path: Path) -> None:
    async def tell(api: RunningApi, cli: Cli) -> None:
        status = {
            "observedGeneration": 1,
            "readyReplicas": 2,
            "conditions": [said("Ready", "True", "RolloutComplete"), said("Progressing", "False", "ModelNotFound")],
        }
        await made(api, DEPLOYMENTS, deployment(), status)
        met = "modeldeployment.rkfleet.dev/qwen condition met\n"
        for goal in (
            "condition=Ready",
            "condition=progressing=false",
            "jsonpath={.status.readyReplicas}=2",
            'jsonpath={.status.conditions[?(@.type=="Ready")].reason}=RolloutComplete',
            "jsonpath={.spec}",
        ):
            assert await cli.ok("wait", "modeldeployment/qwen", "--for", goal) == met, goal
        error = await cli.fails(7, "wait", "mdep/qwen", "--for=condition=Available", "--timeout=0.3s")
        assert error == "error: timed out after 0.3 s waiting for condition=Available of modeldeployment/qwen\n"
        assert "is not as asked for now" in await cli.fails(7, "wait", "mdep/qwen", "--for=condition=Available", "--timeout=0")
        assert "modeldeployment 'nope' is not there in namespace 'default'" in await cli.fails(
            3, "wait", "mdep/nope", "--for=condition=Ready"
        )
        assert await cli.ok("wait", "mdep", "nope", "--for=delete") == "modeldeployment.rkfleet.dev/nope condition met\n"
        async with asyncio.TaskGroup() as group:
            gone = group.create_task(cli.ok("wait", "modeldeployment/qwen", "--for=delete", "--timeout=10s"))
            group.create_task(api.call("DELETE", f"{DEPLOYMENTS}/qwen"))
        assert gone.result() == met
        for goal in ("ready", "condition=", "jsonpath=status", "jsonpath={status}", "delete=1", "jsonpath={.a}2"):
            assert f"--for {goal!r} must be " in await cli.fails(1, "wait", "mdep/qwen", "--for", goal)
        assert (await cli.run("wait", "mdep/qwen", "--for=delete", "--timeout", "soon")).code == 2

    story(tmp_path, tell)


def test_scale_writes_replicas_and_keeps_its_precondition(tmp_path: Path) -> None:
    async def tell(api: RunningApi, cli: Cli) -> None:
        await made(api, DEPLOYMENTS, deployment(replicas=2))
        assert await cli.ok("scale", "modeldeployment/qwen", "--replicas", "3") == "modeldeployment.rkfleet.dev/qwen scaled\n"
        assert (
            await cli.ok("scale", "mdep", "qwen", "--replicas", "0", "--current-replicas", "3")
            == "modeldeployment.rkfleet.dev/qwen scaled\n"
        )
        assert (await read(api, f"{DEPLOYMENTS}/qwen"))["spec"]["replicas"] == 0
        error = await cli.fails(4, "scale", "mdep/qwen", "--replicas", "1", "--current-replicas", "3")
        assert error == "error: modeldeployments.rkfleet.dev/default/qwen: expected replicas to be 3, was 0\n"
        assert (await read(api, f"{DEPLOYMENTS}/qwen"))["spec"]["replicas"] == 0
        assert "not found" in await cli.fails(3, "scale", "mdep/nope", "--replicas", "1")
        assert "board/b cannot be scaled" in await cli.fails(1, "scale", "board/b", "--replicas", "1")
        assert "names a kind and no object" in await cli.fails(1, "scale", "mdep", "--replicas", "1")
        assert "spec.replicas" in await cli.fails(1, "scale", "mdep/qwen", "--replicas", "5000")
        assert (await cli.run("scale", "mdep/qwen", "--replicas", "-1")).code == 2

    story(tmp_path, tell)


@pytest.mark.parametrize("words", [("explain", "x"), ("events",), ("top", "boards"), ("rollout", "undo", "x"), ("board", "drain", "x")])
def test_without_a_cluster_the_sentence_says_where_to_get_one(tmp_path: Path, words: tuple[str, ...]) -> None:
    error = asyncio.run(Cli(tmp_path / "nothing").fails(3, *words))
    assert error.endswith("start a fleet with `rkfleet up` or give --kubeconfig FILE\n")
