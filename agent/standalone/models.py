"""What a board without a fleet is to run: the assignment that its command line amounts to.

In: the options and the files behind them. Out: an `Assignment`, offered to the ledger as a controller would offer it, so that loop, planner
and supervisor do not know the difference. Called by `agent/standalone/app.py`.
"""

from __future__ import annotations

import functools
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from agent.ledger import Ledger
from agent.standalone.companions import companions_of
from agent.standalone.config import Options
from agent.standalone.files import LocalFiles
from agent.workers import gguf
from rkfleet import simulated
from rkfleet.assignment import (
    AssignedFile,
    AssignedReplica,
    Assignment,
    ServingParameters,
    assignment_sha256,
    encode_assignment,
)
from rkfleet.clock import Clock
from rkfleet.errors import FailedPrecondition, FleetError, Invalid, Unavailable
from rkfleet.packaging import default_memory_bytes
from rkfleet.session import AssignmentOffer, Verdict

__all__ = ["LocalModels", "check_file", "served_names"]

CONTEXT_TOKENS_MAX: Final = 4096  # Unless --context says otherwise: a cache for 128k tokens would fill a board before the weights do.
RETRY_SECONDS: Final = 5.0  # Between two tries to write the ledger on a full disk.
LFS_MAGIC: Final = b"version https://git-lfs"  # Source: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
HEAD_BYTES: Final = 32  # Enough to tell all of these.
NAMESPACE: Final = "default"
RKLLM_SUFFIX: Final = ".rkllm"  # Such files have no published head; the runtime itself refuses what is none.

Runtime = Literal["llamacpp", "rkllm"]


def check_file(path: Path) -> Runtime:
    """Return the runtime that a model file is for, by its head or, for RKLLM, its ending.

    Raises:
        FailedPrecondition: It is for none, or cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for whoever writes to it
            raise FailedPrecondition(f"model file {path} is no file; name the GGUF or RKLLM file itself")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise FailedPrecondition(f"model file {path} cannot be read: {error.strerror or error}") from error
    if head.startswith(gguf.MAGIC):
        return "llamacpp"
    if head.startswith(simulated.MAGIC):
        raise FailedPrecondition(
            f"model file {path} is a placeholder for simulated boards, with nothing in it to load; see: rkfleet up --simulated rk3588=1"
        )
    if head.startswith(LFS_MAGIC):
        raise FailedPrecondition(f"model file {path} is a Git LFS pointer instead of the model; try: git lfs pull")
    if path.suffix.lower() == RKLLM_SUFFIX:
        return "rkllm"
    raise FailedPrecondition(f"model file {path} is neither GGUF (it begins with {head[:4]!r}) nor does it end in {RKLLM_SUFFIX}")


def served_names(options: Options) -> tuple[str, ...]:
    """Return the name of each model for clients.

    Raises:
        Invalid: Two have the same.
    """
    names = options.names or tuple(re.sub(r"\s+", "-", path.stem) for path in options.models)
    for index, name in enumerate(names):
        if name in names[:index]:
            first, second = options.models[names.index(name)], options.models[index]
            raise Invalid(f"{first} and {second} would both be served as {name}; give each a --name")
    return names


class LocalModels:
    """The models of one command line; `Local` of `agent/parts.py`.

    Attributes:
        files: The files behind them.
    """

    def __init__(self, options: Options, files: LocalFiles, clock: Clock, say: Callable[[str], None]) -> None:
        """Take the command line, the files, and whom to tell what a person should know."""
        self.files: Final = files
        self._options: Final = options
        self._clock: Final = clock
        self._say: Final = say

    def drafts(self) -> tuple[AssignedReplica, ...]:
        """Return what is to run, before any file was read whole: digests are missing, all else is there.

        Raises:
            FailedPrecondition: A file is none that can be served.
            Invalid: Two models have one name, or a file was named for a model that takes none.
        """
        names = served_names(self._options)
        return tuple(_replica(index, names[index], path, self._options) for index, path in enumerate(self._options.models))

    async def prove(self, progress: Callable[[Path, int, int], None]) -> None:
        """Have the digest of every file; `progress` is told the path, bytes that were read, and bytes of the file.

        Raises:
            NotFound: One is gone.
            FailedPrecondition: One cannot be read.
        """
        for path in (Path(file.path) for draft in self.drafts() for file in draft.files):
            await self.files.prove(path, functools.partial(progress, path))

    async def assign(self, ledger: Ledger) -> None:
        """Have the ledger say what these files are now; a ledger that says it already is left alone.

        Raises:
            FailedPrecondition: A file is none that can be served.
            NotFound: One is gone.
            Unavailable: The ledger cannot be written.
        """
        replicas = []
        for draft in self.drafts():
            files = []
            for file in draft.files:
                proven = await self.files.prove(Path(file.path))
                files.append(msgspec.structs.replace(file, digest=proven.digest, size_bytes=proven.size_bytes))
            replicas.append(msgspec.structs.replace(draft, files=tuple(files)))
        body = encode_assignment(Assignment(replicas=tuple(replicas)))
        sha256 = assignment_sha256(body)
        if ledger.held.sha256 == sha256:
            return
        answer = await ledger.accept(AssignmentOffer(number=ledger.held.number + 1, body=body, sha256=sha256))
        if answer.verdict is not Verdict.ACCEPTED:
            raise Unavailable(answer.reason)

    async def keep(self, ledger: Ledger) -> None:
        """Assign again whenever a file was found to have changed, until cancelled."""
        while True:
            await self.files.changed.wait()
            try:
                await self.assign(ledger)
            except FleetError as error:
                self._say(error.message)
                await self._clock.sleep(RETRY_SECONDS)
            else:
                self.files.changed.clear()


def _replica(index: int, name: str, path: Path, options: Options) -> AssignedReplica:
    runtime = check_file(path)
    size_bytes = path.stat().st_size
    companions = companions_of(path, runtime, [one for one in options.companions if one.model == path])
    loaded_bytes = size_bytes + sum(file.size_bytes for file in companions)
    context = options.context_tokens or CONTEXT_TOKENS_MAX
    if runtime == "llamacpp" and not options.context_tokens:
        context = min(context, gguf.context_length(path) or context)
    return AssignedReplica(
        namespace=NAMESPACE,
        name=f"model-{index}",
        uid=f"standalone-{index}-{name}",
        generation=1,
        model=name,
        served_model_name=name,
        variant=path.suffix.removeprefix("."),
        soc="any",
        dtype="",
        runtime=runtime,
        files=(AssignedFile(path=str(path), digest="", size_bytes=size_bytes), *companions),
        memory_bytes=default_memory_bytes(loaded_bytes, context),
        serving=ServingParameters(context_tokens=context, max_output_tokens=context, drain_seconds=0),
    )
