"""Lobbies over PostgreSQL: their unit tests again, each in a database of its own."""

import gc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.test_lobbies import *  # noqa: F403
from tests.unit.api_kit import Api, open_api

# A connection that is given up while it opens (its task was cancelled) leaves its socket to the collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*unclosed.*:ResourceWarning", "ignore:.*socket.*:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
async def api(tmp_path: Path, postgres_url: str) -> AsyncIterator[Api]:
    opened = await open_api(tmp_path, postgres_url)
    yield opened
    await opened.close()
    gc.collect()
