"""Server-side apply through the whole write path: a dry run tells what the real run does, and the same apply again is no write."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.api.apply.ownership import Ownership
from controller.api.namespaces import ensure_namespace
from controller.api.paths import Target
from controller.api.query import WriteOptions
from controller.api.writes import Writes, Written
from controller.store.sql.store import SqlStore
from rkfleet.clock import SystemClock
from rkfleet.errors import FleetError
from rkfleet.kinds import KINDS, ModelDeployment
from tests.support.api import admission_of, new_id
from tests.support.objects import deployment

Json = dict[str, Any]
PER_RUN = ("uid", "creationTimestamp", "resourceVersion", "managedFields")

specs = st.fixed_dictionaries(
    {}, optional={"replicas": st.integers(-1, 3), "paused": st.booleans(), "strategy": st.just({"maxSurge": 1}), "unknown": st.just(1)}
)
configs = st.builds(
    lambda spec, labels, finalizers: {
        **(made := deployment(**spec)),
        "metadata": {**made["metadata"], "labels": labels, "finalizers": finalizers},
    },
    specs,
    st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["1", "2"])),
    st.lists(st.sampled_from(["x/1", "x/2"]), max_size=2),
)
statuses = st.builds(
    lambda types: {
        **deployment(),
        "status": {"conditions": [{"type": type, "status": "True", "reason": "A", "message": ""} for type in types]},
    },
    st.lists(st.sampled_from(["Ready", "Available"]), max_size=2, unique=True),
)
steps = st.lists(
    st.tuples(
        st.sampled_from(["kim", "lou", "kubectl"]),
        st.booleans(),
        configs.map(lambda config: ("", config)) | statuses.map(lambda config: ("status", config)),
    ),
    min_size=1,
    max_size=8,
)


async def attempt(writes: Writes, target: Target, config: Json, options: WriteOptions) -> Written | str:
    """Return what came of it; of a refusal, its sentence."""
    try:
        return await writes.apply(target, msgspec.json.decode(msgspec.json.encode(config)), options)
    except FleetError as error:
        return error.message


def shown(written: Written | str) -> Any:
    """Return what two runs must have in common; of managers all but their times."""
    if isinstance(written, str):
        return written
    obj = msgspec.json.decode(written.item.body)
    metadata = {name: value for name, value in obj["metadata"].items() if name not in PER_RUN}
    entries = [{**entry, "time": ""} for entry in obj["metadata"].get("managedFields", ())]
    for condition in obj.get("status", {}).get("conditions", ()):
        condition.pop("lastTransitionTime", None)
    return {**obj, "metadata": metadata}, sorted(entries, key=lambda entry: (entry["manager"], entry["operation"])), written.warnings


class Ticking(SystemClock):
    """A clock that shows another second whenever it is read, so that every needless new time is found."""

    def __init__(self) -> None:
        self._moment = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        """Return one second more than the last time."""
        self._moment += timedelta(seconds=1)
        return self._moment


class Bench(NamedTuple):
    """A write path, and what runs it."""

    runner: asyncio.Runner
    writes: Writes


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with asyncio.Runner() as runner:
        opened = SqlStore.open(tmp_path_factory.mktemp("apply") / "store.db", KINDS)
        store = runner.run(opened.__aenter__())
        clock = Ticking()
        runner.run(ensure_namespace(store, "default", clock=clock, ids=new_id))
        yield Bench(runner, Writes(store, admission_of(KINDS), Ownership(KINDS), clock, new_id))
        runner.run(opened.__aexit__(None, None, None))


@settings(max_examples=40, deadline=None)
@given(steps)
def test_a_dry_run_tells_what_the_run_does_and_again_is_no_write(bench: Bench, played: list[tuple[str, bool, tuple[str, Json]]]) -> None:
    name = f"d-{new_id()}"

    async def run() -> None:
        for manager, force, (subresource, config) in played:
            target = Target(ModelDeployment, "default", name, subresource)
            named = {**config, "metadata": {**config["metadata"], "name": name}}
            options = WriteOptions(manager=manager, force=force)
            dry = await attempt(bench.writes, target, named, msgspec.structs.replace(options, dry_run=True))
            real = await attempt(bench.writes, target, named, options)
            assert shown(dry) == shown(real)
            if isinstance(real, Written):
                again = await attempt(bench.writes, target, named, options)
                assert isinstance(again, Written)
                assert again.item.body.decode() == real.item.body.decode(), "the same apply again is no write"

    bench.runner.run(run())
