"""An image on its whole way: from a request over HTTP through the encoder's process into the language model of an NPU board."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import msgspec

from rkfleet.assignment import AssignedReplica, ServingParameters
from tests.integration.test_image_encoder import STAND_IN
from tests.support.assignments import replica
from tests.support.loops import LoopWorld
from tests.support.npu_board import npu_board
from tests.support.runtimes import keys
from tests.support.sessions import until
from tests.unit.test_images import data_url, picture, png_of

ROOT = Path(__file__).parents[2]
WIDTH = 64


async def vision(w: LoopWorld, encoder: dict[str, object], config: dict[str, object]) -> AssignedReplica:
    """Return a replica of a model with an encoder of the stand-in."""
    bodies = {
        "m.rkllm": ("weight", "RKLLMFAKE\n" + keys(ttft_ms=1, tokens_per_s=2000, memory_mb=100, width=WIDTH)),
        "eyes.rknn": ("encoder", msgspec.json.encode(encoder).decode()),
        "config.json": ("config", msgspec.json.encode(config).decode()),
    }
    files = [msgspec.structs.replace(await w.push_body(text.encode()), path=path, role=role) for path, (role, text) in bodies.items()]
    return replica(
        "eyes", served_model_name="eyes", runtime="rkllm", dtype="w8a8", soc="rk3588", files=tuple(files), memory_bytes=200 << 20,
        serving=ServingParameters(context_tokens=512),
    )  # fmt: skip


@contextlib.asynccontextmanager
async def board(root: Path) -> AsyncIterator[tuple[LoopWorld, httpx2.AsyncClient]]:
    """Run a board with one version of the simulated runtime, and the stand-in for the encoder's library."""
    async with npu_board(root, "1.3.0", environ={"PYTHONPATH": f"{STAND_IN}:{ROOT}", "FAKE_RKNN_LOG": str(root / "log")}) as made:
        yield made


async def ask(client: httpx2.AsyncClient, *urls: str) -> httpx2.Response:
    parts = [{"type": "text", "text": "What is it?"}, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]
    body = {"model": "eyes", "messages": [{"role": "user", "content": parts}], "max_tokens": 8}
    return await client.post("/v1/chat/completions", json=body)


def test_an_image_becomes_part_of_the_prompt_and_a_bad_one_is_a_400(tmp_path: Path) -> None:
    """The second image is as good as the first, each takes its tokens of the context, and a bad one harms nobody."""

    async def body() -> None:
        async with board(tmp_path) as (w, client):
            await w.assign(1, await vision(w, {"tokens": 4, "size": WIDTH}, {"vision": {"imageSize": [56, 28]}}))
            await until(lambda: w.of_replica("Ready", "eyes") == ("True", "Serving"))
            answers = [await ask(client, data_url(picture(colour=colour))) for colour in ("red", "blue", "red")]
            assert [answer.status_code for answer in answers] == [200, 200, 200]
            two = await ask(client, data_url(picture(colour="red")), data_url(picture("JPEG", colour="blue"), "image/jpeg"))
            assert two.status_code == 200, two.text
            assert two.json()["usage"]["prompt_tokens"] >= answers[0].json()["usage"]["prompt_tokens"] + 4
            for bad in ("https://example.com/cat.png", data_url(png_of(60_000, 60_000)), data_url(b"no image"), "data:image/png;base64,!"):
                assert (await ask(client, bad)).status_code == 400, bad
            assert (await ask(client, *[data_url(picture())] * 9)).status_code == 400
            assert (await ask(client, data_url(picture(colour="red")))).status_code == 200
            assert (tmp_path / "log").read_text().count("init_runtime") == 1

    asyncio.run(body())


def test_an_encoder_that_does_not_fit_its_config_is_a_load_that_failed(tmp_path: Path) -> None:
    """Nothing serves, and the message has both figures."""

    async def body() -> None:
        async with board(tmp_path) as (w, _):
            one = await vision(w, {"tokens": 4, "size": WIDTH}, {"vision": {"imageSize": [56, 28], "tokens": 196}})
            await w.assign(1, one)
            await until(lambda: (state := w.supervisor.states().get(one.uid)) is not None and state.last_exit is not None)
            last = w.supervisor.states()[one.uid].last_exit
            assert last is not None
            assert last.reason == "LoadFailed"
            assert "gives 4 tokens of 64 numbers; config.json says 196 of 64" in last.message

    asyncio.run(body())
