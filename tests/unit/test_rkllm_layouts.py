"""The structs of every generation are those of the vendor's headers: measured facts, a C compiler and ctypes agree."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent.workers.rkllm import identify
from agent.workers.rkllm.layouts import (
    LAYOUTS,
    CrossAttention,
    EmbedInput,
    HiddenStates,
    Logits,
    LoraAdapter,
    LoraParam,
    PerfStat,
    PromptCacheParam,
    TokenInput,
)
from simulation.runtime.build import include_dir

FACTS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parents[1] / "data" / "rkllm-abi-layouts.json").read_text())
GENERATION = {"G1": "G1", "G2a": "G2", "G2b": "G2", "G3": "G3", "G4": "G4"}

# The longer struct of 1.2.1b1 is passed to 1.2.0 as well: it differs at its end only.
LONGER = {("G2a", "RKLLMMultiModelInput"), ("G2a", "RKLLMInput anonymous union"), ("G2a", "RKLLMInput")}

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None, reason="gcc is not installed, which builds the simulated runtime; try: apt-get install gcc libc6-dev"
)


def python_struct(measured: str, name: str) -> Any:
    """Return the ctypes type that stands for a struct of the facts."""
    layout = LAYOUTS[GENERATION[measured]]  # type: ignore[index]
    images = {name: kind for name, kind, *_ in layout.multimodal._fields_}
    return {
        "RKLLMExtendParam": layout.extend,
        "RKLLMParam": layout.parameters,
        "RKLLMLoraAdapter": LoraAdapter,
        "RKLLMEmbedInput": EmbedInput,
        "RKLLMTokenInput": TokenInput,
        "RKLLMMultiModelInput": layout.multimodal,
        "RKLLMMultiModalInput": layout.multimodal,
        "RKLLMMultiModalInput.image (unnamed struct)": images.get("image"),
        "RKLLMMultiModalInput.video (unnamed struct)": images.get("video"),
        "RKLLMInput anonymous union": layout.payload,
        "RKLLMInput": layout.input,
        "RKLLMLoraParam": LoraParam,
        "RKLLMPromptCacheParam": PromptCacheParam,
        "RKLLMCrossAttnParam": CrossAttention,
        "RKLLMSamplingParam": layout.sampling,
        "RKLLMInferParam": layout.infer,
        "RKLLMResultLastHiddenLayer": HiddenStates,
        "RKLLMResultLogits": Logits,
        "RKLLMPerfStat": PerfStat,
        "RKLLMResult": layout.result,
        "RKLLMCallback": layout.callbacks,
    }[name]


@pytest.mark.parametrize("measured", FACTS)
def test_ctypes_has_every_measured_size_and_offset(measured: str) -> None:
    """Each field of the facts has its place and size, and no struct has another field."""
    for name, facts in FACTS[measured].items():
        struct = python_struct(measured, name)
        fields = [field[0] for field in struct._fields_]
        wanted = ["payload" if field["name"] == "(anonymous union)" else field["name"] for field in facts["fields"]]
        longer = (measured, name) in LONGER
        assert wanted == fields[: len(wanted)] if longer else wanted == fields, name
        if not longer:
            assert (facts["size"], facts["align"]) == (ctypes.sizeof(struct), ctypes.alignment(struct)), name
        for own, field in zip(wanted, facts["fields"], strict=True):
            place = getattr(struct, own)
            assert (field["offset"], field["size"]) == (place.offset, place.size) or (longer and own in {"payload", "multimodal_input"}), (
                f"{name}.{own}"
            )


@pytest.mark.parametrize("measured", FACTS)
def test_a_c_compiler_makes_the_same_of_our_headers(measured: str, tmp_path: Path) -> None:
    """gcc prints for each struct of the headers, which the simulated runtime is built from, what was measured."""
    wanted: dict[str, int] = {}
    for name, facts in FACTS[measured].items():
        of = {
            "RKLLMInput anonymous union": "RKLLMInput",
            "RKLLMMultiModalInput.image (unnamed struct)": "RKLLMMultiModalInput",
            "RKLLMMultiModalInput.video (unnamed struct)": "RKLLMMultiModalInput",
        }.get(name, name)
        inner = "image." if ".image" in name else "video." if ".video" in name else ""
        if of == name:
            wanted[f"sizeof({name})"] = facts["size"]
        elif inner:
            wanted[f"sizeof((({of} *)0)->{inner[:-1]})"] = facts["size"]
        within = wanted_offset(measured, name)
        for field in facts["fields"]:
            if field["name"] != "(anonymous union)":
                wanted[f"offsetof({of}, {inner}{field['name']})"] = within + field["offset"]
                wanted[f"sizeof((({of} *)0)->{inner}{field['name']})"] = field["size"]
    source = tmp_path / "facts.c"
    lines = "".join(f'    printf("%s %zu\\n", "{what}", (size_t)({what}));\n' for what in wanted)
    header = f'#include "rkllm_{GENERATION[measured].lower()}.h"\n'
    source.write_text(f"{header}#include <stdio.h>\nint main(void)\n{{\n{lines}    return 0;\n}}\n")
    one_image = ["-DRKLLM_G2A"] if measured == "G2a" else []
    subprocess.run(["gcc", "-w", *one_image, f"-I{include_dir()}", "-o", tmp_path / "facts", source], check=True)
    printed = subprocess.run([tmp_path / "facts"], check=True, capture_output=True, text=True).stdout.splitlines()
    assert wanted == {what: int(value) for what, _, value in (line.rpartition(" ") for line in printed)}


def wanted_offset(measured: str, name: str) -> int:
    """Return where a nested struct of the facts begins in the struct that holds it."""
    holder, part = {
        "RKLLMInput anonymous union": ("RKLLMInput", "(anonymous union)"),
        "RKLLMMultiModalInput.image (unnamed struct)": ("RKLLMMultiModalInput", "image"),
        "RKLLMMultiModalInput.video (unnamed struct)": ("RKLLMMultiModalInput", "video"),
    }.get(name, ("", ""))
    if not holder:
        return 0
    return next(int(field["offset"]) for field in FACTS[measured][holder]["fields"] if field["name"] == part)


def test_the_probe_looks_where_the_layouts_have_the_defaults() -> None:
    """The offsets that `identify` writes out, so that the agent imports no ctypes, are those of the layouts."""
    places = identify._PLACES[8]
    for generation, layout in LAYOUTS.items():
        assert places.top_p[generation] == layout.parameters.top_p.offset
        assert places.extend[generation] == layout.parameters.extend_param.offset


def test_the_probe_knows_the_offsets_of_32_bit_libraries() -> None:
    """A compiler for 4-byte pointers puts the fields where `identify` looks for an armhf library."""
    places = identify._PLACES[4]
    for generation in LAYOUTS:
        claims = {"top_p": places.top_p[generation], "extend_param": places.extend[generation]}
        source = f'#include "rkllm_{generation.lower()}.h"\n' + "".join(
            f'_Static_assert(offsetof(RKLLMParam, {name}) == {at}, "");\n' for name, at in claims.items()
        )
        command = ["gcc", "-m32", "-ffreestanding", "-fsyntax-only", f"-I{include_dir()}", "-x", "c", "-"]
        if "86" not in subprocess.run(["gcc", "-dumpmachine"], check=True, capture_output=True, text=True).stdout:
            pytest.skip("this gcc has no -m32")
        subprocess.run(command, input=source, text=True, check=True)
