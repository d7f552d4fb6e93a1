"""A row: a command of kubectl as documents name it, and what must be true of the world after it ran.

A row gets a `Bench`: an API that it shares with other rows, one version of kubectl, and a namespace of its own. It is told by its name in
`docs/reference/kubectl.md`. `known` says for which versions it does not work and why; there it must fail, so that a sentence that is no
longer true is found.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

from tests.support.api import RunningApi
from tests.support.kubectl import Kubectl, Ran
from tests.support.objects import GROUP_PATH, deployment

Json = dict[str, Any]
MERGE = {"headers": {"content-type": "application/merge-patch+json"}}


class Bench:
    """What a row works with.

    Attributes:
        api: The API; shared, so rows touch only their namespace and cluster-wide objects whose names begin with it.
        kubectl: The version under test.
        minor: Its minor version.
        namespace: Namespace of the row; it exists.
        deployments: Path of its ModelDeployments.
    """

    def __init__(self, api: RunningApi, kubectl: Kubectl, minor: int, namespace: str) -> None:
        self.api = api
        self.kubectl = kubectl
        self.minor = minor
        self.namespace = namespace
        self.deployments = f"{GROUP_PATH}/namespaces/{namespace}/modeldeployments"

    async def run(self, *arguments: str, stdin: Any = None, env: dict[str, str] | None = None) -> Ran:
        """Run kubectl in the row's namespace."""
        return await self.kubectl.run("-n", self.namespace, *arguments, stdin=stdin, env=env)

    async def ok(self, *arguments: str, stdin: Any = None, env: dict[str, str] | None = None) -> str:
        """As `run`, demanding success; returns what it printed."""
        return await self.kubectl.ok("-n", self.namespace, *arguments, stdin=stdin, env=env)

    def started(self, *arguments: str) -> AbstractAsyncContextManager[Any]:
        """Start kubectl in the row's namespace."""
        return self.kubectl.started("-n", self.namespace, *arguments)

    def deployment(self, name: str = "qwen", **spec: Any) -> Json:
        """Return a ModelDeployment of the row's namespace."""
        return deployment(name, namespace=self.namespace, **spec)

    async def create(self, path: str, body: Json) -> Json:
        """Store an object, not by kubectl."""
        answer = await self.api.call("POST", path, body)
        assert answer.status_code == 201, answer.text
        stored: Json = answer.json()
        return stored

    async def stored(self, path: str) -> Json:
        """Return the object at a path, as the API has it now; {} if there is none."""
        answer = await self.api.call("GET", path)
        found: Json = {} if answer.status_code == 404 else answer.json()
        return found

    async def qwen(self) -> Json:
        """Return the ModelDeployment `qwen` of the row."""
        return await self.stored(f"{self.deployments}/qwen")


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        command: The command, as the table shows it.
        check: Runs it and asserts.
        known: By minor version, why it does not work; `0` stands for every version.
    """

    command: str
    check: Callable[[Bench], Awaitable[None]]
    known: dict[int, str]

    def reason(self, minor: int) -> str:
        """Return why the row does not work with this version; empty when it must."""
        return self.known.get(minor) or self.known.get(0, "")


def row(rows: list[Row], command: str, known: dict[int, str] | None = None) -> Callable[[Callable[[Bench], Awaitable[None]]], None]:
    """Put the decorated check into `rows`."""

    def add(check: Callable[[Bench], Awaitable[None]]) -> None:
        rows.append(Row(command, check, known or {}))

    return add
