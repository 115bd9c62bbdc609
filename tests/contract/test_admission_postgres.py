"""Starts that are counted, over PostgreSQL: there transactions of different kinds do run at the same time."""

import gc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.contract.test_admission import *  # noqa: F403
from tests.postgres import PostgresServer
from tests.unit.api_kit import Api, open_api

# A connection that is given up while it opens (its request was cancelled) leaves its socket to the collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*unclosed.*:ResourceWarning", "ignore:.*socket.*:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def shared_url(postgres: PostgresServer) -> Iterator[str]:
    name = postgres.new_database("migrated")
    yield postgres.url(name)
    gc.collect()
    postgres.drop(name)


@pytest.fixture
async def api(tmp_path: Path, shared_url: str) -> AsyncIterator[Api]:
    opened = await open_api(tmp_path, shared_url)
    yield opened
    await opened.close()
