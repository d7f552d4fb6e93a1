"""`rkfleet apply -f`: manifests to the API, all of them checked before the first is written."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rkfleet.cli.options import Kubeconfig, Namespace, with_client
from rkfleet.errors import Cause, FleetError, Invalid, NotFound

if TYPE_CHECKING:
    from rkfleet.client import ApiClient
    from rkfleet.manifest import Document
    from rkfleet.meta import Ref

__all__ = ["apply", "apply_documents"]

Outcome = tuple[str, str]


def apply(
    files: Annotated[list[str], typer.Option("--filename", "-f", help="File or folder; may be given again. '-' reads standard input.")],
    *,
    namespace: Namespace = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything on the server and write nothing.")] = False,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Make the fleet what the manifests say; nothing is written unless every document of every file is valid."""
    from rkfleet import manifest
    from rkfleet.kinds import KINDS

    documents = manifest.load(manifest.read(files, sys.stdin.buffer), KINDS)

    async def work(client: ApiClient) -> list[Outcome]:
        return await apply_documents(client, documents, namespace or client.cluster.namespace, dry_run=dry_run)

    for name, outcome in with_client(kubeconfig, work):
        print(f"{name} {outcome}{' (dry run)' if dry_run else ''}")


async def apply_documents(client: ApiClient, documents: tuple[Document, ...], namespace: str, *, dry_run: bool = False) -> list[Outcome]:
    """Check every document against the server, then write each; return (name, created|configured|unchanged).

    Raises:
        Invalid: Some are not valid; the causes carry file and line, and nothing was written.
    """
    found: list[tuple[Document, Cause]] = []
    outcomes: list[Outcome] = []
    for document in documents:
        try:
            outcomes.append(await _apply_one(client, document, namespace, dry_run=True))
        except Invalid as error:
            found += [(document, cause) for cause in error.causes or (Cause("", error.message),)]
        except FleetError as error:
            raise type(error)(f"{document.path}:{document.line}: {error.message}") from error
    if found:
        raise Invalid("\n".join(document.show(cause) for document, cause in found), tuple(cause for _, cause in found))
    if dry_run:
        return outcomes
    return [await _apply_one(client, document, namespace, dry_run=False) for document in documents]


async def _apply_one(client: ApiClient, document: Document, namespace: str, *, dry_run: bool) -> Outcome:
    from rkfleet.apply import three_way_patch, with_last_applied

    wanted: dict[str, Any] = document.obj
    ref = _ref(document, namespace)
    shown = f"{ref.resource.partition('.')[0]}/{ref.name}"
    try:
        live = await client.get(ref)
    except NotFound:
        await client.create(ref, with_last_applied(wanted), dry_run=dry_run)
        return shown, "created"
    patch = three_way_patch(wanted, live)
    if not patch:
        return shown, "unchanged"
    await client.patch(ref, patch, dry_run=dry_run)
    return shown, "configured"


def _ref(document: Document, namespace: str) -> Ref:
    from rkfleet.meta import Ref

    resource, meta = document.kind.resource, document.obj["metadata"]
    return Ref(resource.name, (meta.get("namespace") or namespace) if resource.namespaced else "", meta["name"])
