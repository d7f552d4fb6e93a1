"""Which generation a runtime library is of: every kind of evidence, what contradicts it, and files made to harm."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.workers.rkllm import identify as module
from agent.workers.rkllm.errors import UnknownRuntime
from agent.workers.rkllm.identify import PROBE_BYTES, Inconclusive, generation_of_defaults, identify
from agent.workers.rkllm.probe import run_probe
from agent.workers.rkllm.releases import CONTENTS, OLDER, VERSIONS, Generation
from tests.support.runtimes import ALL_RELEASES, G1_SYMBOLS, G2_SYMBOLS, G3_SYMBOLS, RELEASES, SYMBOLS, runtime, shared_object

SECONDS_MAX = 0.1


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "librkllmrt.so"
    path.write_bytes(content)
    return path


def content_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(UnknownRuntime) as caught:
        identify(path, **options)  # type: ignore[arg-type]
    assert str(path) in caught.value.message
    return caught.value.message


def test_every_known_content_is_of_a_known_release() -> None:
    """Ids are SHA-1, none stands for two releases, and aarch64 has all of them."""
    assert all(len(content) == 40 and int(content, 16) for content in CONTENTS)
    assert {*VERSIONS, *OLDER} == set(CONTENTS.values())


@pytest.mark.parametrize("bits", [64, 32])
def test_a_known_content_is_its_release(bits: int, tmp_path: Path) -> None:
    """The object id that git gives the file decides, without a version in it."""
    content = shared_object(G3_SYMBOLS, bits=bits, machine=183 if bits == 64 else 40)
    found = identify(written(tmp_path, content), contents={content_id(content): "1.2.2"})
    assert (found.generation, found.version, found.how) == ("G3", "1.2.2", "content")
    assert found.notes == (f"exports of G3 or G4, built for {'aarch64' if bits == 64 else 'armhf'}",)
    assert not found.simulated


def test_deciding_maps_nothing() -> None:
    """The agent imports what identifies, and neither ctypes nor the bindings come with it."""
    words = "import sys, agent.workers.rkllm.identify, agent.workers.rkllm.probe; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", words], check=True, capture_output=True, text=True)
    modules = set(done.stdout.split())
    assert "agent.workers.rkllm.identify" in modules
    assert modules & {"ctypes", "agent.workers.rkllm.layouts", "agent.workers.rkllm.library"} == set()


def test_the_content_id_is_that_of_git(tmp_path: Path) -> None:
    """The empty blob and one whose id is in every tutorial have the ids that git gives them."""
    for content, wanted in (
        (b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        (b"hello world\n", "3b18e512dba79e4c8300dd08aeb37f8e728b8dad"),
    ):
        path = written(tmp_path, content)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            assert module._scan(descriptor, len(content))[0] == wanted
        finally:
            os.close(descriptor)


def test_a_content_that_exports_other_functions_is_refused(tmp_path: Path) -> None:
    """Evidence that contradicts itself is nobody's release, whatever the operator says."""
    content = shared_object(G1_SYMBOLS)
    path = written(tmp_path, content)
    message = refusal(path, contents={content_id(content): "1.2.3"}, override="G3")
    assert message.endswith("its content is that of release 1.2.3 (G3) but it exports the functions of G1")


def test_the_operator_cannot_contradict_a_known_content(tmp_path: Path) -> None:
    """Release 1.3.0 is not G3 because somebody says so; it is G4 if he says that."""
    content = shared_object(G3_SYMBOLS)
    path, contents = written(tmp_path, content), {content_id(content): "1.3.0"}
    assert "--runtime-library FILE=G3 contradicts it" in refusal(path, contents=contents, override="G3")
    assert identify(path, contents=contents, override="G4").how == "content"


def test_a_release_before_the_first_generation_is_refused(tmp_path: Path) -> None:
    """Both by content and by its functions."""
    content = shared_object(G1_SYMBOLS)
    path = written(tmp_path, content)
    assert "release 1.0.1; rkfleet needs 1.1.0" in refusal(path, contents={content_id(content): "1.0.1"})
    assert "before 1.1.0" in refusal(written(tmp_path, shared_object(["rkllm_init", "rkllm_run"])))


@pytest.mark.parametrize(("symbols", "generation"), [(G1_SYMBOLS, "G1"), (G2_SYMBOLS, "G2")])
@pytest.mark.parametrize("bits", [64, 32])
def test_functions_tell_the_first_two_generations(symbols: tuple[str, ...], generation: str, bits: int, tmp_path: Path) -> None:
    """A stripped or vendor-built library without a version is known by what it exports."""
    found = identify(written(tmp_path, shared_object(symbols, bits=bits)))
    assert (found.generation, found.version, found.how) == (generation, "", "symbols")


@pytest.mark.parametrize(("version", "generation"), [("1.2.1", "G3"), ("1.2.3", "G3"), ("1.3.0", "G4")])
def test_the_version_tells_the_last_two_apart(version: str, generation: str, tmp_path: Path) -> None:
    """They export the same functions."""
    found = identify(written(tmp_path, shared_object(G3_SYMBOLS, ["0.9.7", version, "zlib 1.2.11", "1.2.11"])))
    assert (found.generation, found.version, found.how) == (generation, version, "version")


def test_the_version_names_the_release_of_a_generation_that_functions_tell(tmp_path: Path) -> None:
    """1.2.0 and 1.2.1b1 export the same and are of one generation."""
    found = identify(written(tmp_path, shared_object(G2_SYMBOLS, ["1.2.1b1"])))
    assert (found.generation, found.version, found.how) == ("G2", "1.2.1b1", "symbols")


def test_a_version_across_the_border_of_two_reads_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read in pieces."""
    content = shared_object(G3_SYMBOLS, ["1.3.0"])
    for size in range(1, 32):
        monkeypatch.setattr(module, "CHUNK_BYTES", size)
        assert identify(written(tmp_path, content)).version == "1.3.0"


def test_a_version_that_contradicts_the_functions_is_refused(tmp_path: Path) -> None:
    """The message names the override that goes by the functions, and it works."""
    path = written(tmp_path, shared_object(G1_SYMBOLS, ["1.2.3"]))
    assert "the version in the file is 1.2.3 (G3) but it exports the functions of G1; --runtime-library FILE=G1" in refusal(path)
    found = identify(path, override="G1")
    assert (found.generation, found.version, found.how) == ("G1", "", "override")
    assert "the operator says G1" in found.notes[-1]


def test_a_newer_version_needs_the_operator(tmp_path: Path) -> None:
    """1.3.1 may speak what 1.3.0 speaks; only a person can know."""
    path = written(tmp_path, shared_object(G3_SYMBOLS, ["1.3.1"]))
    message = refusal(path, probe=lambda path: pytest.fail("a probe cannot know it either"))
    assert "1.3.1, newer than 1.3.0, the last that rkfleet knows" in message
    assert "--runtime-library FILE=G4 allows it" in message
    found = identify(path, override="G4")
    assert (found.generation, found.version, found.how) == ("G4", "1.3.1", "override")


def test_the_operator_cannot_contradict_the_functions(tmp_path: Path) -> None:
    """A function that is not there cannot be called."""
    path = written(tmp_path, shared_object(G2_SYMBOLS))
    assert "exports the functions of G2: --runtime-library FILE=G4 contradicts them" in refusal(path, override="G4")


def test_two_known_versions_are_none(tmp_path: Path) -> None:
    """Then default parameters decide, and without them the operator."""
    path = written(tmp_path, shared_object(G3_SYMBOLS, ["1.2.3", "1.3.0"]))
    message = refusal(path)
    assert "has versions 1.2.3, 1.3.0 in it" in message
    assert "--runtime-library FILE=G3 or G4 decides" in message


@pytest.mark.parametrize(
    ("half", "why"), [(("rkllm_clear_kv_cache",), "rkllm_clear_kv_cache"), (("rkllm_get_kv_cache_size",), "rkllm_get_kv_cache_size")]
)
def test_half_of_a_generation_is_none(half: tuple[str, ...], why: str, tmp_path: Path) -> None:
    """No release exports some of the functions that came together."""
    assert f"exports only {why}" in refusal(written(tmp_path, shared_object((*G1_SYMBOLS, *half))))


@pytest.mark.parametrize("release", ALL_RELEASES)
def test_default_parameters_tell_every_generation(release: str) -> None:
    """A child process shows them; it is the same answer as that of the version."""
    hidden = runtime(release, literal=False)
    assert generation_of_defaults(run_probe(hidden), 8) == VERSIONS[release]
    found = identify(hidden, probe=run_probe)
    assert (found.generation, found.version) == (VERSIONS[release], "")
    assert found.how == ("defaults" if found.generation in {"G3", "G4"} else "symbols")


@pytest.mark.parametrize("release", ALL_RELEASES)
def test_a_built_runtime_is_identified_by_its_file(release: str) -> None:
    """Nothing of it is called."""
    found = identify(runtime(release), probe=lambda path: pytest.fail("it was called"))
    assert (found.generation, found.version) == (VERSIONS[release], release)
    assert found.simulated, "what it says would pass for an NPU's"


def test_a_child_that_crashes_or_hangs_or_lies_says_nothing(tmp_path: Path) -> None:
    """A library that cannot be mapped is refused with the reason, one that fits no generation too."""
    path = written(tmp_path, shared_object(G3_SYMBOLS))

    def crashed(path: Path) -> bytes:
        raise Inconclusive("the child ended with status -11")

    assert "failed: the child ended with status -11" in refusal(path, probe=crashed)
    assert "fit no generation" in refusal(path, probe=lambda path: bytes(PROBE_BYTES))
    with pytest.raises(Inconclusive, match=r"the child ended with status 1: .*librkllmrt\.so"):
        run_probe(path)
    with pytest.raises(Inconclusive, match=r"more than 0\.001 s"):
        run_probe(runtime(RELEASES["G3"]), seconds=0.001)


def test_default_parameters_of_a_generation_that_the_functions_exclude_are_refused(tmp_path: Path) -> None:
    """They are evidence too."""
    path = written(tmp_path, shared_object(G3_SYMBOLS))
    assert "default parameters are those of G2" in refusal(path, probe=lambda _: run_probe(runtime("1.2.0")))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it starts with b''"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no shared library"),
        (b"\x7fELF", "neither 32-bit nor 64-bit"),
        (b"\x7fELF\x02\x02\x01" + bytes(57), "little endian"),
        (shared_object(G3_SYMBOLS)[:40], "truncated"),
        (shared_object(G3_SYMBOLS)[:300], "truncated or damaged"),
        (shared_object([]), "no RKLLM runtime"),
        (shared_object(G3_SYMBOLS).replace(b"\x03\x00\xb7\x00", b"\x02\x00\xb7\x00", 1), "ELF type is 2"),
    ],
)
def test_what_is_no_runtime_is_refused_with_what_was_found(content: bytes, why: str, tmp_path: Path) -> None:
    """A pointer file of git-lfs, a truncated copy, a program."""
    assert why in refusal(written(tmp_path, content))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """Nothing waits for a pipe, and nothing large is read."""
    assert "cannot be opened: No such file" in refusal(tmp_path / "none")
    assert "no regular file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in refusal(tmp_path / "pipe")
    large = written(tmp_path, b"\x7fELF")
    os.truncate(large, module.LIBRARY_BYTES_MAX + 1)
    assert "a runtime has at most" in refusal(large)


@settings(max_examples=200, deadline=None)
@given(
    bits=st.sampled_from((64, 32)),
    generation=st.sampled_from(("G1", "G2", "G3")),
    flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=12),
    words=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, (1 << 32) - 1)), max_size=4),
    cut=st.integers(0, 4000),
)
def test_a_damaged_library_is_refused_at_once(
    bits: int,
    generation: Generation,
    flips: list[tuple[int, int]],
    words: list[tuple[int, int]],
    cut: int,
) -> None:
    """Whatever the bytes are, there is an answer or a typed error, and it takes less than a tenth of a second."""
    content = bytearray(shared_object(SYMBOLS[generation], ["1.2.3"], bits=bits))
    for at, value in flips:
        content[at % len(content)] = value
    for at, value in words:  # offsets, sizes and counts
        place = 4 * at % (len(content) - 4)
        content[place : place + 4] = value.to_bytes(4, "little")
    whole = bytes(content)
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(whole[: len(whole) - cut % len(whole)] if cut % 3 == 0 else whole)
        file.flush()
        began = time.process_time()
        with contextlib.suppress(UnknownRuntime):
            assert identify(Path(file.name)).generation in RELEASES
    assert time.process_time() - began < SECONDS_MAX


def test_the_largest_table_of_symbols_is_read_in_time(tmp_path: Path) -> None:
    """The bound on symbols keeps the agent's loop free, and one more is refused."""
    many = [f"other_{number}" for number in range((1 << 16) - 32)]
    path = written(tmp_path, shared_object((*many, *G2_SYMBOLS)))
    began = time.process_time()
    assert identify(path).generation == "G2"
    assert time.process_time() - began < SECONDS_MAX
    assert "beyond 65536 symbols" in refusal(written(tmp_path, shared_object([*many, *(f"more_{number}" for number in range(40))])))
