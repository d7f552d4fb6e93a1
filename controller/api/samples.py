"""Samples of outages over HTTP: what a board delivered after it was away, as OpenMetrics.

In: a request of an admin. Out: text that `promtool tsdb create-blocks-from openmetrics` takes. `rkfleet board samples` reads it. It is
apart from the resource API because it is no object: nobody declares, watches or patches measurements.

    GET /samples/v1alpha1/boards/NAME
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from controller.api import auth
from controller.outages import Outages
from controller.store.base import Store, decode_item
from rkfleet.errors import PermissionDenied
from rkfleet.kinds.board import Board
from rkfleet.meta import Ref

__all__ = ["sample_routes"]

PATH: Final = "/samples/v1alpha1/boards/{name}"
CONTENT_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def sample_routes(identify: auth.Identify, store: Store, outages: Outages) -> list[Route]:
    """Return the routes for the API application."""

    async def samples(request: Request) -> Response:
        """Answer with everything that is kept of a Board.

        Raises:
            NotFound: There is no such Board.
            PermissionDenied: The caller is no admin.
        """
        identity = auth.require_caller(identify, request)
        if not auth.is_admin(identity):
            raise PermissionDenied(f"{identity.name} has the role {identity.role}; samples of boards are read by an admin")
        name = request.path_params["name"]
        board = decode_item(Board, await store.get(Ref(Board.resource.name, "", name)))
        simulated = board.status.simulated
        job = "rkfleet-simulated-board" if simulated else "rkfleet-board"  # As manifests/prometheus/prometheus.yml names them.
        labels = {"job": job, "board": name, "soc": board.status.soc, "simulated": "true" if simulated else "false"}
        text = await asyncio.to_thread(outages.openmetrics, name, board.metadata.uid, labels)
        return Response(text, headers={"content-type": CONTENT_TYPE, "cache-control": "no-store"})

    return [Route(PATH, samples, methods=["GET"])]
