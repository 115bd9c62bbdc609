from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.api_kit import Api, open_api


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """The whole API in this process, over a database of its own."""
    opened = await open_api(tmp_path)
    yield opened
    await opened.client.aclose()
    await opened.store.close()
