"""The image encoder: real image files, a real process, and a stand-in for the NPU."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agent.workers.pipe import NpuLoad
from agent.workers.rkllm.vision import ImageEmbedding
from agent.workers.rknn.encoder import ChildEncoder, Limits
from rkfleet.clock import SystemClock
from rkfleet.errors import BadRequest, FailedPrecondition, FleetError, Internal, Unavailable
from tests.support.agents import is_alive
from tests.support.serving import until
from tests.unit.test_images import picture, png_of

STAND_IN = Path(__file__).parents[1] / "support/rknn"
ROOT = Path(__file__).parents[2]
MODEL = {"tokens": 4, "size": 8}
VISION = {"imageSize": [56, 28]}


def environ(log: Path | None = None, *, path: str = f"{STAND_IN}:{ROOT}") -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": path, "FAKE_RKNN_LOG": str(log or "")}


def npu(directory: Path, model: dict[str, object] | str = MODEL, vision: object = VISION) -> NpuLoad:
    """Return what the agent says of an artifact with this encoder."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vision.rknn").write_text(model if isinstance(model, str) else json.dumps(model))
    (directory / "config.json").write_text(json.dumps({"hidden_size": 8, "vision": vision}))
    return NpuLoad(library="", generation="G3", encoder_path=str(directory / "vision.rknn"), config_path=str(directory / "config.json"))


@contextlib.contextmanager
def encoder_of(directory: Path, model: dict[str, object] | str = MODEL, vision: object = VISION, **more: Any) -> Iterator[ChildEncoder]:
    """Have an encoder that is not started yet, and none afterwards."""
    more.setdefault("environ", environ(directory / "log"))
    made = ChildEncoder(npu(directory, model, vision), SystemClock(), **more)
    try:
        yield made
    finally:
        made.close()


def numbers(embedding: ImageEmbedding) -> np.ndarray:
    return np.frombuffer(embedding.floats, dtype="<f4").reshape(embedding.tokens, -1)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChildEncoder]:
    """One that is well; its outputs are views that the next run overwrites, as the library's may be."""
    with encoder_of(tmp_path_factory.mktemp("encoder"), {**MODEL, "reuse": True}) as made:
        made.start()
        yield made


def test_the_same_image_is_the_same_embedding_and_another_is_another(encoder: ChildEncoder) -> None:
    """Also the second and the third image, and the first one again: each embedding comes from its own request."""
    red, blue = encoder.encode(picture(colour="red")), encoder.encode(picture(colour="blue"))
    green = encoder.encode(picture("JPEG", colour="green"))
    again = encoder.encode(picture(colour="red"))
    assert (red.tokens, red.width, red.height, len(red.floats)) == (4, 56, 28, 4 * 4 * 8)
    assert encoder.embedding_size == 8
    assert red == again
    assert len({red.floats, blue.floats, green.floats}) == 3


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_the_way_an_image_is_packed_does_not_matter(encoder: ChildEncoder, format: str) -> None:
    """The same pixels are the same embedding."""
    packed = picture(format, colour="red", **({"lossless": True} if format == "WEBP" else {}))
    assert encoder.encode(packed) == encoder.encode(picture("PNG", colour="red", compress_level=1))


def test_transparency_lies_on_white_and_sixteen_bits_are_read(encoder: ChildEncoder) -> None:
    """What a viewer shows is what the model sees."""
    clear = Image.new("RGBA", (40, 30), (255, 0, 0, 0))
    deep = Image.fromarray(np.full((30, 40), 65535, dtype=np.uint16))
    white = encoder.encode(picture(colour="white"))
    for image in (clear, deep, clear.convert("P"), Image.new("L", (40, 30), 255), Image.new("1", (40, 30), 1)):
        file = io.BytesIO()
        image.save(file, "PNG")
        assert encoder.encode(file.getvalue()) == white, image.mode


def test_a_photo_is_turned_as_its_camera_says(encoder: ChildEncoder) -> None:
    """Phones write portraits lying on their side."""
    left_red = Image.new("RGB", (40, 40), "blue")
    left_red.paste("red", (0, 0, 20, 40))
    turned = left_red.transpose(Image.Transpose.ROTATE_90)
    marks = Image.Exif()
    marks[0x0112] = 6  # "turn it a quarter to the right to see it upright"
    one, other = io.BytesIO(), io.BytesIO()
    left_red.save(one, "PNG")
    turned.save(other, "PNG", exif=marks)
    assert encoder.encode(one.getvalue()) == encoder.encode(other.getvalue())


@pytest.mark.parametrize(
    "file",
    [b"", b"no image", picture()[:60], picture("JPEG", (200, 200))[:700], b"GIF89a" + bytes(40), png_of(6_000, 6_000), png_of(90, 90)],
    ids=["empty", "text", "cut PNG", "cut JPEG", "GIF", "bomb", "pixels missing"],
)
def test_a_bad_image_is_the_clients_fault_and_the_next_one_is_encoded(encoder: ChildEncoder, file: bytes) -> None:
    """Nothing of a bad image stays."""
    pid = encoder.pid
    with pytest.raises(BadRequest) as refused:
        encoder.encode(file)
    assert refused.value.http_status == 400
    assert encoder.encode(picture()).tokens == 4
    assert encoder.pid == pid


def test_the_encoder_is_on_the_npu_before_the_language_model(tmp_path: Path) -> None:
    """It must be the first in its IOMMU domain, so it is there when `start` returns; and it gives its memory back."""
    log = tmp_path / "log"
    with encoder_of(tmp_path, vision={**VISION, "cores": 2}) as made:
        made.start()
        with log.open("a") as file:
            file.write("language model rkllm_init\n")
        made.close()
        assert log.read_text().splitlines() == [
            "encoder load_rknn vision.rknn",
            "encoder init_runtime 3",
            "encoder inference uint8 1x28x56x3 nhwc",
            "language model rkllm_init",
            "encoder release",
        ]


def test_numbers_layout_and_layers_are_as_the_artifact_says(tmp_path: Path) -> None:
    """Layers of an embedding stand side by side for each token."""
    half = [0.5, 0.5, 0.5]
    vision = {"imageSize": [28, 28], "mean": half, "std": half, "layout": "nchw", "fit": "Stretch", "tokens": 4, "embeddingSize": 8}
    with encoder_of(tmp_path, {**MODEL, "outputs": 3}, vision) as made:
        made.start()
        embedding = made.encode(picture(colour="white"))
        assert "encoder inference float32 1x3x28x28 ['nchw']" in (tmp_path / "log").read_text()
        assert "encoder init_runtime 65535" in (tmp_path / "log").read_text()
        assert (embedding.tokens, numbers(embedding).shape) == (4, (4, 24))
        layers = numbers(embedding).reshape(4, 3, 8)
        seeds = np.arange(1, 33).reshape(4, 8)
        for layer in range(3):
            rest = layers[:, layer] - np.sin(seeds * (1 + layer))
            assert np.ptp(rest) < 0.01, "one value of the pixels in all"


@pytest.mark.parametrize(
    ("model", "vision", "words"),
    [
        ("no json", VISION, "load_rknn returned -1"),
        ({**MODEL, "init": -1}, VISION, "init_runtime returned -1"),
        ({**MODEL, "none_at": 1}, VISION, "does not encode a grey image: the library returned nothing"),
        (MODEL, {**VISION, "tokens": 196, "embeddingSize": 1536}, "gives 4 tokens of 8 numbers; config.json says 196 of 1536"),
    ],
)
def test_an_encoder_that_cannot_be_loaded_says_why(tmp_path: Path, model: dict[str, object], vision: object, words: str) -> None:
    """Before the language model is loaded, not at the first image."""
    with encoder_of(tmp_path, model, vision) as made:
        with pytest.raises(FailedPrecondition, match=words):
            made.start()
        assert made.pid == 0


@pytest.mark.parametrize(
    ("vision", "words"),
    [
        (None, "imageSize"),
        ({}, "imageSize"),
        ({"imageSize": [0, 28]}, "imageSize"),
        ({**VISION, "mean": [0.5, 0.5, 0.5]}, "given together"),
        ({**VISION, "layout": "chw"}, "layout"),
        ({**VISION, "cores": 9}, "cores"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_with_the_field(tmp_path: Path, vision: object, words: str) -> None:
    """No process is started for it."""
    with pytest.raises(FailedPrecondition, match=words):
        ChildEncoder(npu(tmp_path, vision=vision), SystemClock())
    with pytest.raises(FailedPrecondition, match="role config"):
        ChildEncoder(NpuLoad(library="", generation="G3", encoder_path="x"), SystemClock())


def test_a_board_without_the_extra_is_told_what_to_install(tmp_path: Path) -> None:
    """The library comes with an extra."""
    missing = pytest.raises(FailedPrecondition, match=r"rknnlite is missing; try, in a checkout: pip install '\.\[vision\]'")
    with encoder_of(tmp_path, environ=environ(path=str(ROOT))) as made, missing:
        made.start()


def test_a_crash_fails_one_image_and_the_encoder_is_started_again(tmp_path: Path) -> None:
    """Who sent it is told to come again; the next image is encoded."""
    with encoder_of(tmp_path, {**MODEL, "crash_at": 3}) as made:
        made.start()
        first = made.encode(picture())
        pid = made.pid
        with pytest.raises(Unavailable, match="SIGSEGV; it is started again"):
            made.encode(picture())
        assert made.pid not in (0, pid)
        assert made.encode(picture()) == first


def test_a_hang_ends_at_the_time_limit_and_the_encoder_is_started_again(tmp_path: Path) -> None:
    """A frozen NPU costs a bounded time."""
    with encoder_of(tmp_path, {**MODEL, "hang_at": 2}, limits=Limits(encode_seconds=2.0)) as made:
        made.start()
        pid = made.pid
        began = SystemClock().monotonic()
        with pytest.raises(Unavailable, match="did not answer in time"):
            made.encode(picture())
        assert SystemClock().monotonic() - began < 5.0
        assert not Path(f"/proc/{pid}").exists()


def test_an_encoder_that_crashes_again_and_again_rests(tmp_path: Path) -> None:
    """An image that kills it does not do so in a loop."""
    with encoder_of(tmp_path, {**MODEL, "crash_above": 200}) as made:
        made.start()
        refused: list[FleetError] = []
        for _ in range(4):
            with pytest.raises(Unavailable) as error:
                made.encode(picture(colour="white"))
            refused.append(error.value)
        assert ["rests" in one.message for one in refused] == [False, False, True, True]
        assert made.pid == 0
        assert 50 <= refused[-1].retry_after_seconds <= 60  # type: ignore[attr-defined]


@pytest.mark.parametrize(("fault", "words"), [("none_at", "returned nothing"), ("zero_at", "all zero")])
def test_no_embedding_is_never_made_up(tmp_path: Path, fault: str, words: str) -> None:
    """An answer is made from this image or not at all."""
    with encoder_of(tmp_path, {**MODEL, fault: 2}) as made:
        made.start()
        with pytest.raises(Internal, match=words):
            made.encode(picture())
        assert made.encode(picture()).tokens == 4


PARENT = """
import sys
from pathlib import Path
from agent.workers.rknn.encoder import ChildEncoder
from agent.workers.pipe import NpuLoad
from rkfleet.clock import SystemClock
made = ChildEncoder(NpuLoad(library="", generation="G3", encoder_path=sys.argv[1], config_path=sys.argv[2]), SystemClock())
made.start()
print(made.pid, flush=True)
made.encode(Path(sys.argv[3]).read_bytes())
"""


def test_the_encoder_ends_with_its_worker_also_in_the_middle_of_a_run(tmp_path: Path) -> None:
    """A worker that is killed leaves nothing on the NPU."""
    load = npu(tmp_path, {**MODEL, "hang_at": 2})
    (tmp_path / "image.png").write_bytes(picture())
    log = tmp_path / "log"
    worker = subprocess.Popen(
        [sys.executable, "-c", PARENT, load.encoder_path, load.config_path, str(tmp_path / "image.png")],
        stdout=subprocess.PIPE,
        env=environ(log),
    )
    assert worker.stdout is not None
    pid = int(worker.stdout.readline())
    asyncio.run(until(lambda: log.read_text().count("inference") == 2))
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    worker.stdout.close()
    asyncio.run(until(lambda: not is_alive(pid)))
