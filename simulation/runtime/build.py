"""Build the simulated runtime library of one release.

In: a version, and its generation where rkfleet does not know it. Out: a file `librkllmrt.so` that a worker loads like the vendor's. Called
by `rkfleet simulated-runtime build` and by tests. What is built already from the same sources is not built again: beside the library
stands a file with the digest of what it was made of.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from agent.workers.rkllm.releases import VERSIONS, Generation
from rkfleet.errors import FailedPrecondition, Internal, Invalid

__all__ = ["LIBRARY", "build", "generation_of", "include_dir", "source_digest"]

LIBRARY: Final = "librkllmrt.so"

GCC_SECONDS: Final = 120.0  # It takes half a second on a PC and some on a board; only a machine that swaps comes near this.

# 1.2.0 is of the second generation and knows one image only; the header has the difference.
_ONE_IMAGE: Final = "1.2.0"
_VERSION: Final = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}(?:b[0-9]{1,3})?")
_MASK: Final = 0x5A  # The source has the version only masked, so that the file shows it where it is to be seen and nowhere else.


def include_dir() -> Path:
    """Return where the headers of the generations are."""
    return Path(__file__).parent


def generation_of(version: str) -> Generation:
    """Return the generation of a known release.

    Raises:
        Invalid: The release is unknown.
    """
    if version not in VERSIONS:
        raise Invalid(f"release {version!r} of the runtime is unknown; known are {', '.join(VERSIONS)}. For another, name a generation")
    return VERSIONS[version]


def build(generation: Generation, version: str, out_dir: Path, *, literal: bool = True) -> Path:
    """Return the path of the library in `out_dir`, built unless it is there from the same sources.

    Args:
        generation: Whose interface it has.
        version: What it says that it is.
        out_dir: Made if missing.
        literal: Put the version into the file as a string of its own, as releases have it.

    Raises:
        Invalid: The version is none.
        FailedPrecondition: There is no gcc.
        Internal: gcc refused the sources.
    """
    if not _VERSION.fullmatch(version):
        raise Invalid(f"version {version!r} must be three numbers, as 1.2.3, perhaps with b and a number")
    options = _options(generation, version, literal)
    digest = source_digest(generation, version, literal=literal)
    library, made_of = out_dir / LIBRARY, out_dir / f"{LIBRARY}.sources"
    if library.is_file() and made_of.is_file() and made_of.read_text() == digest:
        return library
    gcc = shutil.which("gcc")
    if gcc is None:
        raise FailedPrecondition("gcc is not on PATH: the simulated runtime is built from C. Try: apt-get install gcc libc6-dev")
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir) as scratch:
        made = Path(scratch) / LIBRARY
        flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden", f"-Wl,-soname,{LIBRARY}"]
        command = [gcc, *flags, *options, "-o", str(made), *map(str, _sources("*.c"))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=GCC_SECONDS, check=False)
        if done.returncode != 0:
            raise Internal(f"gcc ended with status {done.returncode}: {done.stderr.strip()[:2000]}")
        made_of.unlink(missing_ok=True)
        made.replace(library)
    made_of.write_text(digest)
    return library


def source_digest(generation: Generation, version: str, *, literal: bool = True) -> str:
    """Return the digest of everything that a build is made of."""
    digest = hashlib.sha256(repr(_options(generation, version, literal)).encode())
    for path in (*_sources("*.c"), *_sources("*.h")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _sources(pattern: str) -> list[Path]:
    return sorted(include_dir().glob(pattern))


def _options(generation: Generation, version: str, literal: bool) -> list[str]:
    options = [f"-DGENERATION={generation[1]}", f"-DVERSION_MASKED={','.join(str(byte ^ _MASK) for byte in version.encode())}"]
    if literal:
        options.append(f'-DVERSION_LITERAL="{version}"')
    if version == _ONE_IMAGE:
        options.append("-DRKLLM_G2A")
    return options
