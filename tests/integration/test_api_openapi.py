"""Whatever is sent after the served OpenAPI documents: no mistake of ours, and every answer as documented."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.api import running_api
from tests.support.openapi_campaign import campaign


def _run(directory: Path, seed_number: int, examples: int) -> int:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        api = runner.run(stack.enter_async_context(running_api(directory)))
        try:
            return campaign(api, runner.run, seed_number=seed_number, examples=examples)
        finally:
            runner.run(stack.aclose())


def test_answers_to_requests_made_from_the_documents_are_as_documented(tmp_path: Path) -> None:
    assert _run(tmp_path, seed_number=6, examples=2) > 200


@pytest.mark.soak
@pytest.mark.parametrize("seed_number", range(10))
def test_api_answers_as_documented_for_long(tmp_path: Path, seed_number: int, soak_factor: int) -> None:
    _run(tmp_path, seed_number=100 + seed_number, examples=10 * soak_factor)
