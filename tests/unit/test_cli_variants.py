"""`--variant` words, and what becomes of a Model's variants when some are pushed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rkfleet.cli.variants import merge_variants, parse_variant, variant_of
from rkfleet.errors import Conflict, Invalid
from rkfleet.kinds.model import ArtifactFile

ROOT = Path(__file__).resolve().parents[2]
FILE = ArtifactFile(path="m.gguf", digest=f"sha256:{1:064x}", size_bytes=98362432)
OTHER = ArtifactFile(path="m.gguf", digest=f"sha256:{2:064x}", size_bytes=98362432)
MANIFEST = f"sha256:{9:064x}"
WORDS = "name=a,soc=any,dtype=q4_1,runtime=llamacpp"


def made(text: str, file: ArtifactFile = FILE) -> dict[str, Any]:
    return variant_of(parse_variant(text), (file,), MANIFEST)


def test_every_word_sets_its_field() -> None:
    text = (
        "name=a,soc=rk3588,dtype=w8a8,runtime=rkllm,context=8192,memory=2530Mi,npuCores=3,runtimeVersion=>=1.1.0,<1.4,"
        "driverVersion=>=0.9.7,reference=Qwen2-1.5B,sdkVersion=1.1.0"
    )
    assert made(text) == {
        "name": "a",
        "soc": "rk3588",
        "dtype": "w8a8",
        "runtime": "rkllm",
        "contextTokens": 8192,
        "requires": {"memory": "2530Mi", "npuCores": 3, "runtimeVersion": ">=1.1.0,<1.4", "driverVersion": ">=0.9.7"},
        "reference": {"model": "Qwen2-1.5B", "sdkVersion": "1.1.0"},
        "artifact": {"manifestDigest": MANIFEST, "files": [{"path": "m.gguf", "digest": FILE.digest, "sizeBytes": 98362432}]},
    }


def test_memory_that_nobody_measured_comes_from_file_and_context() -> None:
    """94 MiB of weights, 32 KiB for each token, 256 MiB for the runtime."""
    assert made(WORDS)["requires"] == {"memory": "478Mi"}
    assert made(f"{WORDS},context=2048")["requires"] == {"memory": "414Mi"}
    assert made(f"{WORDS},npuCores=1")["requires"] == {"memory": "478Mi", "npuCores": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name=a,soc=any", "dtype, runtime is missing"),
        ("any", "'any' is not key=value"),
        (f"{WORDS},colour=red", "key 'colour' is unknown"),
        (f"{WORDS},soc=rk3588", "soc is there twice"),
        (f"{WORDS},context=many", "context must be a whole number, is 'many'"),
        (f"{WORDS},sdkVersion=1.1.0", "sdkVersion needs reference"),
        ("name=a,soc=rk9999,dtype=q4,runtime=llamacpp", "Invalid enum value 'rk9999'"),
        ("name=A_b,soc=any,dtype=q4,runtime=llamacpp", r"variant 'A_b': .*matching regex"),
        (f"{WORDS},memory=lots", "variant 'a': 'lots' is not a quantity"),
    ],
)
def test_a_mistake_is_named(text: str, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        made(text)


def test_new_variants_come_after_the_stored_ones_and_those_stay_as_they_are() -> None:
    stored = [{**made(WORDS), "unknownToUs": True}]
    new = made(WORDS.replace("name=a", "name=b"))
    merged = merge_variants("m", stored, [(parse_variant(WORDS), made(WORDS)), (parse_variant(WORDS.replace("name=a", "name=b")), new)])
    assert merged == [*stored, new]


def test_of_a_stored_variant_only_what_was_written_of_its_requirements_changes() -> None:
    stored = made(f"{WORDS},memory=1Gi,npuCores=2")
    words = f"{WORDS},memory=2Gi"
    (merged,) = merge_variants("m", [stored], [(parse_variant(words), made(words))])
    assert merged == {**stored, "requires": {"memory": "2Gi", "npuCores": 2}}


@pytest.mark.parametrize(
    ("words", "file", "said"),
    [
        (WORDS.replace("soc=any", "soc=rk3588"), FILE, "with soc any, pushed is rk3588"),
        (f"{WORDS},context=8192", FILE, "with context 4096, pushed is 8192"),
        (WORDS, OTHER, f"with file m.gguf {FILE.digest}, pushed is m.gguf {OTHER.digest}"),
    ],
)
def test_what_may_not_change_is_refused_with_both_values(words: str, file: ArtifactFile, said: str) -> None:
    with pytest.raises(Conflict, match=said):
        merge_variants("m", [made(WORDS)], [(parse_variant(words), made(words, file))])


def test_a_context_that_is_not_written_is_the_stored_one() -> None:
    stored = made(f"{WORDS},context=8192")
    assert merge_variants("m", [stored], [(parse_variant(WORDS), made(WORDS))]) == [stored]


def test_further_files_of_a_variant_are_named_by_their_role() -> None:
    """Several adapters, each with its weight; a comma in a name is part of it."""
    words = parse_variant(f"{WORDS},adapter=a,b.rkllm@50,adapter=c@d.rkllm,encoder=eyes.rknn,template=t.jinja,config=c.json,memory=1Gi")
    assert [(one.role, one.path, one.scale_percent) for one in words.files] == [
        ("adapter", "a,b.rkllm", 50), ("adapter", "c@d.rkllm", 100), ("encoder", "eyes.rknn", 100), ("template", "t.jinja", 100),
        ("config", "c.json", 100),
    ]  # fmt: skip
    assert words.fields["requires"] == {"memory": "1Gi"}


@pytest.mark.parametrize(
    ("text", "said"), [(f"{WORDS},encoder=a,encoder=b", "encoder is there twice"), (f"{WORDS},adapter=", "adapter names no file")]
)
def test_a_mistake_about_a_further_file_is_named(text: str, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        parse_variant(text)


def test_files_of_one_variant_have_different_names_and_those_in_memory_count() -> None:
    """A board finds an adapter by its name; adapters and encoders are loaded beside the weights."""
    adapter = msgspec.structs.replace(OTHER, path="a.rkllm", role="adapter")
    doc = msgspec.structs.replace(OTHER, path="README.md", role="doc")
    words = parse_variant(WORDS)
    assert variant_of(words, (FILE, adapter, doc), MANIFEST)["requires"]["memory"] == "572Mi"
    with pytest.raises(Invalid, match=r"variant 'a' has two files named 'm\.gguf'"):
        variant_of(words, (FILE, OTHER), MANIFEST)


def test_another_weight_of_an_adapter_is_another_variant() -> None:
    half = msgspec.structs.replace(OTHER, path="a.rkllm", role="adapter", scale_percent=50)
    words = parse_variant(WORDS)
    stored = variant_of(words, (FILE, half), MANIFEST)
    whole = variant_of(words, (FILE, msgspec.structs.replace(half, scale_percent=100)), MANIFEST)
    assert merge_variants("m", [stored], [(words, stored)]) == [stored]
    with pytest.raises(Conflict, match=r"a\.rkllm .* as adapter at 50%, pushed is .* at 100%"):
        merge_variants("m", [stored], [(words, whole)])


def test_every_push_in_a_page_is_one_that_a_shell_and_the_command_take() -> None:
    """`>=1.1.0` without quotes would write a file; a word that no longer exists would be refused."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "manifests").rglob("*.md")]
    commands = [
        (page, command.strip())
        for page in pages
        for command in re.findall(r"^ *(?:\S*/)?rkfleet model push [^`]*?(?=\n|\Z)", page.read_text().replace("\\\n", " "), re.MULTILINE)
        if "--variant" in command
    ]
    assert len(commands) >= 6
    for page, command in commands:
        lexer = shlex.shlex(command, posix=True, punctuation_chars="<>;&|")
        lexer.whitespace_split = True
        words = list(lexer)
        assert not set(words) & {"<", ">", "<<", ">>", ";", "&", "|"}, f"{page.name}: {command}"
        variants = [words[place + 1] for place, word in enumerate(words) if word == "--variant"]
        assert len([word for word in words if word.endswith((".gguf", ".rkllm"))]) == len(variants), f"{page.name}: {command}"
        for variant in variants:
            variant_of(parse_variant(variant), (FILE,), MANIFEST)
