"""The renewal client: new certificates over the key that is on the disk.

In: a `Renewal` as JSON on standard input and the identity directory as argument. Out: the certificates of `rkfleet/identity.py`,
replaced, or one line on standard error and the exit status of the error. Run as `python -m rkfleet.renew DIRECTORY` by
`rkfleet/renewal.py`; a process of its own for the same reason as `rkfleet/enroll.py`.

Nothing changes at the controller by a renewal, and the key stays. So a kill between its answer and the disk leaves the certificate that
was there, and the same request again is as good as the first.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from rkfleet import enrolment_client
from rkfleet.enrolment import RENEWALS_PATH, RenewalRequest, renewal_statement
from rkfleet.errors import FailedPrecondition, FleetError, Unavailable
from rkfleet.identity import load_identity
from rkfleet.renewal import Renewal

__all__ = ["main", "renew", "signed_request"]


def renew(directory: Path, renewal: Renewal) -> None:
    """Replace the certificates in `directory` by new ones.

    Raises:
        FailedPrecondition: There is no identity.
        PermissionDenied: The server is not this fleet's controller, or the controller refuses; the message says why.
        ResourceExhausted: This address was refused too often lately.
        Unavailable: The controller cannot be reached, or the disk is full.
    """
    identity = load_identity(directory)
    if identity is None:
        raise FailedPrecondition(f"{directory} holds no identity to renew; join first, see: rkfleet join-token create")
    try:
        key, ca_pem, certificate_pem = (
            enrolment_client.load_key(identity.key_file),
            identity.ca_file.read_text(),
            identity.cert_file.read_text(),
        )
        request = RenewalRequest(
            csr_pem=enrolment_client.sign_request(key, identity.name),
            proof="",
            board_name=identity.name if renewal.role == "board" else "",
            gateway_name=identity.name if renewal.role == "gateway" else "",
            machine_id=renewal.machine_id,
            certificate_pem=certificate_pem if renewal.role == "gateway" else "",
        )
        signed = signed_request(request, identity.fleet_id, key)
        answer = enrolment_client.post(identity.controller, RENEWALS_PATH, ca_pem, signed, identity.api_token)
        enrolment_client.keep(
            directory, answer, role=renewal.role, name=identity.name, controller=identity.controller, api_token=identity.api_token
        )
    except OSError as error:
        raise Unavailable(f"identity directory {directory} cannot be read or written: {error.strerror}") from error


def signed_request(request: RenewalRequest, fleet_id: str, key: ec.EllipticCurvePrivateKey) -> RenewalRequest:
    """Return the request with its proof."""
    signature = key.sign(renewal_statement(fleet_id, request), ec.ECDSA(hashes.SHA256()))
    return msgspec.structs.replace(request, proof=base64.b64encode(signature).decode())


def main() -> int:
    """Renew as standard input says; return the exit status of the error, 0 for none."""
    try:
        renew(Path(sys.argv[1]), msgspec.json.decode(sys.stdin.buffer.read(), type=Renewal))
    except FleetError as error:
        print(error.message, file=sys.stderr)  # noqa: T201 (read by the parent)
        return error.exit_status
    except (IndexError, msgspec.MsgspecError) as error:
        print(f"usage: python -m rkfleet.renew DIRECTORY < renewal.json ({error})", file=sys.stderr)  # noqa: T201 (as above)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
