"""A board without a fleet, wired: the agent as it is, with an assignment from the command line and the files where they lie.

In: `Options`. Out: a machine that serves until it is told to stop. Called by `agent/__main__.py`. Loop, planner, supervisor, listener,
metrics and journals are those of every board; `Parts.local` is all that differs. There is no identity, no session and no listener beyond
loopback.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec

from agent import app
from agent.notify import Notifier
from agent.parts import Parts, machine_parts
from agent.standalone.config import HOST, PORT, Options
from agent.standalone.files import LocalFiles
from agent.standalone.models import LocalModels
from agent.standalone.terminal import Terminal
from rkfleet.assignment import AssignedReplica
from rkfleet.clock import SystemClock
from rkfleet.disk import SystemDisk
from rkfleet.errors import FailedPrecondition, ResourceExhausted
from rkfleet.process import lock_data_dir, run_until_stopped

__all__ = ["run"]

_INSTALL: Final = {
    "llamacpp": "pip install '.[agent,cpu]' (in a checkout of rkfleet)",
    "rkllm": "--runtime-library FILE, a librkllmrt.so of the vendor",
}


async def run(options: Options) -> None:
    """Serve until told to stop.

    Raises:
        FailedPrecondition: A file, the port, the data directory or the runtime is not what it should be.
        Invalid: Two models have one name.
        NotFound: A file is not there.
        ResourceExhausted: The models do not fit into the memory of this machine.
    """
    _refuse_a_joined_board(options.agent.data_dir)
    with lock_data_dir(options.agent.data_dir):
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(app.THREADS_MAX, thread_name_prefix="disk"))
        await run_until_stopped(_serve(options), options.agent.lifeline)


async def _serve(options: Options) -> None:
    clock = SystemClock()
    jitter = random.Random()  # noqa: S311 (spreads retries)
    terminal = Terminal(sys.stderr, clock)
    models = LocalModels(options, LocalFiles(options.agent.data_dir, SystemDisk(), terminal.say), clock, terminal.say)
    config = msgspec.structs.replace(options.agent, ops_port=_port(options, terminal))
    parts = msgspec.structs.replace(machine_parts(config, clock, jitter), local=models)
    drafts = models.drafts()
    _check(drafts, parts)
    await models.prove(terminal.progress)
    agent = app.Agent(config, parts, clock=clock, jitter=jitter, notifier=Notifier(clock, os.environ))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(agent.run())
        tasks.create_task(terminal.follow(agent.reports, drafts, lambda: agent.local_url))


def _refuse_a_joined_board(data_dir: Path) -> None:
    """Keep away from the ledger of a board that belongs to a fleet.

    Raises:
        FailedPrecondition: The directory has an identity.
    """
    if (data_dir / "identity").exists():
        raise FailedPrecondition(
            f"data directory {data_dir} belongs to a board of a fleet, whose assignment would be lost; give another --data-dir"
        )


def _check(replicas: Sequence[AssignedReplica], parts: Parts) -> None:
    """Refuse now what could only fail later.

    Raises:
        FailedPrecondition: The runtime of a model is not installed.
        ResourceExhausted: The models do not fit into memory together.
    """
    runtimes = {backend.runtime.name for backend in parts.backends}
    for replica in replicas:
        if replica.runtime not in runtimes:
            have = ", ".join(sorted(runtimes)) or "none"
            unused = "".join(f" ({problem})" for problem in parts.library_problems[:1] if replica.runtime == "rkllm")
            needs = f"{replica.files[0].path} needs runtime {replica.runtime}, this machine has {have}{unused}"
            raise FailedPrecondition(f"{needs}; try: {_INSTALL[replica.runtime]}")
    needed = sum(replica.memory_bytes for replica in replicas)
    allocatable = parts.sensors.facts(0).allocatable_memory_bytes
    if needed > allocatable:
        each = ", ".join(f"{replica.served_model_name} {replica.memory_bytes >> 20} MiB" for replica in replicas)
        raise ResourceExhausted(
            f"the models need {needed >> 20} MiB ({each}) and this machine has {allocatable >> 20} MiB for them; "
            f"give a smaller --context than {max(replica.serving.context_tokens for replica in replicas)}, fewer models, or --memory"
        )


def _port(options: Options, terminal: Terminal) -> int:
    """Return the port to listen on: the one that was asked for, else the usual one, else any."""
    if options.port is not None:
        return options.port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, PORT))
        except OSError:
            terminal.say(f"port {PORT} is taken by another program; a free one is used, --port chooses one")
            return 0
    return PORT
