"""Generated requests for every operation of our own OpenAPI document: no 5xx, and answers as documented."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import schemathesis
import uvicorn

from tests.unit.api_kit import open_api
from tests.unit.schema_kit import check_operations


@dataclass
class Served:
    url: str
    key: str


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: object = None) -> None:
        await super().startup()
        self.up.set()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The app in a thread of its own, on a port of the kernel's choice."""
    folder = tmp_path_factory.mktemp("schema")
    server, key = _make(folder)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert server.up.wait(60)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Served(f"http://127.0.0.1:{port}", key)
    server.should_exit = True
    thread.join(30)


def _make(folder: Path) -> tuple[_Server, str]:
    async def opened() -> tuple[object, str]:
        api = await open_api(folder)
        await api.running()
        await api.client.aclose()
        await api.store.close()  # its connections belong to this loop; the server's loop opens its own
        return api.app, api.project.server_key

    app, key = asyncio.run(opened())
    return _Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical")), key  # pyright: ignore


def test_every_operation_answers_as_documented(served: Served, subtests: pytest.Subtests) -> None:
    schema = schemathesis.openapi.from_url(f"{served.url}/api/doc")
    labels = check_operations(schema, served.key, 12, subtests)
    assert len(labels) >= 16
