"""What a board, or somebody on its way in, holds opens no route of the API: every route, every method, every kind of credential."""

from __future__ import annotations

import asyncio
import base64
import itertools
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx2
from starlette.routing import Route, Router

from controller.api.api_tokens import api_token_routes
from controller.api.app import create_api
from controller.api.enrollment import Enrollment
from controller.api.registry_tokens import registry_routes
from controller.api.renewals import Renewals
from controller.api.reviews import REVIEWS
from controller.api.samples import sample_routes
from controller.trust.pull_tokens import Access, Claims, TokenSigner
from rkfleet.api_keys import new_key
from rkfleet.clock import SystemClock
from rkfleet.kinds import KINDS
from rkfleet.ops import Tls, serve_asgi
from tests.integration.test_enrollment import enrolling_world, join
from tests.support.api import admission_of, new_id
from tests.support.sessions import SessionWorld

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
OPEN = {
    "/.well-known/rkfleet/ca.crt",  # What a joining board compares with its pin.
    "/enrollment/v1alpha1/certificates",  # A join token in the body opens this one, once.
    "/enrollment/v1alpha1/renewals",  # A signature by the known key opens this one, for its own certificate.
    "/healthz", "/livez", "/readyz", "/version", "/version/",
}  # fmt: skip


def served(world: SessionWorld) -> tuple[Router, object]:
    """Return the router of an API with every route that the controller has, and the application."""
    clock, address = SystemClock(), f"127.0.0.1:{world.port}"
    enrollment = Enrollment(pki=world.pki, tokens=world.tokens, store=world.store, clock=clock, new_uid=new_id, session_address=address)
    renewals = Renewals(
        pki=world.pki, tokens=world.tokens, store=world.store, clock=clock, metrics=world.metrics, session_address=address
    )  # fmt: skip
    signer = signer_of(world)
    edge = create_api(
        store=world.store, registry=KINDS, admission=admission_of(KINDS), identify=world.tokens.identify, clock=clock, ids=new_id,
        metrics=world.metrics, stopping=asyncio.Event(), version="0.1.0", extra_routes=[
            *enrollment.routes(), *renewals.routes(), *sample_routes(world.tokens.identify, world.store, world.outages),
            *registry_routes(world.tokens.identify, signer, "https://127.0.0.1:1", clock), *api_token_routes(world.tokens),
        ],
    )  # fmt: skip
    assert isinstance(edge.app, Router)
    return edge.app, edge


def signer_of(world: SessionWorld) -> TokenSigner:
    return TokenSigner((world.pki.directory / "registry-signing.key").read_bytes(), SystemClock())


def paths(router: Router) -> Iterator[str]:
    """Yield a path of every route; below the Kubernetes API one of each kind, object, subresource and review."""
    for route in router.routes:
        assert isinstance(route, Route)
        yield route.path.replace("{rest:path}", "v1").replace("{name}", "b-1")
    for kind in KINDS:
        resource = kind.resource
        root = f"/apis/{resource.api_version}" if resource.group else f"/api/{resource.version}"
        collection = f"{root}/namespaces/default/{resource.plural}" if resource.namespaced else f"{root}/{resource.plural}"
        yield from (root, f"{root}/{resource.plural}", collection, f"{collection}/b-1")
        yield from (f"{collection}/b-1/{part}" for part in ("status", "scale", "log") if getattr(resource, part))
    yield from (review.path for review in REVIEWS)


def test_what_boards_hold_opens_no_route(tmp_path: Path) -> None:
    """A client certificate, a pull token, an unused join token, an API key of a gateway's clients: all are nobody here."""

    async def scenario() -> None:
        async with enrolling_world(tmp_path / "controller") as world:
            identity = await join(tmp_path / "identity", world.enrolment())
            sessions = world.sessions
            router, edge = served(sessions)
            pull = signer_of(sessions).sign(Claims("board:b-1", (Access("default/qwen", ("pull",)),)))
            bearers = [pull, sessions.tokens.create_join_token("board")[0], sessions.tokens.create_join_token("gateway")[0], new_key()]
            basic = base64.b64encode(f"b-1:{pull}".encode()).decode()
            credentials = ["", *(f"Bearer {one}" for one in bearers), f"Basic {basic}"]
            context = ssl.create_default_context(cadata=sessions.pki.ca_pem("servers"))
            context.load_cert_chain(identity.cert_file, identity.key_file)
            cert_file, key_file = sessions.pki.server_files("controller")
            before = (await sessions.store.list("boards.rkfleet.dev")).items
            tokens = sessions.tokens.api_tokens()
            walked = set()
            async with (
                serve_asgi(edge, "127.0.0.1", 0, tls=Tls(cert_file, key_file)) as listener,  # type: ignore[arg-type]
                httpx2.AsyncClient(base_url=listener.url, verify=context) as client,
            ):
                turns = itertools.cycle(credentials[1:])
                for path in dict.fromkeys(paths(router)):
                    for method in METHODS:  # Reads are tried with every credential; each write with none and with the next in turn.
                        for credential in credentials if method == "GET" else ("", next(turns)):
                            headers = {"authorization": credential} if credential else {}
                            answer = await client.request(method, path, content=b"{}", headers=headers)
                            if path in OPEN:
                                assert method == "GET" or answer.status_code >= 400, (method, path)
                                continue
                            walked.add(path)
                            # 405 is said before anybody is asked who they are; 429 is a 401 that was said too often.
                            allowed = (401, 405, 429) if credential else (401, 405)
                            assert answer.status_code in allowed, (method, path, credential, answer.text)
            assert len(walked) > 40
            assert (await sessions.store.list("boards.rkfleet.dev")).items == before
            assert sessions.tokens.api_tokens() == tokens

    asyncio.run(scenario())
