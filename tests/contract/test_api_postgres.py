"""The API over PostgreSQL: its unit tests again, and requests that only this database minds."""

import gc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.postgres import PostgresServer
from tests.unit.api_kit import Api, open_api
from tests.unit.test_api_builds import *  # noqa: F403
from tests.unit.test_api_servers import *  # noqa: F403

# A connection that is given up while it opens (its request was cancelled) leaves its socket to the collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*unclosed.*:ResourceWarning", "ignore:.*socket.*:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def shared_url(postgres: PostgresServer) -> Iterator[str]:
    """One database for all of these: each test has projects of its own, and sees no others."""
    name = postgres.new_database("migrated")
    yield postgres.url(name)
    gc.collect()
    postgres.drop(name)


@pytest.fixture
async def api(tmp_path: Path, shared_url: str) -> AsyncIterator[Api]:
    opened = await open_api(tmp_path, shared_url)
    yield opened
    await opened.close()


async def test_without_its_database_the_api_says_so_and_recovers(api: Api, postgres: PostgresServer) -> None:
    assert (await api.call("GET", "/api/v3/servers")).status_code == 200
    postgres.halt()
    try:
        for method, path in (("GET", "/api/v3/servers"), ("POST", "/api/v3/builds/upload-url"), ("GET", "/api/health")):
            answer = await api.call(method, path)
            assert (answer.status_code, answer.json()["error"]) == (503, "Database unavailable"), path
    finally:
        postgres.start()
    for method, path in (("GET", "/api/v3/servers"), ("POST", "/api/v3/builds/upload-url"), ("GET", "/api/health")):
        assert (await api.call(method, path)).is_success, path


@pytest.mark.parametrize("text", [r"a\u0000b", r"\ud800"])
async def test_text_that_the_database_cannot_hold_is_no_fault_of_ours(api: Api, text: str) -> None:
    body = f'{{"name": "{text}", "region": "us-east", "image_url": "a.org/game:1", "startup_args": "{text}"}}'
    headers = {"content-type": "application/json"}
    for path in ("/api/v3/servers/start", "/api/v3/builds/docker-image"):
        answer = await api.call("POST", path, content=body.encode(), headers=headers)
        assert answer.status_code < 500, (path, answer.text)
    for path in ("/api/v3/servers/a%00b", "/api/v3/builds/a%00b", "/api/v3/builds?name=%ed%a0%80%00"):
        answer = await api.call("GET", path)
        assert answer.status_code < 500, (path, answer.text)


@pytest.mark.parametrize("number", [2**31, 2**63, 2**70])
async def test_numbers_that_the_database_cannot_hold_are_no_fault_of_ours(api: Api, number: int) -> None:
    for body in ({"ttl": number}, {"version": number}):
        answer = await api.call("POST", "/api/v3/servers/start", json=api.start_body | body)
        assert answer.status_code in (400, 404, 422), (body, answer.text)
    for path in (f"/api/v3/builds?limit=1&offset={number}", f"/api/v3/servers?limit=1&offset={number}"):
        answer = await api.call("GET", path)
        assert answer.status_code < 500, (path, answer.text)


async def test_metrics_are_read_from_it(api: Api) -> None:
    await api.running(region="sea")
    text = (await api.call("GET", "/metrics", key=None)).text
    assert 'fleet_scrape_up{part="database"} 1.0' in text
    assert 'fleet_servers{region="sea",size="small",state="running"}' in text
