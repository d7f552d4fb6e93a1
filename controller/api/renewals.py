"""Renewal: new certificates for boards and gateways that are known, over HTTPS on the API port, also after the old ones have ended.

In: a signature by the known key over a new certificate request, a name and a machine. Out: certificates over the same key. Called by the
renewal client (`rkfleet/renew.py`). No client certificate is asked for on this port, so one that has ended is no obstacle, and nothing but
the controller's clock has a say. Nothing is stored: a board that was killed before it wrote the answer asks again.

    POST /enrollment/v1alpha1/renewals

A board is known by the key that its Board is bound to; deleting the Board ends that. A gateway is known by its API token and by a
certificate that this fleet's gateways' CA once issued to that name over that key.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from controller.api import auth
from controller.api.enrollment import board_certificates, gateway_certificate, json_answer, read_body
from controller.api.limits import FailureLimit
from controller.api.scope import note
from controller.planning.identity import join_again
from controller.store.base import Store
from controller.trust.binding import MACHINE_ANNOTATION, binding_of
from controller.trust.pki import Pki, PublicKey, read_request
from controller.trust.tokens import Tokens
from rkfleet.clock import Clock
from rkfleet.enrolment import RENEWALS_PATH, CertificateResponse, RenewalRequest, renewal_statement
from rkfleet.errors import BadRequest, FleetError, NotFound, PermissionDenied
from rkfleet.kinds.board import Board
from rkfleet.meta import Ref
from rkfleet.metric_names import RENEWALS
from rkfleet.metrics import Metrics

__all__ = ["Renewals"]


class Renewals:
    """The route and what it needs.

    Args:
        pki: Issues the certificates.
        tokens: Knows gateways by their API tokens.
        store: Where Boards say which key is theirs.
        clock: Wall time of certificates; monotonic time of the limit.
        metrics: Where renewals are counted.
        session_address: `host:port` at which boards reach the session listener.
    """

    def __init__(self, *, pki: Pki, tokens: Tokens, store: Store, clock: Clock, metrics: Metrics, session_address: str) -> None:
        self._pki: Final = pki
        self._tokens: Final = tokens
        self._store: Final = store
        self._clock: Final = clock
        self._metrics: Final = metrics
        self._session_address: Final = session_address
        self._limit: Final = FailureLimit("renewals", clock)

    def routes(self) -> list[Route]:
        """Return the routes for the API application."""
        return [Route(RENEWALS_PATH, self._renewals, methods=["POST"])]

    async def _renewals(self, request: Request) -> Response:
        caller = request.client.host if request.client else "nowhere"
        try:
            self._limit.check(caller)
            answer = await self._renew(request)
        except FleetError as refusal:
            if not refusal.retryable:
                self._limit.failed(caller)
            self._metrics.counter(RENEWALS, result="failed" if refusal.retryable else "refused").inc()
            raise
        self._metrics.counter(RENEWALS, result="issued").inc()
        return json_answer(answer)

    async def _renew(self, request: Request) -> CertificateResponse:
        asked = await read_body(request, RenewalRequest)
        if bool(asked.board_name) == bool(asked.gateway_name):
            raise BadRequest("a renewal names either boardName or gatewayName")
        note(
            request.scope,
            "rkfleet.dev/renewal",
            f"{'board' if asked.board_name else 'gateway'} {(asked.board_name or asked.gateway_name)[:253]}",
        )
        key = read_request(asked.csr_pem)
        if not key.has_signed(renewal_statement(self._pki.fleet_id, asked), _signature(asked.proof)):
            raise PermissionDenied("proof is no signature of csrPem's key for this fleet, name, machine and csrPem")
        now = self._clock.now()
        if asked.board_name:
            await self._check_board(asked, key)
            return board_certificates(self._pki, asked.board_name, key, now, self._session_address)
        self._check_gateway(asked, key, auth.require_caller(self._tokens.identify, request))
        return gateway_certificate(self._pki, asked.gateway_name, key, now)

    async def _check_board(self, asked: RenewalRequest, key: PublicKey) -> None:
        """See to it that the Board is there and belongs to this key and machine."""
        name = asked.board_name
        try:
            bound = binding_of(await self._store.get(Ref(Board.resource.name, "", name)))
        except NotFound as error:
            raise PermissionDenied(f"board {name} does not exist here (any more), so its key is revoked; {join_again(name)}") from error
        if bound.key_sha256 != key.sha256:
            raise PermissionDenied(f"board {name} does not belong to this key, which cannot be renewed; {join_again(name)}")
        if bound.machine_id and bound.machine_id != asked.machine_id:
            raise PermissionDenied(
                f"board {name} belongs to another machine than {asked.machine_id or 'one without identity'};"
                f" if the board moved there: kubectl annotate board {name} {MACHINE_ANNOTATION}-"
            )

    def _check_gateway(self, asked: RenewalRequest, key: PublicKey, identity: auth.Identity) -> None:
        """See to it that the caller is that gateway, and that its certificate was over this key."""
        peer = self._pki.issued_to("gateways", asked.certificate_pem.encode())
        if (identity.role, identity.name) != ("gateway", asked.gateway_name):
            raise PermissionDenied(
                f"the API token is {identity.name}'s, with the role {identity.role}, and not gateway {asked.gateway_name}'s"
            )
        if (peer.fleet_id, peer.name, peer.key_sha256) != (self._pki.fleet_id, asked.gateway_name, key.sha256):
            raise PermissionDenied(
                f"certificatePem is not of gateway {asked.gateway_name} with this key; join again: rkfleet join-token create --role gateway"
            )


def _signature(proof: str) -> bytes:
    try:
        return base64.b64decode(proof, validate=True)
    except (ValueError, binascii.Error) as error:
        raise BadRequest(f"proof is not base64: {error}") from error
