"""The simulated runtime in tests: built once per source, models and scripts for it, and shared libraries that are only ELF headers.

A script is re-read by the library at each call, so a test changes it between two runs.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from agent.workers.rkllm.library import Library, LoadParameters, Model, Result
from agent.workers.rkllm.releases import VERSIONS, Generation
from simulation.runtime.build import build, source_digest

# One release of each generation, and the one whose layout differs within its generation.
RELEASES: dict[Generation, str] = {"G1": "1.1.4", "G2": "1.2.1b1", "G3": "1.2.3", "G4": "1.3.0"}
ALL_RELEASES = ("1.1.4", "1.2.0", "1.2.1b1", "1.2.3", "1.3.0")

WIDTH = 64  # of embeddings, as the simulated model has by default

G1_SYMBOLS = (
    "rkllm_createDefaultParam",
    "rkllm_init",
    "rkllm_load_lora",
    "rkllm_load_prompt_cache",
    "rkllm_release_prompt_cache",
    "rkllm_destroy",
    "rkllm_run",
    "rkllm_run_async",
    "rkllm_abort",
    "rkllm_is_running",
)
G2_SYMBOLS = (*G1_SYMBOLS, "rkllm_clear_kv_cache", "rkllm_set_chat_template")
G3_SYMBOLS = (*G2_SYMBOLS, "rkllm_get_kv_cache_size", "rkllm_set_function_tools", "rkllm_set_cross_attn_params")
SYMBOLS: dict[Generation, tuple[str, ...]] = {"G1": G1_SYMBOLS, "G2": G2_SYMBOLS, "G3": G3_SYMBOLS, "G4": G3_SYMBOLS}


def runtime(version: str, *, generation: Generation | None = None, literal: bool = True) -> Path:
    """Return the simulated runtime of a release, built at most once on this machine from these sources."""
    generation = generation or VERSIONS[version]
    made_of = source_digest(generation, version, literal=literal)[:16]
    return build(generation, version, Path(tempfile.gettempdir()) / f"rkfleet-runtime-{os.getuid()}" / made_of, literal=literal)


def keys(**values: object) -> str:
    """Return the lines of a script or of a model file."""
    return "".join(f"{key} {int(value) if isinstance(value, bool) else value}\n" for key, value in values.items())


def model_file(path: Path, **values: object) -> Path:
    """Write a model for the simulated runtime: fast, unless it says otherwise."""
    path.write_text("RKLLMFAKE\n" + keys(**{"ttft_ms": 1, "tokens_per_s": 2000, **values}))
    return path


def script_file(directory: Path, patch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what writes the script that libraries in this process read at each call."""
    path = directory / "script"
    path.write_text("")
    patch.setenv("RKLLM_SIMULATION", str(path))
    return lambda **values: path.write_text(keys(**values)) and None


class Loaded:
    """A loaded simulated model and what it gave."""

    def __init__(self, version: str, model: Path, **parameters: object) -> None:
        self.library = Library.open(runtime(version), VERSIONS[version])
        self.results: list[Result] = []
        self.model: Model = self.library.init(
            LoadParameters(**{"model_path": str(model), "max_context_tokens": 512, **parameters}),  # type: ignore[arg-type]
            self.results.append,
        )

    def text(self) -> str:
        """Return what it said since last asked."""
        said = b"".join(result.text for result in self.results).decode()
        self.results.clear()
        return said


def shared_object(symbols: Iterable[str], strings: Iterable[str] = (), *, bits: int = 64, machine: int = 183) -> bytes:
    """Return an ELF library that exports these names and holds these strings, each between two NULs; it has no code."""
    wide = bits == 64
    names, entries = bytearray(1), bytearray(24 if wide else 16)
    for symbol in symbols:
        entry = struct.pack("<IBBHQQ", len(names), 18, 0, 7, 0, 0) if wide else struct.pack("<IIIBBH", len(names), 0, 0, 18, 0, 7)
        entries += entry
        names += symbol.encode() + b"\0"
    data = b"\0" + b"".join(text.encode() + b"\0" for text in strings)
    head_bytes, section_bytes = (64, 64) if wide else (52, 40)
    body = entries + names + data
    at_entries, at_names = head_bytes, head_bytes + len(entries)
    sections = bytes(section_bytes)
    for kind, offset, length, link, each in ((11, at_entries, len(entries), 2, 24 if wide else 16), (3, at_names, len(names), 0, 0)):
        sections += struct.pack("<IIQQQQIIQQ" if wide else "<IIIIIIIIII", 0, kind, 0, 0, offset, length, link, 0, 0, each)
    head = struct.pack("<4sBBB9x", b"\x7fELF", 2 if wide else 1, 1, 1)
    head += struct.pack(
        "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH",
        3, machine, 1, 0, 0, head_bytes + len(body), 0, head_bytes, 0, 0, section_bytes, 3, 0,
    )  # fmt: skip
    return bytes(head + body + sections)
