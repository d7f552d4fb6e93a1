"""What the table of request fields says of runtime rkllm, asked of real workers: one with a template and an encoder, one with neither.

The model answers with all that it was told, so a field that the runtime honours shows in the answer.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.serving.compatibility import FIELDS, Effect, Field
from tests.integration.test_worker_listener import BODIES, NESTED, VALUES
from tests.support import npu_worker
from tests.support.npu_serving import NpuServing, npu_serving
from tests.support.serving import Stage, on_stage
from tests.unit.test_images import picture
from tests.unit.test_serving_compatibility import NEEDED

TEMPLATE = (
    "{% for one in messages %}<|{{ one.role }}|>{{ one.content }}<|end|>{% endfor %}{{ tools | tojson }}"
    "{{ enable_thinking }} {{ reasoning_effort }}<|assistant|>"
)
ANSWER = "x 1 2 3 4 5 6 7 8 9 10 11 12"  # Longer than any limit of the table's examples, with its stop word.
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}

# What must stand beside a field for it to mean anything.
BESIDE: dict[str, dict[str, Any]] = {
    "tool_choice": {"tools": [TOOL]},
    "parallel_tool_calls": {"tools": [TOOL]},
    "stream_options": {"stream": True},
    "top_logprobs": {"logprobs": True},
}


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stage, NpuServing]]:
    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[NpuServing]:
        root = tmp_path_factory.mktemp("board")
        (root / "old").mkdir()
        reply = {"reply": "echo", "tokens_per_s": 100_000}
        new = npu_worker.npu("G4", root, template=TEMPLATE, encoder_path=str(root / "eyes.rknn"))
        specs = {
            "m": npu_worker.spec_of(npu_worker.model(root, **reply), new, max_output_tokens=400),
            "x": npu_worker.spec_of(npu_worker.model(root / "old", **reply), npu_worker.npu("G3", root / "old"), max_output_tokens=400),
        }
        async with npu_serving(specs) as serving:
            yield serving

    with on_stage(opened) as staged:
        yield staged


def asked(field: Field, model: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a body without the field and one with it."""
    outer, _, inner = field.name.partition(".")
    body = {**NEEDED[field.path], "model": model, **BESIDE.get(field.name, {})}
    for name in ("prompt", "input"):
        if name in body:
            body[name] = ANSWER
    if "messages" in body:
        body["messages"] = [{"role": "user", "content": ANSWER}]
    if field.path.startswith("/api/") and outer != "stream":
        body["stream"] = False
    example = field.example
    if field.name == "images":
        example = [base64.b64encode(picture()).decode()]
    if outer == "model":
        example = f"{model}:latest"
    return body, {**body, outer: {inner: example} if inner else example}


def said(answer: httpx2.Response) -> object:
    """Return what an answer says, without what no two answers share."""
    if "text/event-stream" in answer.headers["content-type"] or "ndjson" in answer.headers["content-type"]:
        return answer.headers["content-type"], answer.text.count('"usage"')
    fields = answer.json()
    for name in ("id", "created", "created_at", *(name for name in fields if name.endswith("_duration"))):
        fields.pop(name, None)
    fields.get("usage", {}).pop("prompt_tokens_details", None)
    return fields


def expected(field: Field, model: str) -> Effect:
    if model == "m":
        return field.rkllm
    if "1.3.0 on, else named" in field.note or "named without a template" in field.note:
        return "named"
    return "refused" if field.name == "images" else field.rkllm


# The agent honours them in ways that another test looks at, or the answer is right because it is the same.
UNSEEN = {"model", "keep_alive", "prompt_cache_key"}


@pytest.mark.parametrize("model", ["m", "x"])
@pytest.mark.parametrize("field", FIELDS, ids=lambda field: f"{field.path} {field.name}")
def test_a_field_does_with_runtime_rkllm_what_the_table_says(staged: tuple[Stage, NpuServing], field: Field, model: str) -> None:
    async def ask() -> tuple[httpx2.Response, httpx2.Response]:
        without, with_it = asked(field, model)
        return await serving.post(field.path, without), await serving.post(field.path, with_it)

    stage, serving = staged
    plain, answer = stage.run(ask())
    ignored = answer.headers.get("x-rkfleet-ignored", "").split(", ")
    named = any(name == field.name or name.startswith(f"{field.name}.") for name in ignored)
    effect = expected(field, model)
    if effect == "refused":
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert (error["param"] == field.name) if isinstance(error, dict) else (field.name.rpartition(".")[2] in error)
        return
    assert answer.status_code == 200, answer.text
    assert named == (effect == "named"), ignored
    same = said(plain) == said(answer)
    if effect == "named":
        assert same
    elif effect == "yes" or field.name not in UNSEEN:
        assert not same


# ---- whatever else may be asked

OPTIONS = st.dictionaries(st.sampled_from(["temperature", "num_predict", "seed", "stop", "num_ctx", "top_k", "x\r\ny"]), VALUES)
BESIDES = (
    "format", "keep_alive", "stream_options", "images", "system", "template", "context", "truncate", "best_of", "echo", "suffix", "audio",
)  # fmt: skip
ASKED = st.tuples(
    BODIES,
    st.fixed_dictionaries(
        {"model": st.sampled_from(["m", "x", "m:y"])},
        optional={**dict.fromkeys(BESIDES, VALUES), "options": OPTIONS | VALUES, "stream": st.booleans()},
    ),
).map(lambda halves: msgspec.json.encode({**halves[0], **halves[1]}))
PATHS = st.sampled_from([*NEEDED, "/v1/logits", "/api/embeddings", "/api/show"])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=PATHS, body=ASKED | st.binary(max_size=30) | st.just(NESTED))
def test_no_request_is_a_failure_of_the_board(staged: tuple[Stage, NpuServing], path: str, body: bytes) -> None:
    """It is answered, or it is the mistake of who sent it; a stream that has begun ends well."""
    stage, serving = staged
    answer = stage.run(serving.client.post(path, content=body))
    assert answer.status_code < 500, answer.text
    assert answer.status_code != 200 or '"server_error"' not in answer.text
