"""What the self-test is asked, what a check says, and what it may cost, as frozen values.

Used by every module of this package. A check is a function of a loaded model (`subject.Subject`) that returns a `Verdict`; the run adds how
long it took and which known failure it was, and that is an `Outcome`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec

from agent.workers.libraries import NamedLibrary

__all__ = ["Encounter", "Figure", "Limits", "Options", "Outcome", "Status", "Verdict", "failed", "passed", "shown_bytes", "skipped"]

Status = Literal["passed", "failed", "skipped"]
Figure = float | int | str | bool

LINES_MAX: Final = 12  # Of the worker's log with a failure: what a runtime says between the first error and its end.


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to test.

    Attributes:
        models: Model files; the first is tested, a second one is loaded beside it.
        adapter: A converted LoRA of the first model.
        encoder: Image encoder (.rknn) of the first model.
        config: The model's config.json, which says what an image becomes.
        template: Chat template (Jinja) of the first model.
        libraries: Runtime libraries that the operator names; empty looks in the usual places.
        reference: Model of the benchmark table to compare with; empty guesses by the file's name.
        dtype: Quantization of that row; empty takes what the runtime says.
        root: Where /proc, /sys and /dev are.
        data_dir: The agent's directory, whose disk matters.
    """

    models: tuple[Path, ...] = ()
    adapter: Path | None = None
    encoder: Path | None = None
    config: Path | None = None
    template: Path | None = None
    libraries: tuple[NamedLibrary, ...] = ()
    reference: str = ""
    dtype: str = ""
    root: Path = Path("/")
    data_dir: Path = Path("/var/lib/rkfleet")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the self-test may cost, and where a figure becomes a failure. Seconds, unless the name says otherwise.

    Attributes:
        total: All of it; a person waits for it.
        load: A model of 4 GB from an eMMC that reads 60 MB/s takes 67; the largest of the table twice that.
        speed: For all runs together. The slowest row of the table (2.5 tokens/s) needs 104 for one whole run; a run is cut short there.
        check: For every other check. The slowest rows need 0.4 for a token and 3 for a prompt, and none asks for more than about 60 tokens.
        abort: From closing a connection until the run has returned: what the contract of workers demands, also in prefill.
        unload: From asking a worker to end until its process is gone.
        ttft_share: A time to the first token longer than the row's by more than 1/share fails. Prefill varies more than decoding: the
            templates of prompts differ, and so does the context that was loaded.
        memory_share: Peak memory above this times the row's fails; the table was measured with another context.
        runs: Of the speed measurement; the median counts.
        restarts: Of a worker that a check took with it.
    """

    total: float = 300.0
    load: float = 120.0
    speed: float = 80.0
    check: float = 40.0
    abort: float = 1.0
    unload: float = 10.0
    ttft_share: float = 0.7
    memory_share: float = 1.3
    runs: int = 3
    restarts: int = 2


class Encounter(msgspec.Struct, frozen=True, kw_only=True):
    """A known failure (`agent/failures`) as the report has it; docs/reference/failures.md has the table."""

    number: int
    reason: str
    message: str
    remedy: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a check says: one sentence, figures with their unit in the name, and one thing to do where it failed."""

    status: Status
    sentence: str
    figures: Mapping[str, Figure] = {}
    remedy: str = ""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict with its place in the report.

    Attributes:
        check: Name of the check, for programs.
        title: For people.
        failure: The known failure that explains it, if there is one.
        lines: Last lines of the worker's log, with a failure only.
    """

    check: str
    title: str
    status: Status
    sentence: str
    seconds: float = 0.0
    figures: Mapping[str, Figure] = {}
    remedy: str = ""
    failure: Encounter | None = None
    lines: tuple[str, ...] = ()


def passed(sentence: str, figures: Mapping[str, Figure] = {}) -> Verdict:
    """Return that all is as it should be."""
    return Verdict(status="passed", sentence=sentence, figures=figures)


def failed(sentence: str, figures: Mapping[str, Figure] = {}, *, remedy: str = "") -> Verdict:
    """Return that something is wrong, and what to do about it."""
    return Verdict(status="failed", sentence=sentence, figures=figures, remedy=remedy)


def skipped(reason: str, figures: Mapping[str, Figure] = {}) -> Verdict:
    """Return that nothing can be said, and why."""
    return Verdict(status="skipped", sentence=reason, figures=figures)


def shown_bytes(count: int) -> str:
    """Return a size as people read it; figures have the exact one."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"
