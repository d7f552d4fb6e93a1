"""Bodies in Kubernetes' protobuf: what an independently written encoder sends is read, and any bytes are read or refused."""

from __future__ import annotations

import base64
import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.api.errors import UnsupportedMediaType
from controller.api.protobuf import MAGIC, decode_protobuf
from rkfleet.errors import BadRequest


def varint(number: int) -> bytes:
    out = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)


def text(number: int, value: str | bytes) -> bytes:
    """A field of bytes; written also when it is empty, as Go's encoder does."""
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def whole(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def envelope(api_version: str, kind: str, raw: bytes) -> bytes:
    return MAGIC + text(1, text(1, api_version) + text(2, kind)) + text(2, raw) + text(3, "") + text(4, "")


def meta(name: str, labels: dict[str, str]) -> bytes:
    entries = b"".join(text(11, text(1, key) + text(2, value)) for key, value in labels.items())
    return text(1, name) + text(2, "") + text(3, "") + text(5, "") + text(6, "") + whole(7, 0) + text(8, b"") + entries


names = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
words = st.text(max_size=12)


@given(names, st.dictionaries(names, words, max_size=3), st.dictionaries(names, st.binary(max_size=20), max_size=3))
def test_a_secret_is_read_as_it_was_sent(name: str, labels: dict[str, str], data: dict[str, bytes]) -> None:
    entries = b"".join(text(2, text(1, key) + text(2, value)) for key, value in data.items())
    found = decode_protobuf(envelope("v1", "Secret", text(1, meta(name, labels)) + entries + text(3, "Opaque")))
    wanted: dict[str, Any] = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "Opaque"}
    if labels:
        wanted["metadata"]["labels"] = labels
    if data:
        wanted["data"] = {key: base64.b64encode(value).decode() for key, value in data.items()}
    assert found == wanted


@given(names, st.integers(1, 4_000_000_000), st.integers(0, 999_999_999), st.integers(0, 1000))
def test_a_lease_is_read_with_its_times(name: str, seconds: int, nanos: int, transitions: int) -> None:
    moment = whole(1, seconds) + whole(2, nanos)
    spec = text(1, "me") + whole(2, 15) + text(3, moment) + text(4, moment) + whole(5, transitions)
    found = decode_protobuf(envelope("coordination.k8s.io/v1", "Lease", text(1, meta(name, {})) + text(2, spec)))
    assert found["spec"]["leaseDurationSeconds"] == 15
    assert found["spec"]["renewTime"] == found["spec"]["acquireTime"]
    assert found["spec"]["renewTime"].endswith(f".{nanos // 1000:06}Z")
    assert found["spec"]["leaseTransitions"] == transitions


def test_zeros_behind_pointers_are_values_and_others_are_left_out() -> None:
    """As in JSON from Go, where `omitempty` keeps a pointer to a zero."""
    found = decode_protobuf(envelope("v1", "ConfigMap", text(1, meta("c", {})) + whole(4, 0)))
    assert found == {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "immutable": False}
    spec = text(1, "") + whole(2, 0) + text(3, whole(1, -62_135_596_800 & (1 << 64) - 1) + whole(2, 0))  # Go's zero time.
    lease = decode_protobuf(envelope("coordination.k8s.io/v1", "Lease", text(1, meta("l", {})) + text(2, spec)))
    assert lease["spec"] == {"holderIdentity": "", "leaseDurationSeconds": 0}
    negative = decode_protobuf(envelope("coordination.k8s.io/v1", "Lease", text(2, whole(2, -5 & (1 << 64) - 1))))
    assert negative["spec"] == {"leaseDurationSeconds": -5}
    options = decode_protobuf(envelope("v1", "DeleteOptions", whole(1, 0) + whole(3, 0)))
    assert (options["gracePeriodSeconds"], options["orphanDependents"]) == (0, False)


def test_fields_of_newer_versions_are_passed_over_and_damage_is_named() -> None:
    found = decode_protobuf(envelope("v1", "Namespace", text(1, meta("n", {})) + text(99, "new") + whole(98, 7)))
    assert found == {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}
    damaged = {
        "of ObjectMeta: a number has no end": text(1, b"\xff\xff\xff"),
        "of ObjectMeta: name has the wire type 0": text(1, whole(1, 1)),
        "of ObjectMeta: field 1 ends behind its end": text(1, text(1, "name")[:-1]),
        "of ObjectMeta: name is not UTF-8": text(1, text(1, b"\xff")),
        "of ObjectMeta: an entry of labels has the wire type 0": text(1, text(11, whole(1, 1))),
        "of Namespace: a field has the number 0": whole(0, 1),
        "of Namespace: field 2 has the wire type 3": varint(2 << 3 | 3),
        "fieldsV1 of managedFields in the body is not JSON": text(1, text(17, text(7, text(1, "{")))),
        "has more than 5000 fields": text(1, text(13, b"") * 5_000),
    }
    for reason, raw in damaged.items():
        with pytest.raises(BadRequest, match=reason):
            decode_protobuf(envelope("v1", "Namespace", raw))
    with pytest.raises(BadRequest, match="does not begin with"):
        decode_protobuf(b'{"kind": "Namespace"}')
    with pytest.raises(UnsupportedMediaType, match="of v1 Pod is not read; send JSON"):
        decode_protobuf(envelope("v1", "Pod", b""))


@given(names, st.lists(words, max_size=3), st.integers(1, 2**31 - 1), st.binary(max_size=8))
def test_an_event_is_read_in_both_groups(name: str, texts: list[str], count: int, label: bytes) -> None:
    about = text(1, "Board") + text(2, "") + text(3, name) + text(4, "uid-1")
    note = " ".join(texts)
    core = text(1, meta(name, {})) + text(2, about) + text(3, "Seen") + text(4, note) + text(5, text(1, "eye")) + whole(8, count)
    found = decode_protobuf(envelope("v1", "Event", core))
    assert (found["involvedObject"], found["count"]) == ({"kind": "Board", "name": name, "uid": "uid-1"}, count)
    assert found.get("message", "") == note
    assert found["source"] == {"component": "eye"}
    viewed = decode_protobuf(envelope("events.k8s.io/v1", "Event", text(1, meta(name, {})) + text(8, about) + text(10, note)))
    assert (viewed["regarding"], viewed.get("note", "")) == (found["involvedObject"], note)
    secret = decode_protobuf(envelope("v1", "Secret", text(2, text(1, "k") + text(2, label)) + text(3, "")))
    assert secret == {"apiVersion": "v1", "kind": "Secret", "data": {"k": base64.b64encode(label).decode()}}


def test_options_of_a_delete_and_reviews_are_read() -> None:
    options = decode_protobuf(
        envelope("rkfleet.dev/v1alpha1", "DeleteOptions", whole(1, 0) + text(2, text(1, "uid-1")) + text(4, "Foreground"))
    )
    assert (options["preconditions"], options["propagationPolicy"]) == ({"uid": "uid-1"}, "Foreground")
    attributes = text(1, "default") + text(2, "list") + text(3, "") + text(5, "secrets")
    review = decode_protobuf(envelope("authorization.k8s.io/v1", "SelfSubjectAccessReview", text(1, b"") + text(2, text(1, attributes))))
    assert review["spec"] == {"resourceAttributes": {"namespace": "default", "verb": "list", "resource": "secrets"}}


@given(st.binary(max_size=200), st.sampled_from(["Secret", "Lease", "Event", "Pod", "DeleteOptions"]))
def test_any_bytes_are_read_or_refused(raw: bytes, kind: str) -> None:
    for body in (raw, MAGIC + raw, envelope("v1", kind, raw), envelope("v1", kind, raw)[:-3]):
        with contextlib.suppress(BadRequest, UnsupportedMediaType):
            assert isinstance(decode_protobuf(body), dict)
