"""Conversion by the vendor's toolkits in a real interpreter of its own; the toolkits are stand-ins with the documented functions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from rkfleet.errors import FailedPrecondition, FleetError, Invalid, NotFound
from tests.support.tiny_llama import write_tiny_llama
from tests.support.vendor_python import faults, make_vendor_python, wait_until_gone
from toolkit.commands.app import app

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = [{"input": "<|im_start|>user\nHello<|im_end|>", "target": "Hi"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("vendor") / "model")


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    return make_vendor_python(
        tmp_path_factory.mktemp("vendor") / "venv", rkllm_toolkit="1.2.3", rknn_toolkit2="2.3.2", transformers="4.55.2"
    )


@pytest.fixture
def place(tmp_path) -> Path:
    directory = tmp_path / "out"
    directory.mkdir()
    return directory


@pytest.fixture
def calibration(tmp_path) -> Path:
    (tmp_path / "samples.json").write_text(json.dumps(SAMPLES))
    return tmp_path / "samples.json"


def run(*words: object, status: type[FleetError] | None = None, **stages: str) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words], env=dict(faults(**stages)))
    if status is None:
        assert result.exit_code == 0, (result.output, result.exception)
    else:
        assert type(result.exception) is status, (result.output, result.exception)
    return result


def convert(model: Path, place: Path, *words: object, status: type[FleetError] | None = None, soc: str = "rk3588", **stages: str) -> Result:
    dtype = () if "--dtype" in words else ("--dtype", "w8a8")
    return run("convert", model, "--soc", soc, *dtype, "-o", place / "m.rkllm", *words, status=status, **stages)


def calls_of(path: Path) -> dict[str, dict]:
    content = path.read_bytes()
    assert content.startswith(b"FAKE")
    return dict(json.loads(content[4:]))


def test_a_model_is_converted_with_its_papers(model, place, python, calibration) -> None:
    """The file, the recipe and the provenance are there and agree; nothing else is."""
    words = ("--calibration", calibration, "--npu-cores", "2", "--max-context", "4096", "--optimization-level", "1", "--hybrid-rate", "0.5")
    result = convert(model, place, *words, "--python", python)
    assert sorted(path.name for path in place.iterdir()) == ["m.provenance.json", "m.recipe.json", "m.rkllm"]
    calls = calls_of(place / "m.rkllm")
    assert calls["load_huggingface"] == {"model": str(model), "device": "cpu", "dtype": "float32"}
    assert calls["build"] == {
        "do_quantization": True,
        "optimization_level": 1,
        "quantized_dtype": "w8a8",
        "quantized_algorithm": "normal",
        "num_npu_core": 2,
        "extra_qparams": None,
        "dataset": str(calibration),
        "hybrid_rate": 0.5,
        "target_platform": "rk3588",
        "max_context": 4096,
    }
    assert calls["export_rkllm"] == {"export_path": "./m.rkllm"}
    recipe = json.loads((place / "m.recipe.json").read_bytes())
    assert recipe["maker"] == "rkllm-toolkit 1.2.3"
    assert (recipe["npuCores"], recipe["maxContext"], recipe["hybridRate"], recipe["loadDtype"]) == (2, 4096, 0.5, "float32")
    assert recipe["calibration"]["samples"] == 1
    assert {source["path"] for source in recipe["sources"]} == {path.name for path in model.iterdir()}
    papers = json.loads((place / "m.provenance.json").read_bytes())
    assert papers["versions"]["transformers"] == "4.55.2"
    assert papers["artifacts"] == [
        {"path": "m.rkllm", "sizeBytes": (place / "m.rkllm").stat().st_size, "firstBytes": (place / "m.rkllm").read_bytes()[:64].hex()}
    ]
    assert list(papers["stageSeconds"]) == ["import", "load", "build", "export"]
    assert papers["recipe"] in result.stdout
    # The vendor's bar comes through another pipe than the stages: it may be told before or after the next one.
    assert sorted(line for line in result.stderr.splitlines() if not line.startswith("note:")) == sorted(
        ("stage import", "stage load", "stage build", "Building model: 2/2", "stage export")
    )


def test_an_adapter_becomes_a_second_file(model, place, python, tmp_path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    convert(model, place, "--lora", tmp_path / "adapter", "--python", python)
    assert (place / "m_lora.rkllm").read_bytes() == b"LORA"
    assert calls_of(place / "m.rkllm")["load_huggingface"]["model_lora"] == str(tmp_path / "adapter")
    convert(model, place, "--lora", tmp_path / "adapter", "--python", python, status=FailedPrecondition)


def test_a_rank_makes_a_second_file(model, place, python) -> None:
    convert(model, place, "--algorithm", "normal_r8", "--python", python)
    assert sorted(path.name for path in place.glob("*.rkllm")) == ["m.rkllm", "m_lora.rkllm"]
    assert json.loads((place / "m.recipe.json").read_bytes())["lowRank"] == 8


@pytest.mark.parametrize(("release", "parameters"), [("1.2.0", set()), ("1.3.0", {"export_tokenizer", "export_embedding"})])
def test_a_release_is_told_only_what_it_knows(model, place, tmp_path, release, parameters) -> None:
    """The stand-in raises for every parameter that its release does not have."""
    python = make_vendor_python(tmp_path / "venv", rkllm_toolkit=release)
    convert(model, place, "--python", python)
    assert calls_of(place / "m.rkllm")["export_rkllm"].keys() == {"export_path"} | parameters


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ({"load": "-1"}, ["failed in stage load: load_huggingface returned -1"]),
        ({"build": "-1"}, ["failed in stage build: build returned -1", "| INFO: rkllm-toolkit version: 1.2.3"]),
        ({"export": "-1"}, ["failed in stage export: export_rkllm returned -1"]),
        ({"export": "nothing"}, ["said that all went well, but m.rkllm was to be made and it left nothing instead"]),
        ({"export": "empty"}, ["m.rkllm was to be made and it left it empty"]),
        ({"build": "signal:SIGKILL"}, ["killed by signal 9 in stage build", "memory ran out", "--load-dtype float16"]),
        ({"build": "signal:SIGSEGV"}, ["crashed in stage build by signal 11 (SIGSEGV)"]),
        ({"load": "exit:7"}, ["ended in stage load with status 7 before it was done"]),
        ({"build": "raise:RuntimeError:No CUDA GPUs are available"}, ["with RuntimeError", "--algorithm normal --device cpu needs none"]),
        (
            {"import": "raise:ModuleNotFoundError:No module named 'auto_gptq'"},
            ["in stage import", "a package of that interpreter is missing"],
        ),
        ({"load": "raise:KeyError:qwen3"}, ["transformers of that interpreter is of another time"]),
    ],
    ids=str,
)
def test_a_failure_is_a_sentence_and_leaves_only_the_recipe(model, place, python, stages, words) -> None:
    result = convert(model, place, "--python", python, status=FailedPrecondition, **stages)
    for word in words:
        assert word in result.exception.message
    assert [path.name for path in place.iterdir()] == ["m.recipe.json"]


def test_silence_has_a_limit_and_takes_the_grandchildren_along(model, place, python, tmp_path) -> None:
    pids = tmp_path / "pids"
    words = ("--python", python, "--silence-seconds", "1")
    result = convert(model, place, *words, status=FailedPrecondition, build=f"hang:{pids}")
    assert "was stopped in stage build: it wrote nothing for 1 s (limit --silence-seconds)" in result.exception.message
    for pid in pids.read_text().split():
        wait_until_gone(int(pid))


def test_time_has_a_limit_where_one_is_given(model, place, python) -> None:
    result = convert(model, place, "--python", python, "--time-limit-seconds", "0.5", status=FailedPrecondition, load="hang")
    assert "it took longer than 0.5 s (limit --time-limit-seconds)" in result.exception.message


def start(model: Path, place: Path, python: Path, pids: Path) -> subprocess.Popen[str]:
    """Start a conversion that hangs, and return when it does."""
    words = ["convert", model, "--soc", "rk3588", "--dtype", "w8a8", "-o", place / "m.rkllm", "--python", python, "-v"]
    environment = {**os.environ, **faults(load=f"say:loaded {pids}", build=f"hang:{pids}"), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "toolkit", *map(str, words)], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("stage build"):
            break
    return process


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda one: one.name)
def test_nothing_outlives_a_conversion_that_is_stopped(model, place, python, tmp_path, number) -> None:
    """Ctrl-C and SIGTERM leave the recipe alone; after SIGKILL the driver ends itself and what it started."""
    pids = tmp_path / "pids"
    os.mkfifo(tmp_path / "pids.part")  # Opening it to read waits for the stand-in.
    with start(model, place, python, pids) as process:
        assert process.stderr is not None
        running = [int(pid) for pid in (tmp_path / "pids.part").read_text().split()]
        process.send_signal(number)
        process.stderr.read()
        status = process.wait(20)
    for pid in running:
        wait_until_gone(pid)
    assert len(running) == 2
    if number == signal.SIGKILL:
        assert status == -number
    else:
        assert status == 130
        assert [path.name for path in place.iterdir()] == ["m.recipe.json"]


def test_what_a_child_leaves_behind_is_killed(model, place, python, tmp_path) -> None:
    """A conversion that went well does not wait for a grandchild that holds its pipes, nor leave it running."""
    convert(model, place, "--python", python, build=f"leave:{tmp_path / 'pid'}")
    wait_until_gone(int((tmp_path / "pid").read_text()))


def test_without_an_interpreter_it_says_what_to_install(model, place) -> None:
    result = convert(model, place, "--release", "1.2.3", status=FailedPrecondition)
    for word in ("rkllm_toolkit-1.2.3-cp312-cp312-linux_x86_64.whl", "tag release-v1.2.3", "rkllm-toolkit/packages", "on no registry"):
        assert word in result.exception.message
    assert json.loads((place / "m.recipe.json").read_bytes())["maker"] == "rkllm-toolkit 1.2.3"


def test_an_interpreter_without_the_toolkit_is_told_its_wheel(model, place, tmp_path) -> None:
    python = make_vendor_python(tmp_path / "venv")
    result = convert(model, place, "--python", python, status=FailedPrecondition)
    version = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"{python} has no rkllm-toolkit" in result.exception.message
    assert f"rkllm_toolkit-1.3.0-{version}-{version}-linux_x86_64.whl" in result.exception.message


def test_the_wrong_interpreter_is_refused_before_anything_starts(model, place, python, tmp_path) -> None:
    old = make_vendor_python(tmp_path / "venv", rkllm_toolkit="1.1.4")
    result = convert(model, place, "--python", old, status=Invalid)
    assert "row 1.1.1 to 1.1.4 of table python" in result.exception.message
    result = convert(model, place, "--python", python, "--release", "1.3.0", status=FailedPrecondition)
    assert "has rkllm-toolkit 1.2.3" in result.exception.message
    convert(model, place, "--python", tmp_path / "nowhere", status=NotFound)
    result = convert(model, place, "--python", "/bin/cat", status=FailedPrecondition)
    assert "is no Python of 3.8 or later" in result.exception.message
    result = convert(model, place, "--python", tmp_path, status=FailedPrecondition)
    assert "cannot be started" in result.exception.message
    result = convert(model, place, "--python", python, "--device", "cuda", status=FailedPrecondition)
    assert "sees no GPU" in result.exception.message
    assert list(place.iterdir()) == []


def test_a_dry_run_prints_the_calls_and_writes_nothing(model, place, python) -> None:
    for words in ((), ("--python", python)):
        out = convert(model, place, "--dry-run", *words).stdout
        assert "load_huggingface(model=" in out
        assert "quantized_dtype='w8a8', quantized_algorithm='normal', num_npu_core=3" in out
        assert "nothing was started" in out
    assert list(place.iterdir()) == []


@pytest.fixture
def onnx(tmp_path) -> Path:
    (tmp_path / "v.onnx").write_bytes(b"any bytes: the stand-in does not read them")
    return tmp_path / "v.onnx"


def test_an_onnx_file_is_converted_and_simulated(onnx, place, python, tmp_path) -> None:
    image = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    np.save(tmp_path / "image.npy", image)
    (tmp_path / "list.txt").write_text("image.npy\n\n")
    words = ("--dtype", "i8", "--calibration-list", tmp_path / "list.txt", "--simulate", tmp_path / "image.npy", "--python", python)
    result = run("convert-onnx", onnx, "--soc", "rk3588", "-o", place / "v.rknn", *words)
    assert sorted(path.name for path in place.iterdir()) == ["v.provenance.json", "v.recipe.json", "v.rknn", "v.simulated.npz"]
    assert json.loads((place / "v.rknn").read_bytes()[4:])[2] == ["build", [True, str(tmp_path / "list.txt")]]
    with np.load(place / "v.simulated.npz") as outputs:
        np.testing.assert_array_equal(outputs["arr_0"], 2 * image)
    assert "simulated on this PC, not by an NPU: arr_0 float32[1, 3, 2, 2]" in result.stdout
    recipe = json.loads((place / "v.recipe.json").read_bytes())
    assert (recipe["maker"], recipe["output"], recipe["dtype"]) == ("rknn-toolkit2 2.3.2", "rknn", "i8")
    assert [source["path"] for source in recipe["sources"]] == ["v.onnx", "image.npy"]


@pytest.mark.parametrize(
    ("stages", "word"),
    [
        ({"build": "-1"}, "failed in stage build: build returned -1"),
        ({"export": "damage"}, "which begins with b'DAMAGED"),
        ({"simulate": "nothing"}, "the simulator returned nothing"),
    ],
    ids=str,
)
def test_a_failure_of_rknn_is_a_sentence(onnx, place, python, tmp_path, stages, word) -> None:  # noqa: PLR0917 (fixtures)
    np.save(tmp_path / "one.npy", np.ones(3, np.float32))
    words = ("--python", python, "--simulate", tmp_path / "one.npy")
    result = run("convert-onnx", onnx, "--soc", "rk3588", "-o", place / "v.rknn", *words, status=FailedPrecondition, **stages)
    assert word in result.exception.message
    assert [path.name for path in place.iterdir()] == ["v.recipe.json"]


@pytest.mark.skipif("RKFLEET_RKNN_PYTHON" not in os.environ, reason="RKFLEET_RKNN_PYTHON names no interpreter with rknn-toolkit2")
@pytest.mark.parametrize("dtype", ["fp16", "i8"])
def test_the_real_toolkit_converts_and_simulates(place, tmp_path, dtype) -> None:
    """rknn-toolkit2 itself: a file of its form, and the simulator near to the convolution that numpy computes."""
    python = Path(os.environ["RKFLEET_RKNN_PYTHON"])
    weights, image = write_convolution(tmp_path / "c.onnx", tmp_path / "image.npy", python)
    (tmp_path / "list.txt").write_text("image.npy\n")
    more = ("--calibration-list", tmp_path / "list.txt") if dtype == "i8" else ()
    words = ("--dtype", dtype, *more, "--simulate", tmp_path / "image.npy", "--python", python)
    run("convert-onnx", tmp_path / "c.onnx", "--soc", "rk3588", "-o", place / "c.rknn", *words)
    assert (place / "c.rknn").read_bytes().startswith(b"RKNN")
    wanted = np.maximum(np.einsum("oi,nihw->nohw", weights[:, :, 0, 0], image), 0)
    with np.load(place / "c.simulated.npz") as outputs:
        error = np.abs(outputs["arr_0"] - wanted).max() / np.abs(wanted).max()
    assert error < (0.002 if dtype == "fp16" else 0.05)


def write_convolution(path: Path, image: Path, python: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write a 1x1 convolution with ReLU through the onnx package of that interpreter, and an input."""
    random = np.random.default_rng(0)
    weights, values = random.normal(size=(4, 3, 1, 1)).astype(np.float32), random.normal(size=(1, 3, 8, 8)).astype(np.float32)
    np.save(image, values)
    np.save(path.with_suffix(".npy"), weights)
    script = """
import sys, numpy, onnx
from onnx import TensorProto, helper, numpy_helper
graph = helper.make_graph(
    [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])], "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 8, 8])],
    [numpy_helper.from_array(numpy.load(sys.argv[2]), "w")])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), sys.argv[1])
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([python, "-c", script, path, path.with_suffix(".npy")], check=True, env=environment, timeout=60)
    return weights, values
