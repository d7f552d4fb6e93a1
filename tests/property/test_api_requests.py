"""Whatever is sent to the API, the answer is a Status or an object, and never a mistake of ours."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from controller.api import auth, bodies, negotiation, paths, query
from rkfleet.errors import BadRequest, Invalid, Unauthenticated
from rkfleet.kinds import KINDS, ModelDeployment
from tests.support.api import RunningApi, running_api
from tests.support.objects import DEPLOYMENTS, deployment

_FIELDS = (
    "spec metadata status replicas template model name labels finalizers ownerReferences strategy maxSurge conditions type kind apiVersion"
    " $patch uid resourceVersion placement tolerations annotations generateName namespace"
)
_PATHS = " /spec /spec/replicas /metadata /metadata/name /metadata/labels /metadata/finalizers /spec/template/model /status /x/y"
_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
_json = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_FIELDS.split()), inner, max_size=4),
    max_leaves=12,
)
_operation = st.fixed_dictionaries(
    {"op": st.sampled_from(["add", "remove", "replace", "move", "copy", "test"]), "path": st.sampled_from(_PATHS.split(" "))},
    optional={"value": _json, "from": st.sampled_from(_PATHS.split(" "))},
)
_steps = st.lists(
    st.tuples(st.sampled_from(["application/merge-patch+json", "", "POST"]), _json)
    | st.tuples(st.just("application/json-patch+json"), st.lists(_operation, max_size=4)),
    min_size=1,
    max_size=8,
)


async def _send(api: RunningApi, path: str, how: str, body: Any) -> int:
    match how:
        case "":
            answer = await api.call("PUT", path, body)
        case "POST":
            answer = await api.call("POST", DEPLOYMENTS, body)
        case media_type:
            answer = await api.call("PATCH", path, body, headers={"content-type": media_type})
    return answer.status_code


def test_no_body_makes_the_server_fail(tmp_path: Path) -> None:
    """What is stored in the end is still an object of its kind."""
    numbers = itertools.count()

    async def run(api: RunningApi, steps: list[tuple[str, Any]]) -> None:
        path = f"{DEPLOYMENTS}/qwen-{next(numbers)}"
        await api.call("POST", DEPLOYMENTS, deployment(path.rpartition("/")[2]))
        for how, body in steps:
            assert await _send(api, path, how, body) < 500
        stored = await api.call("GET", path)
        if stored.status_code == 200:
            msgspec.json.decode(stored.content, type=ModelDeployment)

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        api = runner.run(stack.enter_async_context(running_api(tmp_path)))

        @settings(max_examples=60, deadline=None)
        @given(_steps)
        def fuzz(steps: list[tuple[str, Any]]) -> None:
            runner.run(run(api, steps))

        try:
            fuzz()
        finally:
            runner.run(stack.aclose())


_parts = st.sampled_from(
    ["api", "v1", "rkfleet.dev", "v1alpha1", "namespaces", "default", "boards", "models", "events", "status", "scale", ""]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_parts, max_size=7))
def test_a_path_names_one_thing_or_nothing(parts: list[str]) -> None:
    for target in (paths.parse_path(KINDS, "rkfleet.dev", "v1alpha1", parts), paths.parse_path(KINDS, "", "v1", parts)):
        if target is not None:
            assert not target.namespace or target.kind.resource.namespaced
            assert not target.subresource or target.name
            assert target.kind.resource.plural in parts


_LIST_PARAMETERS = "labelSelector fieldSelector limit watch continue resourceVersion resourceVersionMatch sendInitialEvents timeoutSeconds"
_WRITE_PARAMETERS = "dryRun fieldValidation fieldManager"
_parameters = st.sampled_from(f"{_LIST_PARAMETERS} {_WRITE_PARAMETERS}".split(" "))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(_parameters, st.text(max_size=30)), st.text(max_size=30), st.binary(max_size=40))
def test_unreadable_requests_are_refused_by_name(parameters: dict[str, str], header: str, body: bytes) -> None:
    for read in (
        lambda: query.read_options(QueryParams(parameters), "default"),
        lambda: query.write_options(QueryParams(parameters)),
        lambda: negotiation.form_of(header),
        lambda: bodies.decode(body),
        lambda: auth.authenticate(lambda _: None, header),
    ):
        with suppress(BadRequest, Invalid, Unauthenticated):
            read()
