"""The controller's API with the enrolment routes, over HTTPS in this event loop, beside a session side that is there already."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from controller.api.app import create_api
from controller.api.enrollment import Enrollment
from controller.api.renewals import Renewals
from controller.api.samples import sample_routes
from rkfleet.clock import SystemClock
from rkfleet.kinds import KINDS
from rkfleet.ops import Listener, Tls, serve_asgi
from tests.support.api import admission_of, new_id
from tests.support.sessions import SessionWorld


@contextlib.asynccontextmanager
async def enrolling_api(world: SessionWorld) -> AsyncIterator[Listener]:
    """Serve it for as long as the block runs."""
    clock = SystemClock()
    enrollment = Enrollment(
        pki=world.pki, tokens=world.tokens, store=world.store, clock=clock, new_uid=new_id, session_address=f"127.0.0.1:{world.port}"
    )
    renewals = Renewals(
        pki=world.pki, tokens=world.tokens, store=world.store, clock=clock, metrics=world.metrics,
        session_address=f"127.0.0.1:{world.port}",
    )  # fmt: skip
    app = create_api(
        store=world.store, registry=KINDS, admission=admission_of(KINDS), identify=world.tokens.identify, clock=clock, ids=new_id,
        metrics=world.metrics, stopping=asyncio.Event(), version="0.1.0", extra_routes=[
            *enrollment.routes(), *renewals.routes(), *sample_routes(world.tokens.identify, world.store, world.outages)
        ],
    )  # fmt: skip
    cert_file, key_file = world.pki.server_files("controller")
    async with serve_asgi(app, "127.0.0.1", 0, tls=Tls(cert_file, key_file), shutdown_seconds=0.2) as listener:
        yield listener
