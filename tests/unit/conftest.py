from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from tests.unit.api_kit import Api, open_api


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """The whole API in this process, over a database of its own."""
    opened = await open_api(tmp_path)
    yield opened
    await opened.close()


@pytest.fixture(scope="session", autouse=True)
def plain_logs() -> None:
    """Logs as JSON: the console renderer draws tracebacks with every local variable, which takes seconds."""
    processors = [structlog.contextvars.merge_contextvars, structlog.processors.format_exc_info]
    structlog.configure(processors=[*processors, structlog.processors.JSONRenderer(default=repr)])
