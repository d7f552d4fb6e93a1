"""The files that go with a model of the NPU: its chat template, adapters, and the image encoder with its configuration.

In: a model file and what the command line names for it. Out: `AssignedFile`s without digests, and their words for the start line. Called by
`agent/standalone/models.py`. In a fleet the artifact says all this; here a template that lies beside the model is taken without being
named, as those who convert models leave it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agent.standalone.config import Companion
from rkfleet.assignment import AssignedFile, AssignedReplica
from rkfleet.errors import FailedPrecondition, Invalid

__all__ = ["companions_of", "said_of"]

# Names under which tools write the template of a model; `<stem>.jinja` comes before them, for a directory with several models.
TEMPLATE_NAMES: Final = ("chat_template.jinja",)
CONFIG_NAME: Final = "config.json"


def companions_of(model: Path, runtime: str, named: Sequence[Companion]) -> tuple[AssignedFile, ...]:
    """Return the files that go with a model, in the order in which they were named.

    Raises:
        FailedPrecondition: One cannot be read, or an encoder has no configuration.
        Invalid: The model takes none, or requests could not tell two adapters apart.
    """
    if runtime != "rkllm":
        if named:
            raise Invalid(f"--{named[0].role} {named[0].path} goes with an RKLLM model; {model} is GGUF, which holds all that it needs")
        return ()
    found = list(named)
    roles = {one.role for one in found}
    if "template" not in roles:
        found += _beside(model, "template", (f"{model.stem}.jinja", *TEMPLATE_NAMES))
    if "encoder" in roles and "config" not in roles:
        encoder = next(one.path for one in found if one.role == "encoder")
        found += _beside(encoder, "config", (CONFIG_NAME,))
        if found[-1].role != "config":
            raise FailedPrecondition(
                f"encoder {encoder} needs a configuration, and there is no {CONFIG_NAME} beside it; give --config FILE"
            )
    stems = [one.path.stem for one in found if one.role == "adapter"]
    if twice := next((stem for stem in stems if stems.count(stem) > 1), ""):
        raise Invalid(f"two adapters of {model} are named {twice!r}; requests tell them by their names")
    return tuple(AssignedFile(path=str(one.path), digest="", size_bytes=_size(one), role=one.role) for one in found)


def _beside(file: Path, role: str, names: Sequence[str]) -> list[Companion]:
    """Return the first of these files that lies beside another, if one does."""
    return [Companion(role=role, path=file.with_name(name)) for name in names if file.with_name(name).is_file()][:1]


def _size(one: Companion) -> int:
    try:
        return one.path.stat().st_size
    except OSError as error:
        raise FailedPrecondition(f"{one.role} {one.path} cannot be read: {error.strerror or error}") from error


def said_of(replica: AssignedReplica) -> str:
    """Return the name of a model with what goes with it: `tiny (template chat_template.jinja, adapter law.safetensors)`."""
    beside = ", ".join(f"{file.role} {Path(file.path).name}" for file in replica.files if file.role != "weight")
    return f"{replica.served_model_name} ({beside})" if beside else replica.served_model_name
