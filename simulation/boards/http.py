"""The HTTP listener of the host: health, metrics of all boards, where Prometheus finds each, and the switch of every board.

In: the boards. Out: an ASGI application. Served by `simulation/boards/app.py` on the host's ops address.

    GET  /healthz /readyz /metrics        as every program; ready when every board that is on is in session
    GET  /boards                          all boards: state, URLs
    GET  /boards/NAME/metrics             one board's metrics, as its own listener has them
    POST /boards/NAME/stop, /cut, /start  switch a board off, in good order or as a power cut, and on; from loopback only
    GET  /discovery                       targets for Prometheus' `http_sd_configs`, one per board

Source of the last: https://prometheus.io/docs/prometheus/latest/http_sd/.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, Final

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from rkfleet.disk import in_thread
from rkfleet.metric_names import SIMULATED_BOARDS
from rkfleet.metrics import Metrics
from rkfleet.ops import Receive, Send, ops_app
from simulation.boards.board import STATES, SimulatedBoard

__all__ = ["HostApp"]

NAMES_SHOWN_MAX: Final = 5  # Of boards that are waited for, in one sentence.
METRICS: Final = b"text/plain; version=0.0.4; charset=utf-8"
JSON: Final = b"application/json"


class HostApp:
    """The application."""

    def __init__(self, boards: Sequence[SimulatedBoard], metrics: Metrics) -> None:
        """Take the boards and the host's own metrics."""
        self._boards: Final = {board.name: board for board in boards}
        self._metrics: Final = metrics
        self._every: Final = CollectorRegistry(auto_describe=False)
        self._every.register(_AllBoards(self._boards, metrics))
        self._ops: Final = ops_app(self.not_ready, metrics.text, otherwise=self._answer)

    def not_ready(self) -> str:
        """Return which boards that are on are not in session, and why the first is not; empty when all are."""
        missing = [board for board in self._boards.values() if board.state in {"away", "failed"}]
        if not missing:
            return ""
        names = ", ".join(board.name for board in missing[:NAMES_SHOWN_MAX]) + (" and more" if len(missing) > NAMES_SHOWN_MAX else "")
        return f"{len(missing)} of {len(self._boards)} boards are not in session ({names}); {missing[0].name}: {missing[0].why}"

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] == "http" and scope["path"] == "/metrics":
            # A hundred boards have ten thousand samples; writing them down would hold the loop that all boards share.
            await _send(send, 200, await in_thread(self._all_metrics), METRICS)
        else:
            await self._ops(scope, receive, send)

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        del receive
        words = scope["path"].strip("/").split("/")
        board = self._boards.get(words[1]) if len(words) > 1 else None
        match scope["method"], words:
            case "GET", ["boards"]:
                await _send(send, 200, _encode({"boards": [_described(one) for one in self._boards.values()]}), JSON)
            case "GET", ["discovery"]:
                await _send(send, 200, _encode(self._targets(scope)), JSON)
            case "GET", ["boards", _, "metrics"] if board is not None:
                text = board.agent.metrics.text() if board.agent is not None else None
                await (_send(send, 200, text, METRICS) if text is not None else _refuse(send, 503, f"{board.name}: {board.why}"))
            case "POST", ["boards", _, "stop" | "cut" | "start" as verb] if board is not None:
                if why := _why_not_trusted(scope):
                    await _refuse(send, 403, why)
                    return
                {"stop": board.switch_off, "cut": board.cut, "start": board.switch_on}[verb]()
                await _send(send, 200, _encode(_described(board)), JSON)
            case _:
                paths = "GET /boards, /discovery, /boards/NAME/metrics, POST /boards/NAME/stop, /cut, /start"
                await _refuse(
                    send, 404, f"{scope['method']} {scope['path']} is not served here, which serves {paths} for boards of this host"
                )

    def _all_metrics(self) -> bytes:
        return generate_latest(self._every)

    def _targets(self, scope: MutableMapping[str, Any]) -> list[dict[str, Any]]:
        """Return one target per board, at the address by which the caller has found this listener."""
        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        return [
            {
                "targets": [host],
                "labels": {"__metrics_path__": f"/boards/{board.name}/metrics", **_labels(board)},
            }
            for board in self._boards.values()
        ]


class _AllBoards(Collector):
    """The host's own metrics, and those of every board that is on, with labels that tell them apart."""

    def __init__(self, boards: Mapping[str, SimulatedBoard], metrics: Metrics) -> None:
        self._boards: Final = boards
        self._metrics: Final = metrics

    def collect(self) -> Iterable[Family]:
        """Return every family once, with the samples of all."""
        states = [board.state for board in self._boards.values()]
        for state in STATES:
            self._metrics.gauge(SIMULATED_BOARDS, state=state).set(states.count(state))
        merged: dict[str, Family] = {}
        for family in self._metrics.families():
            _add(merged, family, {})
        for board in self._boards.values():
            agent = board.agent
            for family in agent.metrics.families() if agent is not None else ():
                _add(merged, family, _labels(board))
        return merged.values()


def _add(merged: dict[str, Family], family: Family, labels: Mapping[str, str]) -> None:
    target = merged.setdefault(family.name, Family(family.name, family.documentation, family.type, family.unit))
    target.samples += [sample._replace(labels={**sample.labels, **labels}) for sample in family.samples]


def _labels(board: SimulatedBoard) -> Mapping[str, str]:
    return {"board": board.name, "soc": board.chip.soc, "simulated": "true"}


def _described(board: SimulatedBoard) -> dict[str, Any]:
    return {
        "name": board.name,
        "soc": board.chip.soc,
        "simulated": True,
        "running": board.state != "off",
        "state": board.state,
        "message": board.why,
        "opsUrl": board.ops_url,
        "servingUrl": board.serving_url,
    }


def _why_not_trusted(scope: MutableMapping[str, Any]) -> str:
    """Return why this caller may not switch boards; empty if it may. A browser's page, which sends Origin, may not either."""
    client = scope.get("client")
    if client is None or not ipaddress.ip_address(client[0]).is_loopback:
        return "boards are switched from loopback only"
    return "boards are not switched by web pages" if any(name == b"origin" for name, _ in scope["headers"]) else ""


def _encode(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value)) + b"\n"


async def _refuse(send: Send, status: int, why: str) -> None:
    await _send(send, status, f"{why}\n".encode(), b"text/plain; charset=utf-8")


async def _send(send: Send, status: int, body: bytes, content_type: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
