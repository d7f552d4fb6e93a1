"""The vendor's runtime in a worker: an .rkllm file behind a listener of OpenAI's API, on the NPU.

In: a `Load` with `npu` from the control pipe. Out: a listener on a free loopback port that demands the given key. Imported by the worker
process only (`agent/workers/child.py`). Three threads work here: the main one beats, one listens (`http.py`), one owns the library's handle
(`runner.py`); one more reads what the library prints (`output.py`), and one sends aborts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from agent.workers.pipe import Load, NpuLoad
from agent.workers.rkllm import http
from agent.workers.rkllm.caches import Caches, model_identity
from agent.workers.rkllm.errors import AdapterFailed, CallFailed, InitFailed, RkllmError
from agent.workers.rkllm.identify import OVERRIDE, identify
from agent.workers.rkllm.library import SUPPORTS, Library, LoadParameters, Model
from agent.workers.rkllm.lock import BoardLock
from agent.workers.rkllm.output import Output, error_in
from agent.workers.rkllm.prompts import Marks, Prompts, Renderer
from agent.workers.rkllm.releases import GENERATIONS, VERSIONS, Generation
from agent.workers.rkllm.runner import Runner, Settings
from agent.workers.rkllm.vision import Encoder
from agent.workers.rkllm.watch import Limits, Watch
from agent.workers.rknn.encoder import open_encoder
from rkfleet import simulated
from rkfleet.clock import Clock, SystemClock
from rkfleet.errors import FailedPrecondition, FleetError
from rkfleet.kinds.replica import ExitReason

__all__ = ["Rkllm", "load"]

CONFIG_BYTES_MAX: Final = 16 << 20  # config.json of a model has some kilobytes; with a vocabulary in it some megabytes.

ONE_IMAGE: Final = "1.2.0"  # The release whose input has room for one image, unlike others of its generation.

# The runtime prints a table of counts after each run, which is the only way to know the length of a prompt before 1.2.1.
# Source: the environment variable RKLLM_LOG_LEVEL in the manual of https://github.com/airockchip/rknn-llm.
LOG_LEVEL: Final = ("RKLLM_LOG_LEVEL", "1")

# Source: section "Log" of the manual; the line has been the same since 1.0.1 but for its prefix.
_BANNER: Final = re.compile(r"rkllm-runtime version: ([^,\s]+),")

RESTART: Final = "to have it looked at anew: systemctl restart rkfleet-agent"

# What the runtime says when memory is what is missing; the agent then knows that starting again will not help by itself.
_NO_MEMORY: Final = ("failed to allocate", "failed to malloc", "Cannot allocate memory")


class Rkllm:
    """A loaded model. The object must live as long as the listener should."""

    def __init__(self, endpoint: str, watch: Watch) -> None:
        self.endpoint: Final = endpoint
        self._watch: Final = watch

    def probe(self) -> None:
        """Return if the library does nothing, or has given a sign of life within what its run explains.

        Raises:
            Hung: It has not; the process should end.
        """
        self._watch.check()


def load(
    load: Load,
    *,
    open_encoder: Callable[[NpuLoad], Encoder] = open_encoder,
    clock: Clock | None = None,
    limits: Limits = Limits(),
) -> Rkllm:
    """Load a model and listen; returns when the first request can be answered.

    Args:
        load: What to load; `npu` must be there.
        open_encoder: Makes the image encoder of an artifact that has one.
        clock: For durations and dates; the machine's own if none is given.
        limits: How long the library may be silent.

    Raises:
        FleetError: It cannot be loaded; the message has the library's own words.
    """
    clock, npu = clock or SystemClock(), load.npu
    if npu is None:
        raise FailedPrecondition("a worker of the rkllm runtime was not told which library to use")
    generation = next((one for one in GENERATIONS if one == npu.generation), None)
    if generation is None:
        raise FailedPrecondition(f"runtime library {npu.library} has generation {npu.generation!r}; {', '.join(GENERATIONS)} are known")
    if load.max_concurrent > 1:
        raise FailedPrecondition(
            f"the rkllm runtime answers one request at a time, not {load.max_concurrent}; set serving.maxConcurrent: 1"
        )
    _check_library(npu, generation)
    marks = _marks(npu.config_path)
    template = _template(npu.template_path, clock)
    caches = Caches(npu.cache_dir, npu.cache_bytes, model_identity(load.model_path, npu.library, npu.library_version, generation))
    lock = BoardLock(npu.lock_path)
    encoder = None
    if npu.encoder_path:
        with lock.hold():  # it encodes a grey image, and nothing else may run on the NPU meanwhile
            encoder = open_encoder(npu)
    if generation in {"G1", "G2"}:
        os.environ.setdefault(*LOG_LEVEL)

    output = Output.capture()
    for name in _without_effect(npu, generation):
        output.log(f"W rkfleet: {name} has no effect: runtimes before 1.2 have no such parameter")
    watch = Watch(clock, limits)
    settings = Settings(context_tokens=load.context_tokens, output_tokens_max=load.max_output_tokens, shift=npu.shift)
    runner = Runner(settings, output=output, lock=lock, caches=caches, watch=watch, clock=clock, encoder=encoder)
    try:
        library = Library.open(Path(npu.library), generation)
        model = _init(library, _parameters(load, npu, marks, generation), output, runner, clock)
        if template is not None and "chat_template" in model.supports:
            model.set_chat_template("", "", "")
    except CallFailed as error:
        raise FailedPrecondition(error.message) from error
    except RkllmError as error:
        raise FailedPrecondition(f"{load.model_path}: {error.message}") from error
    _load_adapters(model, npu, output)
    supports = model.supports - {"images"} if npu.library_version == ONE_IMAGE else model.supports
    prompts = Prompts(
        supports=supports,
        adapters={one.name for one in npu.adapters},
        template=template,
        marks=marks,
        output_tokens_max=load.max_output_tokens,
        has_encoder=encoder is not None,
    )
    runner.start(model)
    return Rkllm(http.serve(http.Front(runner, prompts, api_key=load.api_key, clock=clock, log=output.log)), watch)


def _check_library(npu: NpuLoad, generation: Generation) -> None:
    """Look at the file again: an upgrade may have replaced it since the agent looked, and releases of one generation differ as well.

    Raises:
        FailedPrecondition: It is not what the agent took it for.
    """
    path = Path(npu.library)
    try:
        same = identify(path, override=generation).version == npu.library_version
        if not same and not npu.library_version:  # without the operator's word, a version that nobody knows counts for none
            found = identify(path)
            same = (found.generation, found.version) == (generation, "")
    except RkllmError as error:
        raise FailedPrecondition(f"{error.message}; the agent took it for {npu.library_version or generation}; {RESTART}") from error
    if not same:
        was = npu.library_version or f"an unknown release of {generation}"
        raise FailedPrecondition(f"runtime library {path} is not {was} any more, which it was when the agent started; {RESTART}")


def _parameters(load: Load, npu: NpuLoad, marks: Marks, generation: Generation) -> LoadParameters:
    supports = SUPPORTS[generation]
    cpus = npu.cpus if "cpus" in supports else ()  # what a generation does not have, `_without_effect` tells
    return LoadParameters(
        model_path=load.model_path,
        max_context_tokens=load.context_tokens,
        max_new_tokens=load.max_output_tokens,
        keep_tokens=npu.keep_tokens if "keep_tokens" in supports else 0,
        base_domain_id=npu.base_domain,
        embed_flash=npu.embed_flash and "embed_flash" in supports,
        cpu_count=len(cpus),
        cpu_mask=sum(1 << cpu for cpu in set(cpus)),
        image_start=marks.image_start,
        image_end=marks.image_end,
        image_content=marks.image_content,
    )


def _init(library: Library, parameters: LoadParameters, output: Output, runner: Runner, clock: Clock) -> Model:
    """Load the model, and take every error that the library prints meanwhile for a failure, also when it returns 0.

    Raises:
        FleetError: It is not loaded.
    """
    lines, began, failure, model = output.collect(lambda _words: None), clock.monotonic(), "", None
    try:
        model = library.init(parameters, runner.on_result)
    except InitFailed as error:
        failure = error.message
    output.settle(f"rkllm_init took {clock.monotonic() - began:.1f} s")
    words = "; ".join(dict.fromkeys(found for line in lines.kept if (found := error_in(line))))
    words = words or _contradiction(lines.kept, library.generation)
    if model is not None and not words:
        return model
    refusal = _not_loaded(Path(parameters.model_path), words or failure)
    output.log(refusal.message)
    raise refusal


def _contradiction(lines: list[str], generation: Generation) -> str:
    """Return what is wrong if the library says that it is of another generation than it was taken for."""
    said = next((found[1] for line in lines if (found := _BANNER.search(line))), "")
    if VERSIONS.get(said, generation) == generation:
        return ""
    return f"the library says that it is {said} ({VERSIONS[said]}) and was taken for {generation}; check {OVERRIDE}"


def _without_effect(npu: NpuLoad, generation: Generation) -> list[str]:
    """Return the parameters that the library has no place for."""
    given = {"embed_flash": npu.embed_flash, "cpus": npu.cpus, "keep_tokens": npu.keep_tokens}
    return [name for name, value in given.items() if value and name not in SUPPORTS[generation]]


def _not_loaded(path: Path, words: str) -> FleetError:
    """Return why a model is not loaded. A simulated runtime loads placeholders; what any other says about them helps nobody."""
    with path.open("rb") as file:
        placeholder = file.read(len(simulated.MAGIC)) == simulated.MAGIC
    if placeholder:
        return FailedPrecondition(
            f"model file {path} is a placeholder for simulated boards; the rkllm runtime runs real models only: {words}"
        )
    reason: ExitReason = "OutOfMemory" if any(one in words for one in _NO_MEMORY) else "LoadFailed"
    return FailedPrecondition(f"the rkllm runtime did not load {path}: {words}", reason=reason)


def _load_adapters(model: Model, npu: NpuLoad, output: Output) -> None:
    """Load the LoRAs.

    Raises:
        FailedPrecondition: One is refused; the message says what to do about it.
    """
    for adapter in npu.adapters:
        lines = output.collect(lambda _words: None)
        try:
            model.load_adapter(adapter.name, adapter.path, adapter.scale)
        except AdapterFailed as error:
            output.settle(f"adapter {adapter.name} was refused")
            words = lines.error or error.message
            raise FailedPrecondition(
                f"adapter {adapter.name} was not loaded from {adapter.path}: {words}. A LoRA as Hugging Face has it cannot be loaded: "
                "convert it together with its model and give the X_lora.rkllm file"
            ) from error
        output.settle(f"adapter {adapter.name} is loaded")


class _Config(msgspec.Struct, frozen=True):
    vision: Marks = Marks()


def _marks(path: str) -> Marks:
    if not path:
        return Marks()
    try:
        with Path(path).open("rb") as file:
            return msgspec.json.decode(file.read(CONFIG_BYTES_MAX), type=_Config).vision
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise FailedPrecondition(f"{path}: vision cannot be read: {error}") from error


def _template(path: str, clock: Clock) -> Renderer | None:
    if not path:
        return None
    from agent.workers.rkllm.templates import Template  # noqa: PLC0415 (Jinja costs 5 MB, and most models need none)

    return Template(path, clock)
