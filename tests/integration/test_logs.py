"""Logs over the real API, real sessions with mutual TLS and the real journals: from a line on a board to a line at a client."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.journal import JOURNAL_BYTES_MAX, JOURNALS_BYTES_MAX
from agent.logs import BoardLogs
from agent.session.logs import NoLogs
from controller.api.logs import FOLLOW_SECONDS_MAX, LogResponse, Logs
from controller.api.query import LogOptions
from controller.sessions.holder import LOGS_OPEN_MAX
from rkfleet.cli.logs import print_logs
from rkfleet.client import ApiClient, load_cluster
from rkfleet.clock import SystemClock
from rkfleet.errors import BadRequest, NotFound
from rkfleet.session import LogChunk, LogLine, LogRequest, LogSource
from tests.support.clocks import ManualClock
from tests.support.kubectl import Kubectl
from tests.support.logs import API, BOARD_LOG, REPLICA_LOG, LogScene, log_scene
from tests.support.sessions import FACTS, RunningBoard, replica_ref, until


def test_a_log_is_read_in_the_words_of_kubernetes(tmp_path: Path) -> None:
    """Every parameter chooses what it says, of workers and of agents."""

    async def scenario() -> None:
        async with log_scene(tmp_path) as s, s.board():
            s.write("one", "two", "crash")
            s.write("again", "and again", run=True)
            s.journals.write_own("info agent: hello")
            assert await s.lines() == ["again", "and again"]
            assert await s.lines(tailLines="1") == ["and again"]
            assert await s.lines(previous="true") == await s.lines(run="1") == ["one", "two", "crash"]
            assert await s.lines(previous="true", follow="true") == ["one", "two", "crash"]
            assert await s.lines(limitBytes="8") == ["again", "an"]
            assert await s.lines(sinceSeconds="3600") == ["again", "and again"]
            (line,) = await s.lines(tailLines="1", timestamps="true")
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z and again", line)
            assert await s.lines(source="agent") == await s.lines(BOARD_LOG) == ["info agent: hello"]
            assert s.open_streams == 0

    asyncio.run(scenario())


def test_a_long_log_comes_whole_and_ends_at_the_line_that_was_newest(tmp_path: Path) -> None:
    """Several chunks make one log, also while its worker goes on printing."""

    async def scenario() -> None:
        async with log_scene(tmp_path) as s, s.board():
            s.write(*(f"{number} {'x' * 120}" for number in range(300)))
            lines = await s.lines()
            assert [int(line.split()[0]) for line in lines] == list(range(300))

    asyncio.run(scenario())


def test_a_follower_sees_each_line_until_the_board_leaves_and_reads_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with log_scene(tmp_path) as s, s.board():
            s.write("one")
            async with s.following() as next_line:
                assert await next_line() == "one"
                s.write("two")
                assert await next_line() == "two"
                s.write("three", run=True)
                assert await next_line() == "three"
                async with s.board():  # the same board comes again and takes the session
                    said = await next_line()
                    assert "rkfleet: board b-1 has left: its session ended with SUPERSEDED" in said
                    assert "see: rkfleet describe board b-1" in said
                    assert await next_line() is None
                    assert (await s.lines())[-1] == "three"

    asyncio.run(scenario())


def test_a_stopping_agent_ends_its_followers_with_its_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with log_scene(tmp_path) as s:
            async with s.board():
                s.write("one")
                opened = s.following()
                next_line = await opened.__aenter__()
                assert await next_line() == "one"
            assert "SHUTDOWN: the agent is stopping" in await next_line()
            await opened.__aexit__(None, None, None)

    asyncio.run(scenario())


def test_a_client_that_leaves_ends_the_follow_on_the_board_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with log_scene(tmp_path) as s, s.board() as board:
            s.write("one")
            async with s.following() as next_line:
                assert await next_line() == "one"
                session = board.runner._pump._session
                await until(lambda: session.log_requests)
                assert s.open_streams == 1
            await until(lambda: not session.log_requests and not s.open_streams, seconds=1.0)
            assert s.sent("log_cancel") == 1
            assert await s.lines() == ["one"]

    asyncio.run(scenario())


def test_a_stopping_controller_ends_every_log_with_a_sentence(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with log_scene(tmp_path) as s, s.board():
            s.write("one")
            async with s.following() as next_line:
                assert await next_line() == "one"
                s.api.stopping.set()
                assert await next_line() == "rkfleet: the controller is stopping; ask again"
                assert await next_line() is None

    asyncio.run(scenario())


# ---- refusals ------------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_refused_with_a_sentence_and_a_command(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with log_scene(tmp_path) as s:
            assert await s.refusal(REPLICA_LOG.replace("m-0", "nope")) == (404, 'replicas.rkfleet.dev "nope" not found')
            assert (await s.refusal(f"{API}/boards/nope/log"))[0] == 404
            code, sentence = await s.refusal()
            assert (code, sentence) == (
                503, "board b-1 is not in session, so nobody can ask it for logs; see: rkfleet describe board b-1"
            )  # fmt: skip
            assert (await s.api.client.get(REPLICA_LOG)).headers["retry-after"] == "1"
            await s.sessions.create_replica("m-1", "")
            assert await s.refusal(REPLICA_LOG.replace("m-0", "m-1")) == (
                400, "replica m-1 has no board yet; see why: rkfleet describe replica m-1"
            )  # fmt: skip
            async with s.board():
                assert await s.refusal() == (400, "board b-1 has no such log: this board has started no worker of the replica yet")
                s.write("one")
                assert "the run 1 before it is not there" in (await s.refusal(previous="true"))[1]
                for query, word in (
                    ({"sinceTime": "2026-01-01T00:00:00Z"}, "sinceSeconds"), ({"tailLines": "-3"}, "tailLines"),
                    ({"source": "kernel"}, "worker or agent"), ({"previous": "true", "run": "2"}, "previous"),
                    ({"source": "agent", "previous": "true"}, "has no runs"),
                ):  # fmt: skip
                    code, sentence = await s.refusal(**query)
                    assert (code, word in sentence) == (400, True), sentence
                assert (await s.refusal(BOARD_LOG, source="worker"))[0] == 400
                assert (await s.api.call("PUT", REPLICA_LOG, {})).status_code == 405
                gateway = {"authorization": f"Bearer {s.api.gateway_token}"}
                assert (await s.api.client.get(REPLICA_LOG, headers=gateway)).status_code == 403

    asyncio.run(scenario())


class OldAgent(RunningBoard):
    """An agent of before logs could be asked for: it says nothing about them in its Hello."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        hello = self.runner._hello
        self.runner._hello = lambda: msgspec.structs.replace(hello(), answers_logs=False)  # type: ignore[method-assign]


def test_an_agent_of_before_logs_keeps_its_session_and_is_named_as_too_old(tmp_path: Path) -> None:
    """Such an agent would leave over a message that it does not know; so it is not asked."""

    async def scenario() -> None:
        async with log_scene(tmp_path) as s, asyncio.TaskGroup() as tasks:
            board = OldAgent(s.identity)
            running = tasks.create_task(board.runner.run())
            await until(lambda: board.number)
            code, sentence = await s.refusal()
            assert (code, sentence) == (400, "the agent of board b-1 (version unknown) cannot send logs; update it, then ask again")
            assert board.number == 1
            running.cancel()

    asyncio.run(scenario())


def test_a_board_without_journals_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with log_scene(tmp_path) as s, s.board(logs=NoLogs()) as board:
            assert await s.refusal() == (400, "board b-1 has no such log: this board keeps no logs")
            assert board.number == 1

    asyncio.run(scenario())


class Silent(NoLogs):
    """Never has anything to say, also to who does not wait."""

    def answer(self, request: LogRequest) -> LogChunk | None:
        return None


def test_a_board_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.api.logs.ANSWER_SECONDS_MAX", 0.05)

    async def scenario() -> None:
        async with log_scene(tmp_path) as s, s.board(logs=Silent()) as board:
            code, sentence = await s.refusal()
            assert (code, sentence) == (504, "board b-1 did not answer within 0 s; see: rkfleet describe board b-1")
            await until(lambda: s.sent("log_cancel") == 1 and not board.runner._pump._session.log_requests)
            assert s.open_streams == 0

    asyncio.run(scenario())


class Stubborn(NoLogs):
    """Says the same again and again, and that there is more."""

    def answer(self, request: LogRequest) -> LogChunk | None:
        return LogChunk(request_id=request.request_id, lines=(LogLine(time_milliseconds=0, text="again"),), next=1, newest=9)


def test_a_board_that_repeats_itself_does_not_keep_the_controller_busy(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with log_scene(tmp_path) as s, s.board(logs=Stubborn()):
            assert await s.lines() == ["again", "rkfleet: board b-1 answered with no line and no end; update its agent"]

    asyncio.run(scenario())


def test_a_log_is_followed_for_an_hour_at_most(tmp_path: Path) -> None:
    """Nobody is followed for who is gone without a word."""

    async def scenario() -> None:
        async with log_scene(tmp_path) as s, s.board():
            s.write("one")
            clock, client = ManualClock(), SlowClient()
            client.may_take.set()
            logs = Logs(s.sessions.store, s.sessions.hub.open_log, clock, s.api.metrics, asyncio.Event())
            wanted = LogRequest(request_id=0, source=LogSource.WORKER, replica_uid=s.uid)
            async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
                tasks.create_task(LogResponse(logs, "b-1", wanted, LogOptions(follow=True))({}, client.receive, client.send))
                await until(lambda: client.lines == ["one"])
                clock.advance(FOLLOW_SECONDS_MAX)
            assert client.lines == ["one", "rkfleet: a log is followed for 3600 s; ask again"]

    asyncio.run(scenario())


def test_too_many_readers_are_told_to_come_again(tmp_path: Path) -> None:
    """A board has places for a few readers, a controller for some more; who finds none is told when to come again."""

    async def scenario() -> None:
        async with log_scene(tmp_path, log_streams_max=LOGS_OPEN_MAX + 1) as s, s.board():
            s.write("one")
            followers = [s.following() for _ in range(LOGS_OPEN_MAX)]
            for follower in followers:
                await follower.__aenter__()
            answer = await s.api.client.get(REPLICA_LOG)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
            assert f"{LOGS_OPEN_MAX} readers of logs of board b-1 are there" in answer.json()["message"]
            await followers.pop().__aexit__(None, None, None)
            await until(lambda: s.open_streams == len(followers))
            assert await s.lines() == ["one"]
            for follower in followers:
                await follower.__aexit__(None, None, None)
        async with log_scene(tmp_path / "small", log_streams_max=0) as s, s.board():
            code, sentence = await s.refusal()
            assert (code, "the limit is 0" in sentence) == (429, True)

    asyncio.run(scenario())


# ---- slow readers --------------------------------------------------------------------------------------------------------------


class SlowClient:
    """Takes pieces of a response when it is told to."""

    def __init__(self) -> None:
        self.may_take = asyncio.Event()
        self.taken: list[bytes] = []
        self.left = asyncio.Event()

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            self.taken.append(message["body"])
            await self.may_take.wait()

    async def receive(self) -> Any:
        await self.left.wait()
        return {"type": "http.disconnect"}

    @property
    def lines(self) -> list[str]:
        return b"".join(self.taken).decode().splitlines()


def test_a_slow_reader_holds_neither_reports_nor_memory_and_is_told_what_it_missed(tmp_path: Path) -> None:
    """Its lines and those that are missing are together all that were written; meanwhile the board reports and others read."""

    async def scenario() -> None:
        async with log_scene(tmp_path) as s, s.board() as board:
            logs = Logs(s.sessions.store, s.sessions.hub.open_log, SystemClock(), s.api.metrics, asyncio.Event())
            wanted = LogRequest(request_id=0, source=LogSource.WORKER, replica_uid=s.uid)
            slow = SlowClient()
            response = LogResponse(logs, "b-1", wanted, LogOptions(follow=True))
            s.write("line 0")
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(response({"type": "http"}, slow.receive, slow.send))
                await until(lambda: slow.taken)
                total, session = 5000, board.runner._pump._session
                for number in range(1, total):
                    s.write(f"line {number}")
                assert s.journals.find(s.uid).size_bytes <= JOURNAL_BYTES_MAX
                assert s.journals.size_bytes <= JOURNALS_BYTES_MAX
                assert not session.log_requests, "a reader that took nothing asked for more"
                board.reports.publish(msgspec.structs.replace(board.reports.state, facts=msgspec.structs.replace(FACTS, npu_cores=7)))

                async def reported() -> bool:
                    return (await s.sessions.board("b-1")).status.capacity.npu_cores == 7

                await until(reported, seconds=2.0)
                assert (await s.lines(tailLines="1")) == [f"line {total - 1}"]
                slow.may_take.set()
                await until(lambda: slow.lines[-1] == f"line {total - 1}")
                slow.left.set()
                await reading
            missing = [int(found) for line in slow.lines for found in re.findall(r"^rkfleet: (\d+) lines are missing here", line)]
            numbers = [int(line.split()[1]) for line in slow.lines if line.startswith("line ")]
            assert numbers == sorted(set(numbers))
            assert missing
            assert len(numbers) + sum(missing) == total
            assert s.dropped == sum(missing)
            assert board.number == 1

    asyncio.run(scenario())


def test_a_worker_that_prints_without_end_is_followed_within_a_rate(tmp_path: Path) -> None:
    """Followers get as many lines as the board sends in a second, the rest is counted, and reports go on."""

    async def scenario() -> None:
        async with log_scene(tmp_path) as s, s.board() as board, ApiClient(load_cluster(s.api.kubeconfig), SystemClock()) as client:
            s.write("line 0")
            clock = SystemClock()
            began, printed = clock.monotonic(), 1
            got: list[str] = []
            async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:

                async def read() -> None:
                    await print_logs(client, ("replica", "m-0"), "default", {"follow": "true"}, say=got.append, complain=got.append)

                reading = tasks.create_task(read())
                while clock.monotonic() - began < 1.0:
                    s.write(*(f"line {number}" for number in range(printed, printed + 50)))
                    printed += 50
                    await clock.sleep(0.002)
                await until(lambda: got and got[-1] == f"line {printed - 1}")
                reading.cancel()
            missing = sum(int(found) for line in got for found in re.findall(r"^rkfleet: (\d+) lines are missing", line))
            lines = [line for line in got if line.startswith("line ")]
            assert len(lines) + missing == printed
            assert len(lines) < 1500 * (clock.monotonic() - began + 1), "more than the board may send"
            assert missing
            assert board.number == 1

    asyncio.run(scenario())


# ---- clients -------------------------------------------------------------------------------------------------------------------


@pytest.mark.kubectl
def test_kubectl_reads_a_log_by_its_path_and_finds_it_in_discovery(tmp_path: Path) -> None:
    """`kubectl logs` knows pods alone; `get --raw` reads any."""

    async def scenario() -> None:
        async with log_scene(tmp_path) as s, s.board():
            s.write("one", "two")
            kubectl = Kubectl(s.api.kubeconfig, tmp_path / "home")
            assert await kubectl.ok("get", "--raw", f"{REPLICA_LOG}?tailLines=1") == "two\n"
            refused = await kubectl.run("get", "--raw", f"{API}/boards/nope/log")
            assert (refused.code, "not found" in refused.err) == (1, True)
            async with kubectl.started("get", "--raw", f"{REPLICA_LOG}?follow=true") as process, asyncio.timeout(20):
                assert process.stdout is not None
                assert [await process.stdout.readline() for _ in range(2)] == [b"one\n", b"two\n"]
                s.write("three")
                assert await process.stdout.readline() == b"three\n"
            found = (await s.api.client.get(API)).json()["resources"]
            assert {one["name"]: one["verbs"] for one in found if one["name"].endswith("/log")} == {
                "boards/log": ["get"], "replicas/log": ["get"]
            }  # fmt: skip
            document = (await s.api.client.get("/openapi/v3/apis/rkfleet.dev/v1alpha1")).json()
            operation = document["paths"][f"{API}/namespaces/{{namespace}}/replicas/{{name}}/log"]["get"]
            assert list(operation["responses"]["200"]["content"]) == ["text/plain"]

    asyncio.run(scenario())


async def printed(s: LogScene, kind: str, name: str, **query: str) -> tuple[list[str], list[str]]:
    """Return what `rkfleet logs` says and complains about."""
    said: list[str] = []
    complained: list[str] = []
    async with ApiClient(load_cluster(s.api.kubeconfig), SystemClock()) as client:
        await print_logs(client, (kind, name), "default", query, say=said.append, complain=complained.append)
    return said, complained


def test_the_command_prints_replicas_deployments_and_boards(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with log_scene(tmp_path) as s:
            body = {"metadata": {"name": "m"}, "spec": {"replicas": 2, "template": {"model": "m"}}}
            path = f"{API}/namespaces/default/modeldeployments"
            answer = await s.api.call("POST", path, {"apiVersion": "rkfleet.dev/v1alpha1", "kind": "ModelDeployment", **body})
            assert answer.status_code == 201, answer.text
            with pytest.raises(NotFound, match="nope"):
                await printed(s, "deployment", "nope")
            await s.sessions.create_replica("m-1", "")
            async with s.board():
                s.write("one", "two")
                s.journals.write_own("info agent: hello")
                assert await printed(s, "replica", "m-0", tailLines="1") == (["two"], [])
                assert await printed(s, "board", "b-1") == (["info agent: hello"], [])
                said, complained = await printed(s, "deployment", "m")
                assert said == ["[m-0] one", "[m-0] two"]
                assert complained == ["[m-1] replica m-1 has no board yet; see why: rkfleet describe replica m-1"]
                for number in range(2, 11):
                    await s.sessions.create_replica(f"m-{number}", "b-1")
                with pytest.raises(BadRequest, match=r"deployment m has 11 replicas, at most 10 are read at once; name one: m-0"):
                    await printed(s, "deployment", "m")
            await s.sessions.store.delete(replica_ref("m-0"), now=SystemClock().now())
            with pytest.raises(NotFound, match="m-0"):
                await printed(s, "replica", "m-0")

    asyncio.run(scenario())


def test_ctrl_c_ends_a_command_that_follows_without_a_word(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with log_scene(tmp_path) as s, s.board():
            s.write("one", "two")
            words = ("-m", "rkfleet.cli.main", "logs", "m-0", "-f", "--tail", "1", "--kubeconfig", str(s.api.kubeconfig))
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=pipe, stderr=pipe)
            async with asyncio.timeout(20):
                assert process.stdout is not None
                assert await process.stdout.readline() == b"two\n"
                process.send_signal(signal.SIGINT)
                assert await process.communicate() == (b"", b"")
            assert process.returncode == 0
            await until(lambda: not s.open_streams, seconds=1.0)

    asyncio.run(scenario())


def test_what_a_board_keeps_of_its_logs_is_asked_by_uid(tmp_path: Path) -> None:
    """A replica of the same name that was made anew does not show its predecessor's lines."""

    async def scenario() -> None:
        async with log_scene(tmp_path) as s, s.board(logs=BoardLogs(s.journals, SystemClock())):
            s.write("of the first")
            await s.sessions.store.delete(replica_ref("m-0"), now=SystemClock().now())
            await s.sessions.create_replica("m-0", "b-1")
            assert "started no worker" in (await s.refusal())[1]

    asyncio.run(scenario())
