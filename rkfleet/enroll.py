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
import sys
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from rkfleet import enrolment_client
from rkfleet.enrolment import CA_PATH, CERTIFICATES_PATH, CertificateRequest, CertificateResponse
from rkfleet.enrolment_client import new_key, private_pem
from rkfleet.errors import FleetError, PermissionDenied, Unavailable
from rkfleet.identity import Enrolment

__all__ = ["enroll", "fetch_ca", "main", "new_key", "private_pem", "request_certificates"]


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
        answer = request_certificates(enrolment, key, fetch_ca(enrolment.controller, enrolment.ca_pin))
        enrolment_client.keep(
            directory, answer, role=enrolment.role, name=enrolment.name, controller=enrolment.controller, api_token=answer.api_token
        )
    except OSError as error:
        raise Unavailable(f"identity directory {directory} cannot be written: {error.strerror}") from error


def fetch_ca(controller: str, pin: str) -> str:
    """Return the CA certificate of the controller at this URL, whose public key has the pinned hash.

    Raises:
        PermissionDenied: The CA is another one.
        Invalid: The URL cannot be used.
        Unavailable: The controller cannot be reached.
    """
    host, port = enrolment_client.address_of(controller)
    status, body = enrolment_client.call(host, port, enrolment_client.unverified(), CA_PATH)
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
    request = CertificateRequest(
        token=enrolment.token,
        csr_pem=enrolment_client.sign_request(key, enrolment.name),
        board_name=enrolment.name if enrolment.role == "board" else "",
        gateway_name=enrolment.name if enrolment.role == "gateway" else "",
        machine_id=enrolment.machine_id,
    )
    return enrolment_client.post(enrolment.controller, CERTIFICATES_PATH, ca_pem, request)


def _ensure_key(path: Path) -> ec.EllipticCurvePrivateKey:
    if path.exists():
        return enrolment_client.load_key(path)
    made = new_key()
    enrolment_client.keep_file(path, private_pem(made))
    return made


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
