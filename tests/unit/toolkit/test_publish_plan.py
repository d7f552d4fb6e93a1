"""What a file becomes as a variant: what was written goes before the recipe, the recipe before the file's head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from rkfleet.cli.push import Order
from rkfleet.errors import Invalid, NotFound
from rkfleet.quantity import parse_bytes
from toolkit.publishing.plan import Given, plan
from toolkit.recipe import Recipe

TINY = Path(__file__).parents[2] / "data/toolkit/families/llama.gguf"
RECIPE = Recipe(maker="rkllm-toolkit 1.2.3", sources=(), output="rkllm", dtype="w8a8", soc="rk3588", npu_cores=3, max_context=2048)


@pytest.fixture
def converted(tmp_path: Path) -> Given:
    """A file of the vendor's toolkit with its recipe."""
    (tmp_path / "chat.rkllm").write_bytes(b"weights")
    (tmp_path / "recipe.json").write_bytes(RECIPE.encode())
    return Given(name="chat", file=tmp_path / "chat.rkllm", recipe=tmp_path / "recipe.json")


def fields(order: Order) -> dict[str, Any]:
    (words,) = order.variants
    return words.fields


def test_the_recipe_of_a_conversion_tells_everything_about_the_variant(converted: Given) -> None:
    order = plan(converted)
    assert fields(order) == {
        "name": "rk3588-w8a8", "soc": "rk3588", "dtype": "w8a8", "runtime": "rkllm", "contextTokens": 2048,
        "requires": {"npuCores": 3, "runtimeVersion": ">=1.2.3"},
    }  # fmt: skip
    assert order.variants[0].recipe == RECIPE.digest
    assert [(one.role, Path(one.path).name) for one in order.variants[0].files] == [("config", "recipe.json")]


def test_what_was_written_goes_before_the_recipe(converted: Given) -> None:
    given = msgspec.structs.replace(converted, soc="rk3576", dtype="w4a16_g128", context=512, variant="mine", memory="3Gi")
    found = fields(plan(given))
    assert (found["name"], found["soc"], found["dtype"], found["contextTokens"]) == ("mine", "rk3576", "w4a16_g128", 512)
    assert found["requires"]["memory"] == "3Gi"


def test_a_model_of_the_vendors_table_gets_its_row_and_memory(converted: Given) -> None:
    found = fields(plan(msgspec.structs.replace(converted, reference="Qwen2-1.5B")))
    assert found["reference"] == {"model": "Qwen2-1.5B", "sdkVersion": "1.1.0"}
    own = 2530 * (1 << 20)
    assert own < parse_bytes(found["requires"]["memory"]) < 2 * own  # The row has a context of 320, the file one of 2048.
    longer = fields(plan(msgspec.structs.replace(converted, reference="Qwen2-1.5B", context=16384)))
    assert parse_bytes(longer["requires"]["memory"]) > parse_bytes(found["requires"]["memory"])
    assert fields(plan(msgspec.structs.replace(converted, reference="Qwen2-1.5B", context=320)))["requires"]["memory"] == "2530Mi"
    with pytest.raises(NotFound, match="GPT-5"):
        plan(msgspec.structs.replace(converted, reference="GPT-5"))


def test_a_gguf_file_tells_about_itself() -> None:
    order = plan(Given(name="tiny", file=TINY))
    assert fields(order) == {"name": "any-f32", "soc": "any", "dtype": "f32", "runtime": "llamacpp", "contextTokens": 256}
    assert (order.family, order.parameters) == ("llama", "18K")


def test_a_file_for_the_cpu_asks_for_no_release_of_the_npus_runtime(converted: Given) -> None:
    found = fields(plan(msgspec.structs.replace(converted, file=TINY)))
    assert (found["runtime"], found["dtype"]) == ("llamacpp", "f32")
    assert "runtimeVersion" not in found.get("requires", {})


def test_reports_licence_and_template_go_along_under_their_roles(converted: Given, tmp_path: Path) -> None:
    report = tmp_path / "report"
    report.mkdir()
    for path in (report / "report.md", report / "choice.svg", tmp_path / "LICENSE", tmp_path / "t.jinja", tmp_path / "law.rkllm"):
        path.write_text("x")
    given = msgspec.structs.replace(
        converted, reports=(report,), license_file=tmp_path / "LICENSE", template=tmp_path / "t.jinja", adapters=(tmp_path / "law.rkllm",)
    )
    files = [(one.role, Path(one.path).name) for one in plan(given).variants[0].files]
    assert files == [
        ("adapter", "law.rkllm"), ("template", "t.jinja"), ("config", "recipe.json"), ("doc", "choice.svg"), ("doc", "report.md"),
        ("doc", "LICENSE"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"name": "../x"}, Invalid, "name '../x' is none of an object"),
        ({"file": Path("model.bin")}, Invalid, "ends with none of .rkllm, .gguf, .rknn"),
        ({"file": Path("none.rkllm")}, NotFound, "'none.rkllm' does not exist"),
        ({"recipe": None}, Invalid, "soc of .* is not known: give --recipe of its conversion, or --soc"),
        ({"recipe": None, "soc": "rk3588"}, Invalid, "dtype of .* is not known"),
        ({"dtype": "w4a16"}, Invalid, "row RK3588 of table quantized_dtype"),
        ({"soc": "any"}, Invalid, "soc 'any' has no row"),
        ({"recipe": Path("none.json")}, NotFound, "recipe 'none.json' cannot be read"),
    ],
)
def test_what_cannot_be_published_is_refused_by_name(converted: Given, changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        plan(msgspec.structs.replace(converted, **changes))


def test_a_file_that_is_no_recipe_is_refused(converted: Given, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text('{"maker": 7}')
    with pytest.raises(Invalid, match=r"recipe .* is none: .*maker"):
        plan(converted)
