"""Enrolment on the wire: paths and bodies of the HTTPS calls by which boards and gateways join, and the names in certificates.

Used by the enrolment client (`rkfleet/enroll.py`), the controller's routes (`controller/api/enrollment.py`) and the command line. Field
names are camelCase in JSON; decoding is tolerant of fields that a newer peer adds.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal

import msgspec

__all__ = [
    "CA_PATH",
    "CERTIFICATES_PATH",
    "JOIN_TOKENS_PATH",
    "RENEWALS_PATH",
    "CertificateRequest",
    "CertificateResponse",
    "JoinTokenList",
    "JoinTokenRequest",
    "JoinTokenResponse",
    "JoinTokenSummary",
    "RenewalRequest",
    "renewal_statement",
    "server_name",
    "serving_name",
]

CA_PATH: Final = "/.well-known/rkfleet/ca.crt"
CERTIFICATES_PATH: Final = "/enrollment/v1alpha1/certificates"
RENEWALS_PATH: Final = "/enrollment/v1alpha1/renewals"
JOIN_TOKENS_PATH: Final = "/enrollment/v1alpha1/join-tokens"

JOIN_SECONDS_DEFAULT: Final = 3600  # Long enough to carry a command to a board, short enough to be forgotten in a shell history.

Role = Literal["board", "gateway"]


class _Body(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    pass


class CertificateRequest(_Body, frozen=True, kw_only=True):
    """POST `CERTIFICATES_PATH`: a board gives `board_name` and `machine_id`, a gateway `gateway_name`."""

    token: str
    csr_pem: str
    board_name: str = ""
    gateway_name: str = ""
    machine_id: str = ""


class CertificateResponse(_Body, frozen=True, kw_only=True):
    """Its answer.

    Attributes:
        certificate_pem: Client certificate: of the session for a board, towards boards for a gateway.
        ca_pem: Servers CA.
        serving_certificate_pem: Boards: certificate of the serving listener, over the same key.
        gateways_ca_pem: Boards: whom the serving listener lets in.
        session_address: Boards: `host:port` of the session listener.
        api_token: Gateways: bearer token for the API; a renewal does not change it and leaves it out.
        issued: When they were issued, RFC 3339 by the controller's clock; empty from a controller of before it was told.
        expires: When they end.
    """

    certificate_pem: str
    ca_pem: str
    fleet_id: str
    serving_certificate_pem: str = ""
    gateways_ca_pem: str = ""
    session_address: str = ""
    api_token: str = ""
    issued: str = ""
    expires: str = ""


class RenewalRequest(_Body, frozen=True, kw_only=True):
    """POST `RENEWALS_PATH`: new certificates over the key that is known already; the answer is a CertificateResponse.

    Attributes:
        csr_pem: New certificate request, made with that key.
        proof: Signature by that key over `renewal_statement`, base64; ECDSA with SHA-256.
        board_name: Boards: their name; `machine_id` is the machine that they are bound to.
        gateway_name: Gateways: their name; they send their API token as well, and `certificate_pem`.
        certificate_pem: Gateways: the certificate that they have, which may have ended.
    """

    csr_pem: str
    proof: str
    board_name: str = ""
    gateway_name: str = ""
    machine_id: str = ""
    certificate_pem: str = ""


class JoinTokenRequest(_Body, frozen=True, kw_only=True):
    """POST `JOIN_TOKENS_PATH`, by an admin."""

    role: Role = "board"
    lifetime_seconds: int = JOIN_SECONDS_DEFAULT


class JoinTokenResponse(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Its answer: what a join command carries, and when the token expires (RFC 3339)."""

    token: str
    role: Role
    expires: str
    ca_pin: str


class JoinTokenSummary(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A join token that can still be used, without its secret; `used_by` is who used it first, empty for nobody yet."""

    id: str
    role: Role
    expires: str
    used_by: str


class JoinTokenList(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """GET `JOIN_TOKENS_PATH`, by an admin."""

    items: tuple[JoinTokenSummary, ...]


def server_name(server: str, fleet_id: str) -> str:
    """Return the name in the certificate of `controller` or `registry`; boards verify it, whatever address they dialled."""
    return f"{server}.{fleet_id}"


def serving_name(board: str, fleet_id: str) -> str:
    """Return the name in a board's serving certificate; callers dial the board's address and verify this name."""
    return f"{board}.boards.{fleet_id}"


def renewal_statement(fleet_id: str, request: RenewalRequest) -> bytes:
    """Return what a renewal is signed over: for whom, for which machine and for which certificate request it asks."""
    who = f"boards/{request.board_name}" if request.board_name else f"gateways/{request.gateway_name}"
    csr_sha256 = hashlib.sha256(request.csr_pem.encode()).hexdigest()
    return f"rkfleet renewal\n{fleet_id}\n{who}\n{request.machine_id}\n{csr_sha256}".encode()
