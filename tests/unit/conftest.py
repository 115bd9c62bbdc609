from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from fleet.store.engine import Store
from tests.unit.api_kit import Api, make_schema, open_api


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """The whole API in this process, over a database of its own."""
    opened = await open_api(tmp_path)
    yield opened
    await opened.close()


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[list[Store]]:
    """Doors of three processes to one database: only another connection's commits are heard."""
    make_schema(tmp_path / "fleet.db")
    opened = [Store(f"sqlite+aiosqlite:///{tmp_path}/fleet.db") for _ in range(3)]
    yield opened
    for store in opened:
        await store.close()


@pytest.fixture(scope="session", autouse=True)
def plain_logs() -> None:
    """Logs as JSON: the console renderer draws tracebacks with every local variable, which takes seconds."""
    processors = [structlog.contextvars.merge_contextvars, structlog.processors.format_exc_info]
    structlog.configure(processors=[*processors, structlog.processors.JSONRenderer(default=repr)])
