"""Which generation of the interface a librkllmrt.so speaks, decided before anything of it is called.

In: a file, the operator's word if there is one, and how to look at default parameters in a child process. Out: `Identified`, which says by
what evidence. Used by the agent (it maps nothing) and by the worker. A wrong guess is not an error message but a crash in the first
request: `rkllm_init` of one generation accepts the structs of another.

The evidence, in this order:

1. Content: the git object id of the file is that of a known release.
2. Exported functions: they tell G1, G2, and G3 or G4, which export the same names.
3. The version, which stands in the file as a string of its own. It counts when exactly one known release turns up.
4. Default parameters: a throw-away process calls `rkllm_createDefaultParam` with room to spare and shows where the defaults landed.

Content and functions are facts: what contradicts them is refused, the operator's word included. The operator's word goes before 3 and 4.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec

from agent.workers.rkllm.elf import SharedObject, read_shared_object
from agent.workers.rkllm.errors import RkllmError, UnknownRuntime
from agent.workers.rkllm.releases import CONTENTS, GENERATIONS, OLDER, VERSIONS, Generation

__all__ = [
    "LIBRARY_BYTES_MAX",
    "OVERRIDE",
    "PROBE_BYTES",
    "Generation",
    "Identified",
    "Inconclusive",
    "Seen",
    "generation_of_defaults",
    "generations_of_symbols",
    "identify",
    "look",
]

OVERRIDE: Final = "--runtime-library FILE="  # With the generation behind it, the agent's option with which the operator says it.

LIBRARY_BYTES_MAX: Final = 64 << 20  # Releases have 5 to 12 MB; what is larger is something else and would take long to hash.
CHUNK_BYTES: Final = 1 << 20
SIMULATED_MARK: Final = b"RKFLEET-SIMULATED-RUNTIME"  # simulation/runtime/report.c

PROBE_BYTES: Final = 512  # Room for the struct that createDefaultParam returns; the largest has 208 bytes.

_VERSION: Final = re.compile(rb"\0(1\.\d{1,2}\.\d{1,3}(?:b\d{1,2})?)(?=\0)")
_VERSION_BYTES_MAX: Final = 16  # with the NUL on both sides

_G2_SYMBOLS: Final = frozenset({"rkllm_set_chat_template", "rkllm_clear_kv_cache"})
_G3_SYMBOLS: Final = frozenset({"rkllm_get_kv_cache_size", "rkllm_set_function_tools", "rkllm_set_cross_attn_params"})

Evidence = Literal["content", "symbols", "version", "defaults", "override"]


class Inconclusive(RkllmError):
    """The child process that looks at default parameters crashed or took too long; this says nothing about the generation."""


class Identified(msgspec.Struct, frozen=True):
    """What a library is.

    Attributes:
        version: Release, empty if only the generation is known.
        how: The evidence that decided.
        notes: Sentences for the log: what else was seen.
        simulated: The library needs no NPU (`rkfleet simulated-runtime build`): whatever it says and measures is labelled so.
    """

    generation: Generation
    version: str
    how: Evidence
    notes: tuple[str, ...] = ()
    simulated: bool = False


class Seen(msgspec.Struct, frozen=True):
    """What stands in a file.

    Attributes:
        content: Its git object id.
        versions: Strings in it that look like a release.
        shared: What it exports.
        simulated: It says that it needs no NPU.
    """

    content: str
    versions: frozenset[str]
    shared: SharedObject
    simulated: bool


def identify(
    path: Path,
    *,
    override: Generation | None = None,
    probe: Callable[[Path], bytes] | None = None,
    contents: Mapping[str, str] = CONTENTS,
) -> Identified:
    """Return the generation of a library.

    Args:
        path: The file.
        override: The generation that the operator names.
        probe: Returns `PROBE_BYTES` bytes as `agent.workers.rkllm.probe` prints them, or raises Inconclusive. None: not tried.
        contents: Versions by content id.

    Raises:
        UnknownRuntime: It is no runtime, contradicts itself, or is unknown; the message says what was found and which override helps.
    """
    try:
        return _identify(path, override, probe, contents)
    except UnknownRuntime as error:
        raise UnknownRuntime(f"runtime library {path}: {error.message}") from error


def _identify(path: Path, override: Generation | None, probe: Callable[[Path], bytes] | None, contents: Mapping[str, str]) -> Identified:
    looked = look(path)
    content, versions, shared = looked.content, looked.versions, looked.shared
    release = contents.get(content)
    if release in OLDER:
        raise UnknownRuntime(f"it is release {release}; rkfleet needs 1.1.0 or later")
    possible = generations_of_symbols(shared.symbols)
    notes = [f"exports of {' or '.join(possible)}, built for {shared.machine}"]

    if release is not None:
        generation = VERSIONS[release]
        if generation not in possible:
            raise UnknownRuntime(f"its content is that of release {release} ({generation}) but it exports the functions of {_or(possible)}")
        if override not in {None, generation}:
            raise UnknownRuntime(f"its content is that of release {release} ({generation}): {OVERRIDE}{override} contradicts it")
        return Identified(generation, release, "content", tuple(notes), looked.simulated)

    known = sorted(version for version in versions if version in VERSIONS)
    newer = sorted((version for version in versions if _number(version) > _NEWEST), key=_number)
    version = known[0] if len(known) == 1 else ""
    if override is not None:
        if override not in possible:
            raise UnknownRuntime(f"it exports the functions of {_or(possible)}: {OVERRIDE}{override} contradicts them")
        if version and VERSIONS[version] != override:
            notes.append(f"the version in the file is {version} ({VERSIONS[version]}); the operator says {override}")
            version = ""
        newest = newer[-1] if newer and not known else ""
        return Identified(override, version or newest, "override", tuple(notes), looked.simulated)

    if version:
        generation = VERSIONS[version]
        if generation not in possible:
            raise UnknownRuntime(
                f"the version in the file is {version} ({generation}) but it exports the functions of {_or(possible)}; "
                f"{OVERRIDE}{possible[-1]} goes by the functions"
            )
        return Identified(generation, version, "symbols" if len(possible) == 1 else "version", tuple(notes), looked.simulated)
    if newer and not known and possible[-1] == GENERATIONS[-1]:
        raise UnknownRuntime(
            f"the version in the file is {newer[-1]}, newer than {_text(_NEWEST)}, the last that rkfleet knows; if its interface is still "
            f"that of {GENERATIONS[-1]}, {OVERRIDE}{GENERATIONS[-1]} allows it"
        )
    if len(possible) == 1:
        return Identified(possible[0], "", "symbols", tuple(notes), looked.simulated)

    seen = f"versions {', '.join(known)}" if known else "no known version"
    found = f"it exports the functions of {_or(possible)}, has {seen} in it"
    generation = _by_defaults(probe and (lambda: probe(path)), shared, found, f"{OVERRIDE}{possible[0]} or {possible[-1]} decides")
    if generation not in possible:
        raise UnknownRuntime(f"{found}, and its default parameters are those of {generation}")
    return Identified(generation, "", "defaults", tuple(notes), looked.simulated)


def _by_defaults(probe: Callable[[], bytes] | None, shared: SharedObject, found: str, helps: str) -> Generation:
    if probe is None:
        raise UnknownRuntime(f"{found}, and its default parameters were not looked at; {helps}")
    try:
        generation = generation_of_defaults(probe(), shared.pointer_bytes)
    except Inconclusive as error:
        raise UnknownRuntime(f"{found}, and looking at its default parameters failed: {error.message}; {helps}") from error
    if generation is None:
        raise UnknownRuntime(f"{found}, and its default parameters fit no generation; {helps}")
    return generation


def look(path: Path) -> Seen:
    """Return what stands in a file, without a judgement.

    Raises:
        UnknownRuntime: It cannot be read or is no library.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UnknownRuntime(f"it cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnknownRuntime("it is no regular file")
        if status.st_size > LIBRARY_BYTES_MAX:
            raise UnknownRuntime(f"it has {status.st_size} bytes, a runtime has at most {LIBRARY_BYTES_MAX}")
        shared = read_shared_object(descriptor, status.st_size, "rkllm_")
        content, versions, simulated = _scan(descriptor, status.st_size)
        return Seen(content, versions, shared, simulated)
    except OSError as error:
        raise UnknownRuntime(f"it cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def generations_of_symbols(symbols: frozenset[str]) -> tuple[Generation, ...]:
    """Return the generations whose functions these are.

    Raises:
        UnknownRuntime: They are those of none.
    """
    if "rkllm_init" not in symbols:
        raise UnknownRuntime("it does not export rkllm_init: it is no RKLLM runtime")
    if "rkllm_load_lora" not in symbols:
        raise UnknownRuntime("it exports rkllm_init but not rkllm_load_lora: releases before 1.1.0 are not spoken")
    second, third = _G2_SYMBOLS & symbols, _G3_SYMBOLS & symbols
    if second not in (_G2_SYMBOLS, set()) or third not in (_G3_SYMBOLS, set()) or (third and not second):
        there = ", ".join(sorted(second | third))
        raise UnknownRuntime(f"of the functions that came after 1.1.4 it exports only {there}: no release does")
    if third:
        return ("G3", "G4")
    return ("G2",) if second else ("G1",)


class _Places(msgspec.Struct, frozen=True):
    """Byte offsets in RKLLMParam: `top_p`, and `extend_param`, by generation."""

    top_p: Mapping[Generation, int]
    extend: Mapping[Generation, int]


# The same numbers as `layouts` makes; written out so that the agent need not import ctypes. Tests compare them.
_PLACES: Final = {
    8: _Places({"G1": 20, "G2": 24, "G3": 24, "G4": 24}, {"G1": 80, "G2": 88, "G3": 88, "G4": 60}),
    4: _Places({"G1": 16, "G2": 20, "G3": 20, "G4": 20}, {"G1": 64, "G2": 68, "G3": 68, "G4": 56}),
}
_TOP_P: Final = struct.pack("<f", 0.9)  # Source: the SDK's manual, parameters of RKLLMParam.
_CPUS: Final = struct.Struct("<5xbxxI")  # In extend_param from G2: enabled_cpus_num, enabled_cpus_mask.
_BATCH_AT: Final = 12  # In extend_param from G3: n_batch, 1 by default; G2 has reserved zeros there.


def generation_of_defaults(parameters: bytes, pointer_bytes: int) -> Generation | None:
    """Return the generation whose default parameters these are, or None when none or several fit.

    Args:
        parameters: RKLLMParam as the library returned it, and what stood behind it in memory: those bytes mean nothing.
        pointer_bytes: Of the library.
    """
    places = _PLACES[pointer_bytes]
    if len(parameters) < PROBE_BYTES:
        return None
    fitting = tuple(one for one in GENERATIONS if _fits(parameters, one, places))
    return fitting[0] if len(fitting) == 1 else None


def _fits(parameters: bytes, generation: Generation, places: _Places) -> bool:
    top_p_at, extend_at = places.top_p[generation], places.extend[generation]
    if parameters[top_p_at : top_p_at + 4] != _TOP_P:
        return False
    if generation == "G1":
        return True
    cpus, mask = _CPUS.unpack_from(parameters, extend_at)
    if not 1 <= cpus <= 8 or mask.bit_count() not in {0, cpus}:
        return False
    return parameters[extend_at + _BATCH_AT] == (0 if generation == "G2" else 1)


def _scan(descriptor: int, size: int) -> tuple[str, frozenset[str], bool]:
    content = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    versions: set[str] = set()
    simulated, tail = False, b""
    for offset in range(0, size, CHUNK_BYTES):
        chunk = os.pread(descriptor, min(CHUNK_BYTES, size - offset), offset)
        content.update(chunk)
        window = tail + chunk
        versions.update(found.group(1).decode() for found in _VERSION.finditer(window))
        simulated = simulated or SIMULATED_MARK in window
        tail = window[-max(_VERSION_BYTES_MAX, len(SIMULATED_MARK)) :]
    return content.hexdigest(), frozenset(versions), simulated


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("b")[0].split("."))


_NEWEST: Final = max(_number(version) for version in VERSIONS)


def _text(number: tuple[int, ...]) -> str:
    return ".".join(map(str, number))


def _or(generations: tuple[Generation, ...]) -> str:
    return " or ".join(generations)
