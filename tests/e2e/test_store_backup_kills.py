"""A controller's store that is written, backed up, killed and restored, over and over; and backups that are killed themselves."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import msgspec
import pytest

from controller.backups.archive import read_archive
from controller.backups.restoring import restore_backup
from controller.backups.taking import take_backup
from controller.store.sql.store import SqlStore
from rkfleet.clock import SystemClock
from rkfleet.errors import Expired, Unavailable
from rkfleet.kinds import KINDS
from rkfleet.process import lock_data_dir
from tests.support.stores import MODELS, body

pytestmark = pytest.mark.processes

CLOCK = SystemClock()
ROUNDS = 6
ACKS_MAX = 150


class History:
    """What one writing process said: of each object the acknowledged values by revision, and the one that was on its way."""

    def __init__(self, start: dict[str, int | None]) -> None:
        self.acked: dict[str, list[tuple[int, int | None]]] = {name: [(0, value)] for name, value in start.items()}
        self.tried: dict[str, int | None] = {}
        self.newest = 0

    def take(self, fact: list[Any]) -> None:
        match fact:
            case ["try", name, value]:
                self.tried[name] = value
            case ["ack", name, value, revision]:
                self.acked.setdefault(name, [(0, None)]).append((revision, value))
                self.newest = max(self.newest, revision)
                del self.tried[name]

    def possible(self, name: str, revision: int) -> set[int | None]:
        """Return what an object may be in a copy of the moment `revision`."""
        acked = self.acked.get(name, [(0, None)])
        before = [value for at, value in acked if at <= revision]
        unsure = {self.tried[name]} if name in self.tried and len(before) == len(acked) else set()
        return {before[-1], *unsure}


def read(facts: IO[bytes]) -> list[Any]:
    line = facts.readline()
    assert line, "the helper ended"
    fact: list[Any] = msgspec.json.decode(line)
    return fact


def round_(
    directory: Path, backup: Path, chance: random.Random, start: dict[str, int | None], pipes: tuple[IO[bytes], IO[bytes]]
) -> History:
    """Write, take a backup meanwhile, write on, and kill the writer."""
    commands, facts = pipes
    commands.write(msgspec.json.encode((str(directory / "store.db"), chance.randrange(1 << 30))) + b"\n")
    commands.flush()
    history = History(start)
    (word, pid), acks = read(facts), 0
    assert word == "pid"
    backup_at, kill_at = chance.randrange(1, ACKS_MAX), chance.randrange(ACKS_MAX, 2 * ACKS_MAX)
    while (fact := read(facts))[0] != "dead":
        history.take(fact)
        acks += fact[0] == "ack"
        if fact[0] == "ack" and acks == backup_at:
            take_backup(directory, backup, clock=CLOCK, version="1")
        if fact[0] == "ack" and acks == kill_at:
            os.kill(pid, signal.SIGKILL)
    return history


async def state(directory: Path, known: int) -> dict[str, int | None]:
    """Return the numbers by name, after checking that a watch from before the restore is told to list again."""
    async with SqlStore.open(directory / "store.db", KINDS) as store:
        with pytest.raises(Expired):
            await store.watch(MODELS, resource_version=str(known))
        return {item.ref.name: body(item)["spec"]["n"] for item in (await store.list(MODELS)).items}


def test_a_restored_store_is_that_of_the_moment_of_its_backup(tmp_path: Path, soak_factor: int) -> None:
    """Each round goes on in the directory that the round before restored: nothing is lost, made up, or counted twice."""
    directory, chance = tmp_path / "controller", random.Random(7)
    (directory / "pki").mkdir(parents=True)
    (directory / "pki" / "fleet.json").write_text(json.dumps({"fleetId": "f-1"}))
    found: dict[str, int | None] = {}
    newest = 0
    command = [sys.executable, "-m", "tests.support.store_child", "forks"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as helper:
        assert helper.stdin is not None
        assert helper.stdout is not None
        for number in range(ROUNDS * soak_factor):
            backup = tmp_path / f"{number}.tar"
            history = round_(directory, backup, chance, found, (helper.stdin, helper.stdout))
            assert history.newest > newest, "a revision was given twice"
            with lock_data_dir(directory):
                done = restore_backup(directory, backup, now=CLOCK.now())
            assert done.manifest.store is not None
            assert done.replaced is not None
            assert done.replaced >= history.newest
            newest = done.replaced
            found = asyncio.run(state(directory, newest))
            for name in {*found, *history.acked, *history.tried}:
                assert found.get(name) in history.possible(name, done.manifest.store.revision), (number, name)
            backup.unlink()
        helper.stdin.close()


def test_a_backup_that_is_killed_anywhere_is_whole_or_not_there(tmp_path: Path) -> None:
    here, backups = tmp_path / "here", tmp_path / "backups"
    (here / "pki").mkdir(parents=True)
    (here / "pki" / "fleet.json").write_text(json.dumps({"fleetId": "f-1"}))
    backups.mkdir()
    asyncio.run(make(here))
    subprocess.run([sys.executable, "-m", "tests.support.restore_child", "backup", here, backups], check=True, timeout=100)
    whole, none = 0, 0
    for number in range(int((backups / "count").read_text())):
        path = backups / f"{number}.tar"
        try:
            assert read_archive(path, lambda _, pieces: list(pieces) and None).fleet_id == "f-1"
            whole += 1
        except Unavailable:
            assert not path.exists()
            none += 1
            take_backup(here, path, clock=CLOCK, version="1")
        assert not list(backups.glob(f".{number}.tar*")), "the next one of this name leaves nothing of the one that was killed"
    assert whole >= 1
    assert none > 20


async def make(directory: Path) -> None:
    async with SqlStore.open(directory / "store.db", KINDS):
        pass
