"""Enrolment: how boards and gateways join, over HTTPS on the API port.

In: a join token and a certificate request. Out: certificates, and for a board its Board object. Called by the enrolment client
(`rkfleet/enroll.py`) and, for join tokens, by the command line. It is apart from the session listener because one gRPC port cannot both
demand certificates and accept callers that have none yet, and apart from the resource API because its callers have no API token.

    GET  /.well-known/rkfleet/ca.crt            anybody: the servers CA, to be compared with the pin of the join command
    POST /enrollment/v1alpha1/certificates      a join token: certificates
    POST /enrollment/v1alpha1/renewals          a signature by the known key: certificates; see `renewals.py`
    POST /enrollment/v1alpha1/join-tokens       admin: a new join token
    GET  /enrollment/v1alpha1/join-tokens       admin: those that can still be used, without their secrets

Errors are raised as `FleetError`; the API application turns them into Status objects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Final, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from controller.api import auth, bodies
from controller.api.scope import note
from controller.store.base import Item, Store
from controller.trust.binding import Binding, binding_of
from controller.trust.pki import MEMBER_LIFETIME, Pki, PublicKey, read_request
from controller.trust.tokens import Tokens
from rkfleet import enrolment
from rkfleet.clock import Clock, format_time
from rkfleet.enrolment import CertificateRequest, CertificateResponse, JoinTokenList, JoinTokenRequest, JoinTokenResponse, JoinTokenSummary
from rkfleet.errors import AlreadyExists, BadRequest, Cause, Conflict, Invalid, NotFound, PermissionDenied
from rkfleet.kinds.board import Board
from rkfleet.meta import Ref, check_name

__all__ = ["Enrollment", "board_certificates", "gateway_certificate", "json_answer", "read_body"]

MACHINE_ID_LENGTH_MAX: Final = 128  # machine-id(5) has 32 hex digits, a SoC serial 16; it is stored with the Board.
BIND_ATTEMPTS: Final = 5  # Others may label a Board while it is bound; five lost races in a row are a mistake.

T = TypeVar("T")


class Enrollment:
    """The routes and what they need.

    Args:
        pki: Issues the certificates.
        tokens: Redeems join tokens and issues the API tokens of gateways.
        store: Where the Board is made.
        clock: Wall time of certificates and objects.
        new_uid: Source of object uids.
        session_address: `host:port` at which boards reach the session listener.
    """

    def __init__(self, *, pki: Pki, tokens: Tokens, store: Store, clock: Clock, new_uid: Callable[[], str], session_address: str) -> None:
        self._pki: Final = pki
        self._tokens: Final = tokens
        self._store: Final = store
        self._clock: Final = clock
        self._new_uid: Final = new_uid
        self._session_address: Final = session_address

    def routes(self) -> list[Route]:
        """Return the routes for the API application."""
        return [
            Route(enrolment.CA_PATH, self._ca, methods=["GET"]),
            Route(enrolment.CERTIFICATES_PATH, self._certificates, methods=["POST"]),
            Route(enrolment.JOIN_TOKENS_PATH, self._create_join_token, methods=["POST"]),
            Route(enrolment.JOIN_TOKENS_PATH, self._list_join_tokens, methods=["GET"]),
        ]

    async def _ca(self, _: Request) -> Response:
        return Response(self._pki.ca_pem("servers"), media_type="application/x-pem-file")

    async def _certificates(self, request: Request) -> Response:
        asked = await read_body(request, CertificateRequest)
        role = self._tokens.role_of(asked.token)
        name = _checked_name(asked, role)
        note(request.scope, "rkfleet.dev/join", f"{role} {name} with join token {asked.token.split('.')[1]}")
        key = read_request(asked.csr_pem)
        if role == "board":
            answer = await self._join_board(name, asked, key)
        else:
            answer = await self._join_gateway(name, asked, key)
        return json_answer(answer)

    async def _join_board(self, name: str, asked: CertificateRequest, key: PublicKey) -> CertificateResponse:
        """Look at the name before the token is bound to it, so that a taken name does not cost a token."""
        binding = Binding(key.sha256, _checked_machine_id(asked.machine_id))
        await self._find_free_board(name, binding)
        await asyncio.to_thread(self._tokens.redeem, asked.token, name, key.sha256)
        await self._bind_board(name, binding)
        return board_certificates(self._pki, name, key, self._clock.now(), self._session_address)

    async def _join_gateway(self, name: str, asked: CertificateRequest, key: PublicKey) -> CertificateResponse:
        await asyncio.to_thread(self._tokens.redeem, asked.token, name, key.sha256)
        api_token = await asyncio.to_thread(self._tokens.issue_api_token, name, "gateway")
        return msgspec.structs.replace(gateway_certificate(self._pki, name, key, self._clock.now()), api_token=api_token)

    async def _find_free_board(self, name: str, binding: Binding) -> Item | None:
        """Return the Board of this name if this key may have it, or None if there is none.

        Raises:
            PermissionDenied: It belongs to another key.
        """
        try:
            board = await self._store.get(_ref(name))
        except NotFound:
            return None
        if binding_of(board).key_sha256 not in {"", binding.key_sha256}:
            raise PermissionDenied(
                f"board {name} already exists and belongs to another key; choose another name, or first: kubectl delete board {name}"
            )
        return board

    async def _bind_board(self, name: str, binding: Binding) -> None:
        """Make the Board, or bind the one that is there: made before by the same key, or by an operator who labelled it in advance."""
        for attempt in range(BIND_ATTEMPTS):
            try:
                board = await self._find_free_board(name, binding)
                if board is None:
                    await self._store.create(_ref(name), self._new_board(name, binding))
                elif binding_of(board) != binding:
                    patch = {"metadata": {"annotations": binding.annotations()}}
                    await self._store.patch(board.ref, patch, resource_version=board.resource_version, now=self._clock.now())
                return
            except (AlreadyExists, Conflict):  # Somebody wrote between our read and our write.
                if attempt + 1 == BIND_ATTEMPTS:
                    raise

    def _new_board(self, name: str, binding: Binding) -> dict[str, object]:
        resource = Board.resource
        return {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {
                "name": name,
                "uid": self._new_uid(),
                "creationTimestamp": format_time(self._clock.now()),
                "annotations": binding.annotations(),
            },
            "spec": {},
        }

    async def _create_join_token(self, request: Request) -> Response:
        self._require_admin(request)
        asked = await read_body(request, JoinTokenRequest)
        token, expires = await asyncio.to_thread(self._tokens.create_join_token, asked.role, asked.lifetime_seconds)
        note(request.scope, "rkfleet.dev/join-token", f"{token.split('.')[1]} for a {asked.role} until {expires}")
        return json_answer(JoinTokenResponse(token=token, role=asked.role, expires=expires, ca_pin=self._pki.ca_pin), 201)

    async def _list_join_tokens(self, request: Request) -> Response:
        self._require_admin(request)
        views = (JoinTokenSummary(id=one.id, role=one.role, expires=one.expires, used_by=one.used_by) for one in self._tokens.join_tokens())
        return json_answer(JoinTokenList(items=tuple(views)))

    def _require_admin(self, request: Request) -> None:
        identity = auth.require_caller(self._tokens.identify, request)
        if not auth.is_admin(identity):
            raise PermissionDenied(f"{identity.name} has the role {identity.role}; join tokens are made by an admin")


def board_certificates(pki: Pki, name: str, key: PublicKey, now: datetime, session_address: str) -> CertificateResponse:
    """Return new certificates of a board, with everything that it keeps beside them."""
    made = pki.issue_board(name, key, now)
    return CertificateResponse(
        certificate_pem=made.client,
        serving_certificate_pem=made.serving,
        ca_pem=pki.ca_pem("servers"),
        gateways_ca_pem=pki.ca_pem("gateways"),
        fleet_id=pki.fleet_id,
        session_address=session_address,
        issued=format_time(now),
        expires=format_time(now + MEMBER_LIFETIME),
    )


def gateway_certificate(pki: Pki, name: str, key: PublicKey, now: datetime) -> CertificateResponse:
    """Return a new certificate of a gateway, with everything that it keeps beside it but its API token."""
    return CertificateResponse(
        certificate_pem=pki.issue_gateway(name, key, now),
        ca_pem=pki.ca_pem("servers"),
        fleet_id=pki.fleet_id,
        issued=format_time(now),
        expires=format_time(now + MEMBER_LIFETIME),
    )


def _ref(name: str) -> Ref:
    return Ref(Board.resource.name, "", name)


def _checked_name(asked: CertificateRequest, role: str) -> str:
    field, name = ("boardName", asked.board_name) if role == "board" else ("gatewayName", asked.gateway_name)
    if problem := check_name(name, length_max=Board.resource.name_length_max):
        raise Invalid(f"this join token is for a {role}: {field} {problem}", (Cause(field, problem),))
    return name


def _checked_machine_id(machine_id: str) -> str:
    if len(machine_id) > MACHINE_ID_LENGTH_MAX or not machine_id.isprintable():
        problem = f"must be at most {MACHINE_ID_LENGTH_MAX} printable characters"
        raise Invalid(f"machineId {problem}", (Cause("machineId", problem),))
    return machine_id


async def read_body(request: Request, type_: type[T]) -> T:
    """Return the JSON body of a request.

    Raises:
        BadRequest: It is none of this type.
    """
    value = await bodies.read_json(request)
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the body is not a {type_.__name__}: {error}") from error


def json_answer(value: msgspec.Struct, status_code: int = 200) -> Response:
    """Return an answer that nobody may keep: most of them have secrets."""
    return Response(msgspec.json.encode(value), status_code, {"cache-control": "no-store"}, "application/json")
