"""Enrolment on the wire: paths and bodies of the HTTPS calls by which boards and gateways join, and the names in certificates.

Used by the enrolment client (`rkfleet/enroll.py`), the controller's routes (`controller/api/enrollment.py`) and the command line. Field
names are camelCase in JSON; decoding is tolerant of fields that a newer peer adds.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

__all__ = [
    "CA_PATH",
    "CERTIFICATES_PATH",
    "JOIN_TOKENS_PATH",
    "CertificateRequest",
    "CertificateResponse",
    "JoinTokenList",
    "JoinTokenRequest",
    "JoinTokenResponse",
    "JoinTokenSummary",
    "server_name",
    "serving_name",
]

CA_PATH: Final = "/.well-known/rkfleet/ca.crt"
CERTIFICATES_PATH: Final = "/enrollment/v1alpha1/certificates"
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
        api_token: Gateways: bearer token for the API.
    """

    certificate_pem: str
    ca_pem: str
    fleet_id: str
    serving_certificate_pem: str = ""
    gateways_ca_pem: str = ""
    session_address: str = ""
    api_token: str = ""


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
