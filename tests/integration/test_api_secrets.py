"""Values of Secrets stay where they belong: no refusal repeats one, no log has one, and no file of a running store shows one."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from controller.store.sql.sealing import KEY_BYTES, Sealing
from rkfleet.errors import Invalid
from rkfleet.kinds import KINDS, Secret
from tests.support.api import RunningApi, admission_of, running_api

SECRETS = "/api/v1/namespaces/default/secrets"
VALUE = "correct-horse-battery"
ENCODED = base64.b64encode(VALUE.encode()).decode()
JSON_PATCH = {"content-type": "application/json-patch+json"}
MERGE_PATCH = {"content-type": "application/merge-patch+json"}
APPLY_PATCH = {"content-type": "application/apply-patch+yaml"}


def secret(**fields: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, **fields}


async def refusals(api: RunningApi) -> list[tuple[str, int, str]]:
    """What the API says to requests that it must refuse; each brings a value, or is about one."""
    await api.call("POST", SECRETS, secret(data={"k": ENCODED, "n": base64.b64encode(b"1").decode()}, immutable=True))
    one = f"{SECRETS}/s"
    requests: list[tuple[str, str, Any, dict[str, str]]] = [
        ("POST", SECRETS, secret(data=VALUE), {}),
        ("POST", SECRETS, secret(data=[VALUE]), {}),
        ("POST", SECRETS, secret(data={"k": VALUE}), {}),
        ("POST", SECRETS, secret(data={"k": {"nested": VALUE}}), {}),
        ("POST", SECRETS, secret(data={"k": 12345678901234567890123}), {}),
        ("POST", SECRETS, secret(data={"k": 424242}), {}),
        ("POST", SECRETS, secret(stringData={"k": [VALUE]}), {}),
        ("POST", SECRETS, secret(stringData={"k k": VALUE}), {}),
        ("POST", SECRETS, secret(stringData=VALUE), {}),
        ("POST", SECRETS, {**secret(), "metadata": {"name": "t", "annotations": {"last": [VALUE]}}}, {}),
        ("POST", SECRETS, {**secret(), "metadata": {"name": "t", "annotations": {"last": 424242}}}, {}),
        ("PUT", one, secret(data={"k": base64.b64encode(b"other").decode()}), {}),
        ("PATCH", one, [{"op": "test", "path": "/data/k", "value": "x"}], JSON_PATCH),
        ("PATCH", one, [{"op": "add", "path": "/data/k/below", "value": VALUE}], JSON_PATCH),
        ("PATCH", one, [{"op": "remove", "path": "/data/k/below/it"}], JSON_PATCH),
        ("PATCH", one, {"data": {"k": VALUE}}, MERGE_PATCH),
        ("PATCH", one, {"data": [VALUE]}, {"content-type": "application/strategic-merge-patch+json"}),
        ("PATCH", f"{one}?fieldManager=other", secret(data={"k": base64.b64encode(b"mine").decode()}), APPLY_PATCH),
        ("PATCH", f"{one}?fieldManager=other", secret(stringData={"k": VALUE * 2}), APPLY_PATCH),
    ]  # fmt: skip
    said = []
    for method, path, body, headers in requests:
        answer = await api.call(method, path, body, headers=headers)
        said.append((f"{method} {path} {body}", answer.status_code, answer.text))
    return said


def test_no_refusal_and_no_log_repeats_a_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Refusals are read aloud in issues, and kept by audit logs and CI systems."""

    async def run() -> None:
        async with running_api(tmp_path) as api:
            for request, code, text in await refusals(api):
                assert 400 <= code < 500, (request, code, text)
                shown = [part for part in (VALUE, ENCODED, "424242", "1234567890123", "b3RoZXI=", "bWluZQ==") if part in text]
                assert not shown, (request, text)

    with caplog.at_level(logging.DEBUG):
        asyncio.run(run())
    assert VALUE not in caplog.text
    assert ENCODED not in caplog.text


def test_no_file_of_a_running_store_shows_a_value(tmp_path: Path) -> None:
    """Also not its write-ahead log, and also not after the Secret was changed and deleted."""
    sealing = Sealing((b"k" * KEY_BYTES,), os.urandom, "the key file")

    async def run() -> None:
        async with running_api(tmp_path, store_options={"sealing": sealing}) as api:
            await api.call("POST", SECRETS, secret(stringData={"k": VALUE}))
            await api.call("PATCH", f"{SECRETS}/s", {"metadata": {"annotations": {"applied": VALUE}}}, headers=MERGE_PATCH)
            answer = await api.call("PATCH", f"{SECRETS}/s?fieldManager=m", secret(stringData={"other": VALUE}), headers=APPLY_PATCH)
            assert answer.json()["data"] == {"k": ENCODED, "other": ENCODED}
            _assert_nothing_in(tmp_path)
            await api.call("DELETE", f"{SECRETS}/s")
            _assert_nothing_in(tmp_path)

    asyncio.run(run())
    _assert_nothing_in(tmp_path)


def _assert_nothing_in(directory: Path) -> None:
    kept = {file.name: file.read_bytes() for file in directory.rglob("*") if file.is_file()}
    assert any(b"SQLite format 3" in content for content in kept.values())
    for name, content in kept.items():
        assert VALUE.encode() not in content, name
        assert ENCODED.encode() not in content, name


@pytest.mark.parametrize(
    ("type", "data", "says"),
    [
        ("kubernetes.io/tls", {"tls.crt": "YQ=="}, ["data[tls.key]: must be set in a Secret of type kubernetes.io/tls"]),
        ("kubernetes.io/ssh-auth", {}, ["data[ssh-privatekey]: must be set"]),
        ("kubernetes.io/basic-auth", {"user": "YQ=="}, ["data: must have username or password"]),
        ("kubernetes.io/dockerconfigjson", {".dockerconfigjson": ENCODED}, ["data[.dockerconfigjson]: is not JSON"]),
        ("kubernetes.io/dockerconfigjson", {".dockerconfigjson": 5}, ["data[.dockerconfigjson]: is not JSON", "must be a string"]),
        ("kubernetes.io/dockercfg", {".dockercfg": "e30="}, []),
        ("kubernetes.io/basic-auth", {"password": "YQ=="}, []),
        ("example.com/own", {"anything": "YQ=="}, []),
    ],
)
def test_a_secret_of_a_known_type_has_what_programs_rely_on(type: str, data: dict[str, Any], says: list[str]) -> None:
    obj = secret(type=type, data=data)
    try:
        admission_of(KINDS).admit_create(Secret, obj, namespace="default")
        found = ""
    except Invalid as error:
        found = error.message
    assert all(one in found for one in says), found
    assert bool(found) == bool(says)
