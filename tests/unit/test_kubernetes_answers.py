"""Answers of a Kubernetes API, as servers of all kinds write them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.api.errors import status_of
from controller.store.kubernetes.answers import error_of, item_of, read_event, read_list, succeeded
from rkfleet import errors
from rkfleet.errors import Cause, FleetError
from rkfleet.kinds import Board, Namespace

TEXT = st.text(max_size=12)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT, lambda below: st.dictionaries(TEXT, below, max_size=3)
)


@given(name=TEXT, uid=TEXT, version=TEXT, labels=st.none() | st.dictionaries(TEXT, TEXT, max_size=2), spec=ANYTHING, named=st.booleans())
def test_an_item_says_what_the_object_says(*, name: str, uid: str, version: str, labels: Any, spec: Any, named: bool) -> None:
    """Its body is the object, to which a list of a built-in kind leaves the kind to be added; nothing else is changed."""
    metadata = {"name": name, "uid": uid, "resourceVersion": version, "labels": labels, "managedFields": [{"manager": "x"}]}
    obj = {"metadata": metadata, "spec": spec, "status": {"conditions": []}}
    kind = {"apiVersion": "v1", "kind": "Namespace"}
    raw = msgspec.json.encode({**kind, **obj} if named else obj)
    item = item_of(raw, Namespace.resource)
    assert (item.ref.name, item.uid, item.resource_version, item.labels) == (name, uid, version, labels or {})
    assert msgspec.json.decode(item.body) == {**kind, **obj}
    assert not named or item.body == raw


def test_an_object_without_anything_is_still_json() -> None:
    assert msgspec.json.decode(item_of(b"{ }", Board.resource).body) == {"apiVersion": "rkfleet.dev/v1alpha1", "kind": "Board"}


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (404, "NotFound", errors.NotFound),
        (409, "AlreadyExists", errors.AlreadyExists),
        (409, "Conflict", errors.Conflict),
        (410, "Expired", errors.Expired),
        (410, "Gone", errors.Expired),
        (422, "Invalid", errors.Invalid),
        (413, "RequestEntityTooLarge", errors.Invalid),
        (400, "BadRequest", errors.BadRequest),
        (401, "Unauthorized", errors.Unauthenticated),
        (403, "Forbidden", errors.PermissionDenied),
        (405, "MethodNotAllowed", errors.BadRequest),
        (429, "TooManyRequests", errors.ResourceExhausted),
        (500, "InternalError", errors.Internal),
        (500, "ServerTimeout", errors.Unavailable),
        (503, "ServiceUnavailable", errors.Unavailable),
        (504, "Timeout", errors.DeadlineExceeded),
        (409, "", errors.Conflict),
        (410, "SomethingNew", errors.Expired),
        (418, "", errors.BadRequest),
        (599, "", errors.Internal),
    ],
)
def test_an_error_is_known_by_its_reason_and_else_by_its_code(code: int, reason: str, expected: type[FleetError]) -> None:
    error = error_of(msgspec.json.encode({"kind": "Status", "reason": reason, "code": code, "message": "because"}))
    assert (type(error), error.message) == (expected, "because")


@pytest.mark.parametrize(
    "kind", [errors.NotFound, errors.AlreadyExists, errors.Conflict, errors.Expired, errors.Internal, errors.Unavailable]
)
def test_an_error_of_our_own_api_comes_back_as_itself(kind: type[FleetError]) -> None:
    error = error_of(msgspec.json.encode(status_of(kind("because"))))
    assert (type(error), error.message) == (kind, "because")


def test_an_invalid_object_keeps_every_cause() -> None:
    causes = (Cause("spec.replicas", "must not be negative"), Cause("spec", "is required", "FieldValueRequired"))
    error = error_of(msgspec.json.encode(status_of(errors.Invalid("no", causes, name="chat"))))
    assert isinstance(error, errors.Invalid)
    assert error.causes == causes


def test_a_server_says_when_to_come_back() -> None:
    told = error_of(b'{"reason":"TooManyRequests","details":{"retryAfterSeconds":7}}', 429)
    header = error_of(b"slow down", 429, "9")
    date = error_of(b"", 503, "Wed, 21 Oct 2026 07:28:00 GMT")
    assert isinstance(told, errors.ResourceExhausted)
    assert isinstance(header, errors.ResourceExhausted)
    assert isinstance(date, errors.Unavailable)
    assert (told.retry_after_seconds, header.retry_after_seconds, date.retry_after_seconds) == (7, 9, 1)


def test_an_answer_of_something_in_between_is_told_by_its_first_words() -> None:
    error = error_of(b"<html>" + b"x" * 10_000, 502)
    assert isinstance(error, errors.Unavailable)
    assert error.message.startswith("<html>x")
    assert len(error.message) == 500


def test_only_a_status_that_says_success_means_that_the_object_is_gone() -> None:
    assert succeeded(b'{"kind":"Status","apiVersion":"v1","status":"Success","details":{"name":"a"}}')
    assert not succeeded(b'{"kind":"Board","metadata":{"name":"a"},"status":{"soc":"cpu"}}')
    assert not succeeded(b'{"kind":"Board","metadata":{"name":"a"}}')


@pytest.mark.parametrize("read", [item_of, read_list, read_event])
def test_what_cannot_be_read_is_an_error_that_names_it(read: Any) -> None:
    for wrong in (b"", b"[]", b"{", b'{"metadata": 7, "items": 7, "type": 7}', b"\xff"):
        with pytest.raises(errors.Internal, match=r"cannot be read"):
            read(wrong, Board.resource)
