"""A board without a fleet: model files in, OpenAI's API out; alone, killed, started again, and with files that change under it."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import openai
import pytest

from rkfleet.sample import SMOLLM2, ensure_sample
from tests.support.agents import is_alive
from tests.support.runtimes import model_file, runtime
from tests.support.sessions import until
from tests.support.standalone import Alone, standalone

pytestmark = [pytest.mark.model, pytest.mark.processes]

WORKER_END_SECONDS = 2.0
QUICK = "tests.support.quick_agent"
FAKE_DIGEST = f"sha256:{'ab' * 32}"


async def streamed(alone: Alone, model: str, tokens: int = 4) -> list[str]:
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{alone.port}/v1", api_key="none") as client:
        chunks = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Say hello."}], max_tokens=tokens, temperature=0, stream=True
        )
        return [chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices]


async def served(alone: Alone) -> list[str]:
    return [card["id"] for card in (await alone.get("/v1/models")).json()["data"]]


def remembered(root: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((root / "data/models.json").read_bytes())
    return found


def test_a_file_is_served_to_the_openai_client_and_read_once_and_no_worker_outlives_a_killed_agent(tmp_path: Path) -> None:
    """The second start believes what the first has written down: a digest that the file does not have."""

    async def body() -> None:
        sample = await ensure_sample()
        model = ("--model", str(sample), "--context", "512")
        async with standalone(tmp_path, *model) as alone:
            name = sample.stem
            assert await served(alone) == [name]
            assert "".join(await streamed(alone, name))
            assert f"http://127.0.0.1:{alone.port}/v1 serves {name}" in alone.said()
            assert await alone.metric('rkfleet_workers{phase="Ready"}') == 1
            (worker,) = alone.worker_pids()
            alone.kill()
            await until(lambda: not is_alive(worker), WORKER_END_SECONDS)

        (entry,) = remembered(tmp_path)
        assert (entry["path"], entry["digest"]) == (str(sample), f"sha256:{SMOLLM2.sha256}")
        (tmp_path / "data/models.json").write_text(json.dumps([{**entry, "digest": FAKE_DIGEST}]))
        async with standalone(tmp_path, *model, "--name", "chat") as alone:
            assert await served(alone) == ["chat"]
            assert remembered(tmp_path)[0]["digest"] == FAKE_DIGEST
            assert "reading" not in alone.said()
            (worker,) = alone.worker_pids()
            assert await alone.interrupt() == 0
            assert not is_alive(worker)

    asyncio.run(body())


def copy_with_another_digest(sample: Path, path: Path, more_bytes: int) -> None:
    """Copy the same model into other bytes."""
    shutil.copyfile(sample, path)
    with path.open("ab") as file:
        file.write(bytes(more_bytes))


def test_two_models_answer_and_one_whose_file_is_replaced_is_loaded_anew_and_one_whose_file_is_gone_goes_on(tmp_path: Path) -> None:
    """Each change of a file is said once, and nothing that runs is taken away before something better is there."""

    async def body() -> None:
        sample = await ensure_sample()
        first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
        first.symlink_to(sample)
        copy_with_another_digest(sample, second, 16)
        async with standalone(tmp_path, "--model", str(first), "--model", str(second), "--context", "256", program=QUICK) as alone:
            assert await served(alone) == ["first", "second"]
            before = set(alone.worker_pids())
            assert len(before) == 2

            new = tmp_path / "new.gguf"
            copy_with_another_digest(sample, new, 32)
            new.replace(first)
            await alone.until_said(f"model file {first} has changed; its new content is loaded")

            async def replaced() -> bool:
                return len(before & set(alone.worker_pids())) == 1 and await served(alone) == ["first", "second"]

            await until(replaced, 60)
            assert (await alone.chat("first", tokens=2)).status_code == 200

            second.rename(tmp_path / "away")
            await alone.until_said(f"model file {second} is gone; put it back; what is loaded goes on answering")
            assert (await alone.chat("second", tokens=2)).status_code == 200
            assert alone.said().count("is gone") == 1
            assert await alone.stop() == 0

    asyncio.run(body())


def test_what_cannot_be_served_is_refused_with_a_sentence_before_anything_is_written(tmp_path: Path) -> None:
    """A board of a fleet keeps its ledger; a model that does not fit is not tried."""

    async def refusal(status: int, *options: str) -> str:
        async with standalone(tmp_path, *options, ready=False) as alone:
            assert await asyncio.wait_for(alone.process.wait(), 15) == status
            return alone.said()

    async def body() -> None:
        sample = await ensure_sample()
        said = await refusal(6, "--model", str(sample), "--memory", "1200Mi")
        assert "the models need" in said
        assert "give a smaller --context than 4096, fewer models, or --memory" in said
        (tmp_path / "data/identity").mkdir()
        assert "belongs to a board of a fleet" in await refusal(1, "--model", str(sample))
        assert not (tmp_path / "data/ledger.json").exists()

    asyncio.run(body())


def test_a_model_of_the_npu_is_served_with_the_library_that_is_named(tmp_path: Path) -> None:
    """The ending decides; without a library the option that helps is said. A template beside it is used, and said, as is an adapter."""

    async def body() -> None:
        model = model_file(tmp_path / "tiny.rkllm", reply="echo")
        (tmp_path / "none.so").write_bytes(b"no library")
        async with standalone(tmp_path, "--model", str(model), "--runtime-library", str(tmp_path / "none.so"), ready=False) as alone:
            assert await asyncio.wait_for(alone.process.wait(), 15) == 1
            assert f"{model} needs runtime rkllm, this machine has llamacpp (" in alone.said()
            assert f"{tmp_path / 'none.so'}" in alone.said()
            assert "try: --runtime-library FILE" in alone.said()
        library = ("--runtime-library", str(runtime("1.2.3")), "--context", "512")
        async with standalone(tmp_path, "--model", str(model), *library) as alone:
            assert "".join(await streamed(alone, "tiny")).startswith("[simulated runtime 1.2.3")
            assert "/v1 serves tiny\n" in alone.said()
            await alone.until_said("simulated: the library of the NPU's runtime needs no NPU")
            assert await alone.interrupt() == 0

        (tmp_path / "tiny.jinja").write_text("{% for one in messages %}<<{{ one.role }}>> {{ one.content }} {% endfor %}")
        model_file(tmp_path / "law.rkllm")
        async with standalone(tmp_path, "--model", str(model), "--adapter", str(tmp_path / "law.rkllm"), *library) as alone:
            assert "/v1 serves tiny (adapter law.rkllm, template tiny.jinja)\n" in alone.said()
            assert "<<user>> Say hello." in "".join(await streamed(alone, "tiny", tokens=64))
            assert "[adapter law]" in "".join(await streamed(alone, "tiny:law", tokens=64))
            assert await alone.interrupt() == 0

    asyncio.run(body())
