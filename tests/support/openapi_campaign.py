"""Requests made from the served OpenAPI documents, and what every answer to them must be.

In: a running API. Out: how many requests were sent; the first answer that breaks a promise is raised. schemathesis makes the requests, some
for objects that exist, and checks that each answer is one that the document names, with its content type and schema.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from tests.support.api import RunningApi
from tests.support.objects import BOARDS, DEPLOYMENTS, board, deployment

__all__ = ["campaign"]

CHECKS = [content_type_conformance, response_schema_conformance, status_code_conformance]
OPEN_ENDED = ("watch", "follow")  # Parameters that make an answer stay open; watches and logs have tests of their own.
LATE = ("resourceVersion", "timeout", "timeoutSeconds")  # Parameters that may ask for what cannot be there in time: 504 is right.
EXISTING = {"namespace": "default", "name": "qwen"}


def campaign(api: RunningApi, run: Callable[[Any], Any], *, seed_number: int, examples: int) -> int:
    """Send `examples` requests for each operation of every served document.

    Args:
        api: The API.
        run: Runs a coroutine in the loop in which the API runs.
        seed_number: Two campaigns with the same number send the same requests.
        examples: For each operation.

    Raises:
        AssertionError: An answer is not what the document says, or a mistake of ours.
    """
    run(api.call("POST", BOARDS, board("qwen")))
    run(api.call("POST", DEPLOYMENTS, deployment()))
    sent = 0
    links = run(api.call("GET", "/openapi/v3")).json()["paths"].values()
    for link in links:
        schema = schemathesis.openapi.from_dict(run(api.call("GET", link["serverRelativeURL"])).json())
        for found in schema.get_all_operations():
            sent += _try(api, run, found.ok(), seed_number, examples)
    return sent


def _try(api: RunningApi, run: Callable[[Any], Any], operation: Any, seed_number: int, examples: int) -> int:
    count = 0
    names = {parameter.name for parameter in operation.path_parameters}
    existing = {name: value for name, value in EXISTING.items() if name in names}
    cases = st.one_of(operation.as_strategy(), operation.as_strategy(path_parameters=existing)) if existing else operation.as_strategy()

    @seed(seed_number)
    @settings(max_examples=examples, database=None, deadline=None, phases=(Phase.generate,), suppress_health_check=list(HealthCheck))
    @given(cases)
    def send(case: Any) -> None:
        nonlocal count
        count += 1
        case.query = {name: value for name, value in (case.query or {}).items() if name not in OPEN_ENDED}
        prepared = requests.Request(**case.as_transport_kwargs(base_url=api.url, headers=dict(api.client.headers))).prepare()
        answer = run(_send(api, prepared))
        late = answer.status_code == 504 and any(name in case.query for name in LATE)
        assert answer.status_code < 500 or late, f"{case.as_curl_command()}: {answer.status_code} {answer.content[:500]!r}"
        if case.method.upper() != "HEAD":
            case.validate_response(answer, checks=CHECKS)

    send()
    return count


async def _send(api: RunningApi, prepared: requests.PreparedRequest) -> schemathesis.Response:
    headers = {name: value for name, value in prepared.headers.items() if name.lower() not in ("content-length", "transfer-encoding")}
    body = prepared.body.encode() if isinstance(prepared.body, str) else prepared.body
    async with asyncio.timeout(10):
        answer = await api.client.request(str(prepared.method), str(prepared.url), headers=headers, content=body)
    received: dict[str, list[str]] = {}
    for name, value in answer.headers.multi_items():
        received.setdefault(name, []).append(value)
    return schemathesis.Response(answer.status_code, received, answer.content, prepared, 0.0, False)
