"""`rkfleet model push`, the work: files to the registry as ModelPack artifacts, then the Model that names them.

In: files with their variant words, facts about the model, an API client. Out: whether the Model was created, updated or unchanged. Bytes
go first and the Model last, so that a Model never names what was not there; a push that broke off is done again and sends only what is
missing.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Literal

import msgspec

from rkfleet.cli.variants import FurtherFile, Json, VariantWords, merge_variants, variant_of
from rkfleet.client import ApiClient
from rkfleet.clock import Clock
from rkfleet.disk import in_thread, read_pieces
from rkfleet.errors import AlreadyExists, Conflict, Invalid, NotFound
from rkfleet.kinds import Model
from rkfleet.kinds.model import ArtifactFile
from rkfleet.meta import Ref
from rkfleet.packaging import MANIFEST_MEDIA_TYPE, Package, PackageFacts, build_package, repository_name
from rkfleet.registry_client import Challenge, RegistryClient

__all__ = ["ApiTokens", "Order", "Outcome", "Pushed", "Step", "model_with", "push", "send", "write_model"]

Outcome = Literal["created", "updated", "unchanged"]
Step = Callable[[str, str, int, int], None]
"""Told what happens to which file, bytes done and bytes in all."""

Pushed = list[tuple[VariantWords, Json]]
"""Variants as they were written, and as the Model has them."""

WRITES_MAX: Final = 5  # Two people pushing variants of one Model at once; each Conflict means that the other one got through.


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be pushed: `files[i]` has the weights of `variants[i]`. Facts that are empty stay as they are in the Model."""

    name: str
    files: tuple[Path, ...]
    variants: tuple[VariantWords, ...]
    namespace: str = "default"
    family: str = ""
    parameters: str = ""
    license: str = ""

    def facts(self) -> Json:
        """Return the facts that were given, as fields of `Model.spec`."""
        given = {"family": self.family, "parameters": self.parameters, "license": self.license}
        return {field: value for field, value in given.items() if value}


class ApiTokens:
    """Registry tokens from the API, for whoever the API client is.

    Whatever realm a registry names, only the API sees the caller's token.
    """

    def __init__(self, api: ApiClient) -> None:
        self._api: Final = api

    async def token(self, challenge: Challenge) -> str:
        """Ask the token service of the API."""
        query = {"service": challenge.service, "scope": challenge.scope}
        answer = await self._api.request("GET", "/registry/v1alpha1/token", query=query)
        return str(answer["token"])


async def push(order: Order, api: ApiClient, clock: Clock, step: Step, waits: Callable[[str], None] = lambda _why: None) -> Outcome:
    """Push files and write the Model; `waits` is told why nothing moves.

    Raises:
        Invalid: A file or a fact cannot be used.
        Conflict: The Model has the variant with other content.
        FleetError: API or registry refuse or cannot be reached.
    """
    return await write_model(api, order, await send(order, api, clock, step, waits))


async def send(order: Order, api: ApiClient, clock: Clock, step: Step, waits: Callable[[str], None] = lambda _why: None) -> Pushed:
    """Push files, and return the variants that name them; errors as `push`."""
    info = await api.request("GET", "/registry/v1alpha1/info")
    stored = await _find(api, _ref(order))
    sources = [_sources(file, words) for file, words in zip(order.files, order.variants, strict=True)]
    files = [tuple([await _describe(Path(one.path), step, one) for one in group]) for group in sources]
    packages = [_package(order, words, group, stored) for words, group in zip(order.variants, files, strict=True)]
    pushed = [
        (words, variant_of(words, group, package.manifest.digest))
        for words, group, package in zip(order.variants, files, packages, strict=True)
    ]
    merge_variants(order.name, _variants(stored), pushed)  # refuses before a byte is sent
    async with RegistryClient(info["registryUrl"], api.cluster.ssl_context(), ApiTokens(api), clock, waits=waits) as registry:
        for paths, words, group, package in zip(sources, order.variants, files, packages, strict=True):
            repository = repository_name(order.namespace, order.name)
            for source, file in zip(paths, group, strict=True):
                await registry.push_blob(repository, file.digest, Path(source.path), partial(_sending, step, file))
            await registry.push_blob(repository, package.config.digest, package.config.body)
            await registry.push_manifest(repository, words.name, package.manifest.body, MANIFEST_MEDIA_TYPE)
    return pushed


async def model_with(api: ApiClient, order: Order, pushed: Pushed) -> Json:
    """Return the Model as it is, or would be, with the pushed variants: what `kubectl apply` takes."""
    stored = await _find(api, _ref(order))
    kept = {field: value for field, value in (stored or {}).get("spec", {}).items() if field != "variants"}
    return {
        "apiVersion": Model.resource.api_version,
        "kind": Model.resource.kind,
        "metadata": {"name": order.name, "namespace": order.namespace},
        "spec": {**kept, **order.facts(), "variants": merge_variants(order.name, _variants(stored), pushed)},
    }


def _ref(order: Order) -> Ref:
    return Ref(Model.resource.name, order.namespace, order.name)


def _sources(weights: Path, words: VariantWords) -> tuple[FurtherFile, ...]:
    """Return the files of a variant, the weights first."""
    return (FurtherFile("weight", str(weights)), *words.files)


async def _describe(path: Path, step: Step, source: FurtherFile) -> ArtifactFile:
    """Hash a file."""
    try:
        size = (await in_thread(path.stat)).st_size
        hasher, done = hashlib.sha256(), 0
        with contextlib.closing(read_pieces(path)) as pieces:
            while piece := await in_thread(next, pieces, b""):
                await in_thread(hasher.update, piece)
                done += len(piece)
                step("hashing", path.name, done, size)
        file = {
            "path": path.name,
            "digest": f"sha256:{hasher.hexdigest()}",
            "sizeBytes": size,
            "role": source.role,
            "scalePercent": source.scale_percent,
        }
        return msgspec.convert(file, ArtifactFile)
    except OSError as error:
        raise NotFound(f"file {str(path)!r} cannot be read: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise Invalid(f"file {str(path)!r} cannot be pushed: {error}") from error


def _package(order: Order, words: VariantWords, files: tuple[ArtifactFile, ...], stored: Json | None) -> Package:
    spec = {**(stored or {}).get("spec", {}), **order.facts()}
    facts = PackageFacts(
        name=order.name,
        variant=words.name,
        soc=words.fields["soc"],
        dtype=words.fields["dtype"],
        runtime=words.fields["runtime"],
        context_tokens=words.fields.get("contextTokens", 0),
        family=spec.get("family", ""),
        parameters=spec.get("parameters", ""),
        license=spec.get("license", ""),
        recipe=words.recipe,
    )
    return build_package(facts, files)


def _sending(step: Step, file: ArtifactFile, count: int) -> None:
    step("sending", file.path, count, file.size_bytes)


async def write_model(api: ApiClient, order: Order, pushed: Pushed) -> Outcome:
    """Create the Model, or patch what differs, on the version that was read."""
    ref = _ref(order)
    for attempt in range(1, WRITES_MAX + 1):
        stored = await _find(api, ref)
        variants = merge_variants(order.name, _variants(stored), pushed)
        try:
            if stored is None:
                await api.create(ref, await model_with(api, order, pushed))
                return "created"
            wanted = {**order.facts(), "variants": variants}
            if all(stored["spec"].get(field) == value for field, value in wanted.items()):
                return "unchanged"
            await api.patch(ref, {"metadata": {"resourceVersion": stored["metadata"]["resourceVersion"]}, "spec": wanted})
        except (Conflict, AlreadyExists):
            if attempt == WRITES_MAX:
                raise
        else:
            return "updated"
    raise AssertionError("the loop returns or raises")


async def _find(api: ApiClient, ref: Ref) -> Json | None:
    try:
        return await api.get(ref)
    except NotFound:
        return None


def _variants(stored: Json | None) -> list[Json]:
    found: list[Json] = (stored or {}).get("spec", {}).get("variants", [])
    return found
