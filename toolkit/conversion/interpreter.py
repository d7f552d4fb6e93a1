"""The vendor's interpreter: what Python it is and which of the vendor's packages it has, and, where they lack, what to install.

In: `--python`. Out: an `Interpreter`, or a sentence. A child is asked, since the pins of the vendor's packages (numpy, torch,
transformers) go with no one else's. Called by `rkllm` and `rknn`.

Source of wheels and where they are: github.com/airockchip/rknn-llm, rkllm-toolkit/packages at the tag of each release; no registry has
them. rknn-toolkit2 is on PyPI.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from rkfleet.clock import Clock
from rkfleet.errors import FailedPrecondition
from toolkit import platforms
from toolkit.conversion.child import Limits, run_job

__all__ = ["RKLLM", "RKNN", "Interpreter", "how_to_install_rkllm", "how_to_install_rknn", "probe"]

RKLLM: Final = "rkllm-toolkit"
RKNN: Final = "rknn-toolkit2"
ASKED: Final = (RKLLM, RKNN, "transformers", "torch", "numpy", "onnx", "setuptools")
PROBE_LIMITS: Final = Limits(silence_seconds=120.0, total_seconds=120.0)  # Importing torch from a cold disk takes 20 s.
MACHINE: Final = "x86_64"  # All that there are wheels for.


class Interpreter(msgspec.Struct, frozen=True):
    """A Python with its packages.

    Attributes:
        python: Version, as 3.10.
        versions: Of those of `ASKED` that are installed.
        cuda: Whether its torch sees a GPU; None if that was not asked.
    """

    path: str
    python: str
    machine: str
    versions: Mapping[str, str]
    cuda: bool | None = None


class _Deaf:
    """Listens to nothing: a probe is over in a moment."""

    def stage(self, name: str) -> None:
        """Ignore it."""

    def progress(self, what: str, done: int, of: int) -> None:
        """Ignore it."""

    def log(self, line: str) -> None:
        """Ignore it."""


async def probe(python: Path, clock: Clock, *, cuda: bool = False) -> Interpreter:
    """Ask an interpreter what it is.

    Args:
        python: The interpreter, absolute.
        clock: Time of the limits.
        cuda: Import its torch and ask for a GPU.

    Raises:
        NotFound: There is no such file.
        FailedPrecondition: It is no Python of 3.8 or later, or does not answer.
    """
    job = {"probe": ASKED, "cuda": cuda}
    with tempfile.TemporaryDirectory() as place:
        ended = await run_job(job, python=python, directory=Path(place), clock=clock, listener=_Deaf(), limits=PROBE_LIMITS)
    last = ended.last
    if last.get("event") != "probed":
        why = ended.killed or (ended.tail[-1] if ended.tail else f"it ended with status {ended.status}")
        raise FailedPrecondition(f"--python {str(python)!r} is no Python of 3.8 or later that answers: {why}")
    versions = {str(name): str(version) for name, version in last["versions"].items()}
    return Interpreter(str(python), str(last["python"]), str(last["machine"]), versions, last["cuda"])


def how_to_install_rkllm(release: str, python: str = "") -> str:
    """Return the sentence that says which wheel to fetch from where.

    Args:
        release: One of `platforms.RELEASES`.
        python: Version of the interpreter there is, as 3.10; empty for none.
    """
    taken = platforms.python_versions(release)
    if python and python not in taken:
        return (
            f"RKLLM-Toolkit {release} has no wheel for Python {python}: make a virtual environment of Python {' or '.join(taken)}, "
            f"then {how_to_install_rkllm(release)[:1].lower()}{how_to_install_rkllm(release)[1:]}"
        )
    tag = f"cp{(python or taken[-1]).replace('.', '')}"
    wheel = f"rkllm_toolkit-{release}-{tag}-{tag}-linux_x86_64.whl"
    hint = "" if python else f" (for Python {taken[-1]}; there are also {', '.join(taken[:-1])})" if taken[:-1] else ""
    return (
        f"Fetch {wheel}{hint} from the vendor's repository airockchip/rknn-llm on GitHub, tag release-v{release}, directory "
        f"rkllm-toolkit/packages (it is on no registry), install it into a virtual environment of its own on an {MACHINE} Linux with "
        "`pip install`, and give --python PATH-OF-THE-ENVIRONMENT/bin/python"
    )


def how_to_install_rknn() -> str:
    """Return the sentence that says how rknn-toolkit2 is installed."""
    return (
        f"Install {RKNN} from PyPI into a virtual environment of its own on an {MACHINE} Linux (`pip install {RKNN} 'setuptools<81'`, "
        "which has the pkg_resources that it imports) and give --python PATH-OF-THE-ENVIRONMENT/bin/python"
    )
