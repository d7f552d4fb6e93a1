"""The HTTPS calls by which a board or a gateway gets certificates, and how it keeps the answer.

In: the controller's URL, its CA, a request. Out: certificates, and the files of `rkfleet/identity.py`. `enroll.py` joins with it and
`renew.py` renews; both are short-lived processes, because this needs `cryptography`, whose memory a running agent must not carry.

The controller is verified by its key and name and not by dates: a board may not know what day it is. Files are written one by one, each
whole or not at all, `identity.json` last. All of them are over the same key, so any mixture of old and new ones works, and a kill in
between costs nothing but the same request again.
"""

from __future__ import annotations

import http.client
import ssl
import urllib.parse
from pathlib import Path
from typing import Final, Literal

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from rkfleet.disk import SystemDisk, write_durably
from rkfleet.enrolment import CertificateResponse
from rkfleet.errors import Invalid, PermissionDenied, Unavailable, error_for_reason
from rkfleet.identity import Facts
from rkfleet.tls import ignore_dates

__all__ = [
    "address_of",
    "call",
    "keep",
    "keep_file",
    "load_key",
    "new_key",
    "post",
    "private_pem",
    "sign_request",
    "unverified",
    "verified",
]

TIMEOUT_SECONDS: Final = 20  # One connection and one signature; a controller that takes longer is asked again later.
ANSWER_BYTES_MAX: Final = 65536  # Four certificates are 4 kB.


class _Status(msgspec.Struct, frozen=True):
    message: str = ""
    reason: str = ""


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a key as PEM, without a password."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the key in a file.

    Raises:
        Invalid: It holds no P-256 key.
        OSError: It cannot be read.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except ValueError as error:
        raise Invalid(f"{path} cannot be read as a private key: {error}; delete it and join again with a new token") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Invalid(f"{path} must hold a P-256 key; delete it and join again with a new token")
    return key


def sign_request(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    """Return a new certificate request for this key, PEM."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


def address_of(url: str) -> tuple[str, int]:
    """Return host and port of a controller.

    Raises:
        Invalid: The URL is none of a controller.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.path.strip("/"):
        raise Invalid(f"controller URL {url!r} must be https://host:port")
    return parts.hostname, parts.port or 443


def verified(ca_pem: str) -> ssl.SSLContext:
    """Return a context that takes servers of this CA only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca_pem)
    return ignore_dates(context)


def unverified() -> ssl.SSLContext:
    """Return a context that takes every server, for the one answer that is compared with a pin."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def post(url: str, path: str, ca_pem: str, request: msgspec.Struct, token: str = "") -> CertificateResponse:
    """Ask the controller for certificates, over a connection that is verified by its CA.

    Args:
        url: Base URL of the controller.
        path: Path of the call.
        ca_pem: Servers CA.
        request: Body.
        token: API token to send; empty sends none.

    Raises:
        PermissionDenied: The server is not the CA's, or the controller refuses.
        FleetError: Whatever else the controller refuses with.
        Unavailable: It cannot be reached.
    """
    host, port = address_of(url)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    status, body = call(host, port, verified(ca_pem), path, body=msgspec.json.encode(request), headers=headers)
    try:
        if status == 200:
            return msgspec.json.decode(body, type=CertificateResponse)
        refusal = msgspec.json.decode(body, type=_Status)
    except msgspec.MsgspecError as error:
        raise Unavailable(f"https://{host}:{port}{path} answered {status} and no JSON that is known here") from error
    raise error_for_reason(refusal.reason)(refusal.message or f"the request for certificates was answered {status}")


def call(
    host: str, port: int, context: ssl.SSLContext, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Return status and body of a GET, or of a POST if there is a body to send.

    Raises:
        PermissionDenied: The server is not the one that the context trusts; nothing was sent.
        Unavailable: It cannot be reached.
    """
    connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=context)
    sent = {"content-type": "application/json", **(headers or {})} if body else {}
    try:
        connection.request("POST" if body else "GET", path, body, sent)
        answer = connection.getresponse()
        return answer.status, answer.read(ANSWER_BYTES_MAX)
    except ssl.SSLCertVerificationError as error:
        raise PermissionDenied(f"https://{host}:{port} cannot be trusted: {error.verify_message}; the token was not sent") from error
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"controller https://{host}:{port} cannot be reached: {error}") from error
    finally:
        connection.close()


def keep(
    directory: Path, answer: CertificateResponse, *, role: Literal["board", "gateway"], name: str, controller: str, api_token: str
) -> None:
    """Write an answer as the identity in `directory`.

    Raises:
        OSError: The disk refuses; what is there works as before.
    """
    keep_file(directory / "cert.pem", answer.certificate_pem.encode())
    keep_file(directory / "ca.pem", answer.ca_pem.encode())
    if role == "board":
        keep_file(directory / "serving.pem", answer.serving_certificate_pem.encode())
        keep_file(directory / "gateways-ca.pem", answer.gateways_ca_pem.encode())
    facts = Facts(
        fleet_id=answer.fleet_id,
        name=name,
        controller=controller,
        session_address=answer.session_address,
        api_token=api_token,
        issued=answer.issued,
        expires=answer.expires,
    )
    keep_file(directory / "identity.json", msgspec.json.format(msgspec.json.encode(facts), indent=2))


def keep_file(path: Path, content: bytes) -> None:
    """Replace a file of the identity (mode 0600), whole or not at all.

    Raises:
        OSError: The disk refuses; the old content stands.
    """
    write_durably(path, content, path.with_name(f".{path.name}.partial"), SystemDisk())
