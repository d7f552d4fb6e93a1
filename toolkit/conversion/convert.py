"""One conversion by a vendor's toolkit: run it in a directory of its own, look at what it made, and put that in its place with its papers.

In: a `Plan` of a job, where its files go, and the recipe. Out: `STEM.recipe.json` first; then the files and `STEM.provenance.json`, all or
none: the model is renamed last, so that where it is, it is whole. Called by `toolkit.commands.convert` and `convert_onnx` with plans of
`rkllm` and `rknn`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from rkfleet.clock import Clock, format_time
from rkfleet.errors import FailedPrecondition, Invalid, NotFound
from toolkit.conversion.child import Ended, Limits, Listener, run_job
from toolkit.conversion.failures import sentence_of
from toolkit.conversion.interpreter import Interpreter
from toolkit.recipe import Recipe

__all__ = ["FIRST_BYTES", "Artifact", "Plan", "Provenance", "check_output", "convert", "papers_of", "write_recipe"]

FIRST_BYTES: Final = 64  # Of a file that are kept in its provenance; forms of files are told apart by fewer.


class Artifact(msgspec.Struct, frozen=True, rename="camel"):
    """A file that was made.

    Attributes:
        first_bytes: Its first bytes in hexadecimal digits.
    """

    path: str
    size_bytes: int
    first_bytes: str


class Provenance(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How and where files were made: what a recipe leaves out since it does not decide their bytes.

    Attributes:
        maker: Program and release.
        versions: Of the packages of the interpreter that made it.
        steps: What was called with what.
        began: Wall time, RFC 3339.
        log: The last lines that the maker wrote.
    """

    maker: str
    recipe: str
    command: tuple[str, ...]
    python: str
    versions: Mapping[str, str]
    steps: tuple[Mapping[str, Any], ...]
    began: str
    seconds: float
    stage_seconds: Mapping[str, float]
    artifacts: tuple[Artifact, ...]
    log: tuple[str, ...]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A job for the driver and what it is to leave in its directory.

    Attributes:
        maker: `rkllm-toolkit 1.2.3`.
        job: As `driver` takes it.
        made: Names of files in the working directory that have to be there in the end, the model first.
        kept: Suffixes of further files that are kept if they are there.
        magic: First bytes of the model, where the form is published.
    """

    maker: str
    job: Mapping[str, Any]
    made: tuple[str, ...]
    kept: tuple[str, ...] = ()
    magic: bytes = b""
    environment: Mapping[str, str] = {}


def papers_of(output: Path) -> tuple[Path, Path]:
    """Return where the recipe and the provenance of a file are."""
    return output.with_name(f"{output.stem}.recipe.json"), output.with_name(f"{output.stem}.provenance.json")


def check_output(output: Path, suffix: str, *, others: tuple[str, ...] = ()) -> None:
    """Check the place for a file before work begins.

    Raises:
        Invalid: It has another suffix.
        NotFound: Its directory is not there.
        FailedPrecondition: It, or one of the others beside it, exists.
    """
    if output.suffix != suffix:
        raise Invalid(f"-o {str(output)!r} does not end in {suffix}; name the file so, since tools go by it")
    if not output.parent.is_dir():
        raise NotFound(f"-o {str(output)!r}: directory {str(output.parent)!r} does not exist; make it first")
    for path in (output, *(output.with_name(other) for other in others)):
        if path.exists():
            raise FailedPrecondition(f"{str(path)!r} exists: remove it or name another output")


def write_recipe(output: Path, recipe: Recipe) -> Path:
    """Write the recipe of a file that is yet to be made, and return its path.

    Raises:
        FailedPrecondition: It cannot be written.
    """
    path, _ = papers_of(output)
    with _working(output) as place:
        _write(place / path.name, recipe.encode())
        (place / path.name).replace(path)
    return path


async def convert(
    plan: Plan,
    output: Path,
    recipe: Recipe,
    interpreter: Interpreter,
    *,
    clock: Clock,
    listener: Listener,
    limits: Limits = Limits(),
    command: tuple[str, ...] = (),
) -> Provenance:
    """Carry a plan out.

    Args:
        plan: What to do.
        recipe: What decided the bytes; written before anything starts.
        interpreter: As `probe` found it.
        clock: Time of limits and of the provenance.
        listener: Who is told on the way.
        limits: How long it may take.
        output: Where the first of `plan.made` goes; the others go beside it.
        command: What a person typed.

    Raises:
        FailedPrecondition: The vendor's toolkit failed, or did not leave what it was to; nothing is written then but the recipe.
    """
    write_recipe(output, recipe)
    began = clock.now()
    with _working(output) as place:
        ended = await run_job(
            plan.job,
            python=Path(interpreter.path),
            directory=place,
            clock=clock,
            listener=listener,
            limits=limits,
            environment=plan.environment,
        )
        if ended.last.get("event") != "done" or ended.killed:
            raise FailedPrecondition(sentence_of(ended, plan.maker))
        names = [*plan.made, *_further(place, plan)]
        artifacts = tuple(_artifact(place, name, plan, ended) for name in names)
        paths = [output.with_name(_renamed(name, plan, output)) for name in names]
        provenance = Provenance(
            maker=plan.maker,
            recipe=recipe.digest,
            command=command,
            python=f"{interpreter.python} ({interpreter.path})",
            versions=interpreter.versions,
            steps=tuple(plan.job["steps"]),
            began=format_time(began),
            seconds=round(ended.seconds, 3),
            stage_seconds={name: round(seconds, 3) for name, seconds in ended.stage_seconds.items()},
            artifacts=tuple(msgspec.structs.replace(one, path=path.name) for one, path in zip(artifacts, paths, strict=True)),
            log=ended.tail,
        )
        _, papers = papers_of(output)
        _write(place / ".provenance", msgspec.json.format(msgspec.json.encode(provenance)))
        try:
            (place / ".provenance").replace(papers)
            for name, path in reversed(list(zip(names, paths, strict=True))):
                (place / name).replace(path)
        except OSError as error:
            raise FailedPrecondition(f"file {str(output)!r} cannot be written: {error.strerror}") from error
    return provenance


@contextmanager
def _working(output: Path) -> Iterator[Path]:
    """A directory beside the output, on the same file system, gone in the end."""
    try:
        place = tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.")
    except OSError as error:
        raise FailedPrecondition(f"directory {str(output.parent)!r} cannot be written: {error.strerror}") from error
    with place as name:
        yield Path(name).absolute()


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content + b"\n")
    except OSError as error:
        raise FailedPrecondition(f"file {str(path)!r} cannot be written: {error.strerror}") from error


def _further(place: Path, plan: Plan) -> list[str]:
    """Return names of files that are kept though no one asked for them, one of each suffix."""
    found = [sorted(path.name for path in place.iterdir() if path.name.endswith(suffix)) for suffix in plan.kept]
    return [names[0] for names in found if names and names[0] not in plan.made]


def _renamed(name: str, plan: Plan, output: Path) -> str:
    """Return the name that a file gets; what is kept is named after the output."""
    return name if name in plan.made else f"{output.stem}{Path(name).suffix}"


def _artifact(place: Path, name: str, plan: Plan, ended: Ended) -> Artifact:
    path = place / name
    if not path.is_file() or not path.stat().st_size:
        there = ", ".join(sorted(one.name for one in place.iterdir())) or "nothing"
        lines = "".join(f"\n  | {line}" for line in ended.tail[-3:])
        state = "left it empty" if path.is_file() else f"left {there} instead"
        raise FailedPrecondition(f"{plan.maker} said that all went well, but {name} was to be made and it {state}. Its last lines:{lines}")
    with path.open("rb") as file:
        first = file.read(FIRST_BYTES)
    if name == plan.made[0] and not first.startswith(plan.magic):
        raise FailedPrecondition(f"{plan.maker} made {name}, which begins with {first[:8]!r} and not {plan.magic!r}: it is damaged")
    return Artifact(name, path.stat().st_size, first.hex())
