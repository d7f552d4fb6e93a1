"""The enrolment client: a join token becomes a certificate.

In: an `Enrolment` as JSON on standard input and the identity directory as argument. Out: the files of `rkfleet/identity.py`, or one line on
standard error and the exit status of the error. Run as `python -m rkfleet.enroll DIRECTORY` by agent and gateway through
`ensure_identity`; a process of its own because it needs `cryptography` for a few hundred milliseconds of a program's life. A simulation,
which enrols thousands of boards and keeps no directory for them, calls `fetch_ca` once and `request_certificates` for each.

Order matters. The key is on disk before the controller hears of it, so a kill at any moment leaves a key that may repeat the call. The CA
is fetched without verification and believed only if the hash of its public key is the one in the join command; the token is sent to
nobody else. `identity.json` is written last.
"""

from __future__ import annotations

import hashlib
import http.client
import ssl
import sys
import urllib.parse
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from rkfleet.disk import SystemDisk, write_durably
from rkfleet.enrolment import CA_PATH, CERTIFICATES_PATH, CertificateRequest, CertificateResponse
from rkfleet.errors import FleetError, Invalid, PermissionDenied, Unavailable, error_for_reason
from rkfleet.identity import Enrolment

__all__ = ["enroll", "fetch_ca", "main", "new_key", "private_pem", "request_certificates"]

TIMEOUT_SECONDS: Final = 20  # One connection and one signature; a controller that takes longer is asked again later.
ANSWER_BYTES_MAX: Final = 65536  # Four certificates are 4 kB.


class _Status(msgspec.Struct, frozen=True):
    message: str = ""
    reason: str = ""


def enroll(directory: Path, enrolment: Enrolment) -> None:
    """Get an identity and write it to `directory`.

    Raises:
        PermissionDenied: The CA is not the pinned one, or the controller refuses the token.
        Invalid: The name or the URL cannot be used.
        Unavailable: The controller cannot be reached, or the disk is full.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = _ensure_key(directory / "key.pem")
    except OSError as error:
        raise Unavailable(f"identity directory {directory} cannot be written: {error.strerror}") from error
    answer = request_certificates(enrolment, key, fetch_ca(enrolment.controller, enrolment.ca_pin))
    try:
        _keep(directory, enrolment, answer)
    except OSError as error:
        raise Unavailable(f"identity directory {directory} cannot be written: {error.strerror}") from error


def fetch_ca(controller: str, pin: str) -> str:
    """Return the CA certificate of the controller at this URL, whose public key has the pinned hash.

    Raises:
        PermissionDenied: The CA is another one.
        Invalid: The URL cannot be used.
        Unavailable: The controller cannot be reached.
    """
    host, port = _address(controller)
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    status, body = _call(host, port, unverified, CA_PATH)
    if status != 200:
        raise Unavailable(f"https://{host}:{port}{CA_PATH} answered {status}; is this a rkfleet controller?")
    try:
        public_key = x509.load_pem_x509_certificate(body).public_key()
    except ValueError as error:
        raise Unavailable(f"https://{host}:{port}{CA_PATH} is no certificate: {error}") from error
    found = hashlib.sha256(public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    if pin.lower() != f"sha256:{found}":
        raise PermissionDenied(f"the CA of https://{host}:{port} has the pin sha256:{found}, expected {pin}; the token was not sent")
    return body.decode()


def request_certificates(enrolment: Enrolment, key: ec.EllipticCurvePrivateKey, ca_pem: str) -> CertificateResponse:
    """Send the token with a certificate request for this key, and return the answer; nothing is kept.

    Args:
        enrolment: Who asks, and with which token.
        key: Its key; the same key may repeat the request.
        ca_pem: What `fetch_ca` returned: nobody else gets the token.

    Raises:
        PermissionDenied: The controller is not the CA's, or refuses the token.
        Invalid: The name or the URL cannot be used.
        Unavailable: The controller cannot be reached.
    """
    host, port = _address(enrolment.controller)
    return _post(host, port, ca_pem, _request(enrolment, key))


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a key as PEM, without a password."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _address(url: str) -> tuple[str, int]:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.path.strip("/"):
        raise Invalid(f"controller URL {url!r} must be https://host:port")
    return parts.hostname, parts.port or 443


def _ensure_key(path: Path) -> ec.EllipticCurvePrivateKey:
    if path.exists():
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except ValueError as error:
            raise Invalid(f"{path} cannot be read as a private key: {error}; delete it and join again with a new token") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise Invalid(f"{path} must hold a P-256 key; delete it and join again with a new token")
        return key
    made = new_key()
    _write(path, private_pem(made))
    return made


def _request(enrolment: Enrolment, key: ec.EllipticCurvePrivateKey) -> CertificateRequest:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, enrolment.name[:64])])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return CertificateRequest(
        token=enrolment.token,
        csr_pem=csr.public_bytes(serialization.Encoding.PEM).decode(),
        board_name=enrolment.name if enrolment.role == "board" else "",
        gateway_name=enrolment.name if enrolment.role == "gateway" else "",
        machine_id=enrolment.machine_id,
    )


def _post(host: str, port: int, ca_pem: str, request: CertificateRequest) -> CertificateResponse:
    verified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    verified.load_verify_locations(cadata=ca_pem)
    status, body = _call(host, port, verified, CERTIFICATES_PATH, msgspec.json.encode(request))
    try:
        if status == 200:
            return msgspec.json.decode(body, type=CertificateResponse)
        refusal = msgspec.json.decode(body, type=_Status)
    except msgspec.MsgspecError as error:
        raise Unavailable(f"https://{host}:{port}{CERTIFICATES_PATH} answered {status} and no JSON that is known here") from error
    raise error_for_reason(refusal.reason)(refusal.message or f"enrolment was answered {status}")


def _call(host: str, port: int, context: ssl.SSLContext, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Return status and body of a GET, or of a POST if there is a body to send."""
    connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=context)
    try:
        connection.request("POST" if body else "GET", path, body, {"content-type": "application/json"} if body else {})
        answer = connection.getresponse()
        return answer.status, answer.read(ANSWER_BYTES_MAX)
    except ssl.SSLCertVerificationError as error:
        raise PermissionDenied(f"https://{host}:{port} cannot be trusted: {error.verify_message}; the token was not sent") from error
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"controller https://{host}:{port} cannot be reached: {error}") from error
    finally:
        connection.close()


def _keep(directory: Path, enrolment: Enrolment, answer: CertificateResponse) -> None:
    _write(directory / "cert.pem", answer.certificate_pem.encode())
    _write(directory / "ca.pem", answer.ca_pem.encode())
    if enrolment.role == "board":
        _write(directory / "serving.pem", answer.serving_certificate_pem.encode())
        _write(directory / "gateways-ca.pem", answer.gateways_ca_pem.encode())
    facts = {
        "fleetId": answer.fleet_id,
        "name": enrolment.name,
        "controller": enrolment.controller,
        "sessionAddress": answer.session_address,
        "apiToken": answer.api_token,
    }
    _write(directory / "identity.json", msgspec.json.format(msgspec.json.encode(facts), indent=2))


def _write(path: Path, content: bytes) -> None:
    write_durably(path, content, path.with_name(f".{path.name}.partial"), SystemDisk())


def main() -> int:
    """Enrol with what stands on standard input; return the exit status of the error, 0 for none."""
    try:
        enroll(Path(sys.argv[1]), msgspec.json.decode(sys.stdin.buffer.read(), type=Enrolment))
    except FleetError as error:
        print(error.message, file=sys.stderr)  # noqa: T201 (read by the parent)
        return error.exit_status
    except (IndexError, msgspec.MsgspecError) as error:
        print(f"usage: python -m rkfleet.enroll DIRECTORY < enrolment.json ({error})", file=sys.stderr)  # noqa: T201 (as above)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
