"""Small parts of the API that no request shows alone."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest
import yaml

from controller.api.errors import headers_of, status_of
from controller.api.kubeconfig import kubeconfig, write_kubeconfig
from controller.api.limits import Limit
from controller.api.negotiation import form_of
from controller.api.paths import Target
from rkfleet.errors import Cause, Invalid, NotFound, ResourceExhausted, Unavailable
from rkfleet.kinds import ModelDeployment

QWEN = Target(ModelDeployment, "default", "qwen")


def test_a_status_names_the_kind_when_invalid_and_the_plural_otherwise() -> None:
    invalid = status_of(Invalid("wrong", (Cause("spec.replicas", "too many"),)), QWEN)
    cause = {"reason": "FieldValueInvalid", "message": "too many", "field": "spec.replicas"}
    assert invalid["details"] == {"name": "qwen", "group": "rkfleet.dev", "kind": "ModelDeployment", "causes": [cause]}
    missing = status_of(NotFound("gone"), QWEN)
    assert (missing["details"], missing["code"]) == ({"name": "qwen", "group": "rkfleet.dev", "kind": "modeldeployments"}, 404)


def test_an_error_about_another_object_names_that_one() -> None:
    status = status_of(NotFound('namespaces "lab" not found', resource="namespaces", name="lab"), QWEN)
    assert status["details"] == {"name": "lab", "kind": "namespaces"}


@pytest.mark.parametrize("error", [Unavailable("disk full", retry_after_seconds=7), ResourceExhausted("busy", retry_after_seconds=7)])
def test_an_error_that_passes_says_when_to_come_back(error: Unavailable | ResourceExhausted) -> None:
    assert headers_of(error) == {"retry-after": "7"}
    assert status_of(error)["details"] == {"retryAfterSeconds": 7}


def test_a_limit_gives_places_back_whatever_happens() -> None:
    limit = Limit("requests", 1)

    def fail() -> None:
        with limit.place():
            assert limit.taken == 1
            with pytest.raises(ResourceExhausted, match="too many requests: 1 are under way, the limit is 1"), limit.place():
                pass
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert limit.taken == 0


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "object"),
        ("*/*", "object"),
        ("application/vnd.kubernetes.protobuf,application/json", "object"),
        ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", "table"),
        ("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", "object"),
        ("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", "metadata"),
        ("text/html, application/*;q=0.8", "object"),
    ],
)
def test_the_first_form_that_can_be_made_is_taken(accept: str, form: str) -> None:
    assert form_of(accept) == form


def test_a_kubeconfig_is_for_its_owner_only_and_holds_what_kubectl_needs(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    write_kubeconfig(path, kubeconfig(server="https://127.0.0.1:7443", ca_pem=b"PEM", token="rkt1.secret"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    document = yaml.safe_load(path.read_text())
    cluster = document["clusters"][0]["cluster"]
    assert cluster == {"server": "https://127.0.0.1:7443", "certificate-authority-data": base64.b64encode(b"PEM").decode()}
    assert document["users"][0]["user"] == {"token": "rkt1.secret"}
    assert document["current-context"] == document["contexts"][0]["name"]
