"""The agent's loop against a real registry: what goes wrong with bytes is said, and mends itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rkfleet.metric_names import AGENT_LOOP_ERRORS
from rkfleet.session import Verdict
from tests.support.assignments import offer, replica
from tests.support.loops import CHUNK, loop_world, staged
from tests.support.registry import sent_bytes
from tests.support.sessions import until

SIZE = 5 * CHUNK + 7


def test_a_full_disk_is_a_condition_and_goes_away_by_itself_when_there_is_room(tmp_path: Path) -> None:
    """Board and replica say why; nobody restarts anything."""

    async def body() -> None:
        async with loop_world(tmp_path) as w:
            file = await w.push(SIZE)
            await w.assign(1, staged(file))
            w.disk.room = 2 * CHUNK
            await until(lambda: w.of_board("DiskPressure") == ("True", "DiskFull"))
            assert w.of_replica("ArtifactAvailable") == ("False", "DiskFull")
            assert [entry.reason for entry in w.reports.log()].count("DiskFull") >= 1
            w.disk.room = None
            await until(lambda: w.of_replica("ArtifactAvailable") == ("True", "Fetched"))
            assert w.of_board("DiskPressure") == ("False", "Sufficient")
            assert w.of_replica("Ready") == ("False", "Staged")
            assert await w.cache.verify(file.digest)

    asyncio.run(body())


def test_a_ledger_that_cannot_be_written_is_a_condition_too(tmp_path: Path) -> None:
    """The offer is refused with DISK and accepted when it comes again."""

    async def body() -> None:
        async with loop_world(tmp_path) as w:
            await until(lambda: w.of_board("DiskPressure") == ("False", "Sufficient"))
            w.disk.room = 0
            assert (await w.ledger.accept(offer(1))).verdict is Verdict.DISK
            await until(lambda: w.of_board("DiskPressure") == ("True", "DiskFull"))
            w.disk.room = None
            assert (await w.ledger.accept(offer(1))).verdict is Verdict.ACCEPTED
            await until(lambda: w.of_board("DiskPressure") == ("False", "Sufficient"))

    asyncio.run(body())


def test_an_artifact_that_is_larger_than_its_limit_says_both_numbers(tmp_path: Path) -> None:
    """The operator learns what to raise."""

    async def body() -> None:
        async with loop_world(tmp_path, limit_bytes=1000) as w:
            await w.assign(1, staged(await w.push(SIZE)))
            await until(lambda: w.of_replica("ArtifactAvailable") == ("False", "DiskFull"))
            assert w.reports.state is not None
            message = w.reports.state.replicas[0].conditions[0].message
            assert str(SIZE) in message
            assert "1000" in message

    asyncio.run(body())


def test_a_refused_grant_and_an_absent_controller_are_said_and_end(tmp_path: Path) -> None:
    """The board asks again by itself."""

    async def body() -> None:
        async with loop_world(tmp_path) as w:
            file = await w.push(SIZE)
            w.booth.refusal = "that belongs to no replica of this board"
            await w.assign(1, staged(file))
            await until(lambda: w.of_replica("ArtifactAvailable") == ("False", "FetchFailed"))
            assert w.reports.state is not None
            assert "that belongs to no replica" in w.reports.state.replicas[0].conditions[0].message
            w.booth.refusal = ""
            await until(lambda: w.of_replica("ArtifactAvailable") == ("True", "Fetched"))
            assert sent_bytes(w.running) == SIZE

    asyncio.run(body())


def test_two_replicas_of_one_model_fetch_it_once_and_a_removed_one_is_forgotten(tmp_path: Path) -> None:
    """Bytes are counted at the registry; what nobody refers to may be evicted, and a journal is closed."""

    async def body() -> None:
        async with loop_world(tmp_path) as w:
            file = await w.push(SIZE)
            await w.assign(1, staged(file), staged(file, "chat-2"))
            await until(lambda: w.of_replica("Ready", "chat-2") == ("False", "Staged") == w.of_replica("Ready"))
            assert sent_bytes(w.running) == SIZE
            assert w.cache.references(file.digest) == 2
            uid = w.ledger.held.assignment.replicas[0].uid
            w.journals.begin_run(uid)
            journal = w.journals.find(uid)
            assert journal is not None
            await w.assign(2)
            await until(lambda: w.reports.state is not None and w.reports.state.replicas == ())
            assert w.cache.references(file.digest) == 0
            assert journal.read().lines[-1].text == "rkfleet: the replica left this board"

    asyncio.run(body())


def test_a_replica_whose_runtime_is_missing_says_so_to_clients_too(tmp_path: Path) -> None:
    """Its route exists and says why it does not answer."""

    async def body() -> None:
        async with loop_world(tmp_path) as w:
            await w.assign(1, replica(files=(await w.push(SIZE),)))
            await until(lambda: w.of_replica("Ready") == ("False", "RuntimeMissing"))
            assert "needs runtime llamacpp, this board has none" in w.served[-1][0].waiting

    asyncio.run(body())


def test_a_pass_that_fails_is_counted_and_the_next_one_does_the_work(tmp_path: Path) -> None:
    """A machine that tells nothing for a moment does not end the agent; the routes were given out before."""

    async def body() -> None:
        async with loop_world(tmp_path) as w:
            file = await w.push(SIZE)
            await until(lambda: w.reports.state is not None)
            w.sensors.blind = True
            await w.assign(1, staged(file))
            await until(lambda: w.metrics.counter(AGENT_LOOP_ERRORS)._value.get() >= 1)
            w.sensors.blind = False
            await w.assign(2, staged(file))
            await until(lambda: w.of_replica("ArtifactAvailable") == ("True", "Fetched"))

    asyncio.run(body())
