"""What holds for every call: ids, error shapes, limits on bodies, the cache, the counts, the reference page."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fleet.projects.service import ProjectService
from serve_app.errors import issue_code
from serve_app.read_cache import Kept, ReadCache
from tests.unit.api_kit import Api

PATH = "/api/v3/servers"


async def test_every_answer_has_a_request_id(api: Api) -> None:
    ids = set()
    for path, key in [(PATH, ""), (PATH, ""), (PATH, None), ("/nowhere", None), ("/api/health", None)]:
        answer = await api.call("GET", path, key=key)
        ids.add(answer.headers["x-request-id"])
    assert len(ids) == 5


@pytest.mark.parametrize(
    ("sent", "kept"), [("trace-1.a/b", True), ("x" * 129, False), ("two words", False), ("<script>", False)]
)
async def test_a_sane_request_id_of_the_caller_is_taken(api: Api, sent: str, kept: bool) -> None:
    answer = await api.call("GET", PATH, headers={"x-request-id": sent})
    assert (answer.headers["x-request-id"] == sent) is kept


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/api/v3/nowhere", 404),
        ("PATCH", PATH, 405),
        ("GET", "/api/reference/secrets.txt", 404),
        ("GET", "/api/reference/..%2f__init__.py", 404),
    ],
)
async def test_unknown_routes_and_methods_have_the_error_shape(api: Api, method: str, path: str, status: int) -> None:
    answer = await api.call(method, path)
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "detail", "status"}
    assert (status == 405) == ("allow" in answer.headers)


async def test_a_405_names_all_methods_of_the_path(api: Api) -> None:
    for path, allowed in ((f"{PATH}/some-id", "DELETE, GET"), (f"{PATH}/start", "POST"), ("/v2/servers/", "GET")):
        assert (await api.call("PATCH", path)).headers["allow"] == allowed


async def test_true_is_no_number_and_zero_no_boolean(api: Api) -> None:
    for wrong in ({"version": True}, {"auto_restart": 0}, {"ttl": True}):
        assert (await api.call("POST", f"{PATH}/start", json=api.start_body | wrong)).status_code == 422
    assert (await api.start(ttl=600.0, version="1"))["ttl"] == 600


@pytest.mark.parametrize("path", ["/api/health/", "/api/v3/servers/", "/api/v3/servers//", "/api/v3/builds/"])
async def test_trailing_slashes_are_no_redirect(api: Api, path: str) -> None:
    assert (await api.call("GET", path)).status_code == 200


async def test_a_fault_is_a_500_with_the_id_and_no_secrets(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_args: object) -> None:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(api.app.state.context.servers, "page", broken, raising=False)
    answer = await api.call("GET", PATH, headers={"x-request-id": "find-me"})
    assert answer.status_code == 500
    assert set(answer.json()) == {"error", "detail", "status"}
    assert "find-me" in answer.json()["detail"]
    assert "hunter2" not in answer.text


async def test_a_body_without_a_length_is_bounded_while_it_streams(api: Api) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100:
            sent += 1
            yield b" " * 65_536

    answer = await api.call("POST", f"{PATH}/start", content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"] == "Payload too large"


async def test_a_kept_answer_ends_with_its_key(api: Api) -> None:
    """A revoked key must not live on in the cache while the database stands still."""
    api.app.state.context.projects = ProjectService(api.store, memory_s=0)
    assert (await api.call("GET", PATH)).status_code == 200
    assert (await api.call("GET", PATH)).status_code == 200
    await ProjectService(api.store).rotate(api.project.project_id, "server")
    assert (await api.call("GET", PATH)).status_code == 401


async def test_repeated_reads_do_not_reach_the_database(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await api.running()
    path = f"{PATH}/{server['instance_id']}"
    first = await api.call("GET", path)

    def closed() -> None:
        raise AssertionError("the database was asked")

    monkeypatch.setattr(api.store, "read", closed)
    again = await api.call("GET", path)
    assert again.content == first.content
    assert again.headers["content-type"] == "application/json"
    assert again.headers["x-request-id"] != first.headers["x-request-id"]


def kept(body: bytes, until: float = float("inf")) -> Kept:
    return Kept([], body, "/", until)


def test_the_cache_is_bounded_in_entries_and_bytes() -> None:
    cache = ReadCache(lambda: 1, max_entries=3, max_bytes=100)
    version = cache.look()
    assert version == 1
    keys = [(b"k", f"/{n}", b"") for n in range(10)]
    for key in keys:
        cache.put(key, kept(b"1234567890"), version)
    assert [cache.get(key) is not None for key in keys] == [False] * 7 + [True] * 3
    cache.put((b"k", "/big", b""), kept(b"x" * 90), version)
    assert cache.get((b"k", "/big", b"")) is None


def test_the_cache_refuses_what_was_computed_before_a_change() -> None:
    now = 1
    cache = ReadCache(lambda: now)
    before = cache.look()
    assert before == 1
    now = 2
    assert cache.look() == 2
    cache.put((b"k", "/", b""), kept(b"old"), before)
    assert cache.get((b"k", "/", b"")) is None


def test_an_answer_is_forgotten_at_its_time() -> None:
    cache = ReadCache(lambda: 1)
    version = cache.look()
    assert version == 1
    cache.put((b"k", "/", b""), kept(b"x", until=0.0), version)
    assert cache.get((b"k", "/", b"")) is None


async def test_requests_are_counted_by_route_template(api: Api) -> None:
    for name in ("a", "b"):
        await api.call("GET", f"{PATH}/{name}")
    text = (await api.call("GET", "/metrics", key=None)).text
    assert 'fleet_http_requests_total{method="GET",route="/api/v3/servers/{instance_id}",status="404"} 2.0' in text
    assert "/api/v3/servers/a" not in text


async def test_the_openapi_document_describes_the_whole_api(api: Api) -> None:
    document = (await api.call("GET", "/api/doc", key=None)).json()
    assert document["openapi"].startswith("3.1")
    assert {
        "/api/health",
        "/api/v3/servers",
        "/api/v3/servers/start",
        "/api/v3/servers/{instance_id}",
        "/api/v3/servers/{instance_id}/restart",
        "/api/v3/servers/{instance_id}/logs",
        "/api/v3/builds/upload-url",
        "/api/v3/builds/docker-image",
    } <= set(document["paths"])
    scheme = document["components"]["securitySchemes"]["APIKeyHeader"]
    assert (scheme["type"], scheme["in"], scheme["name"]) == ("apiKey", "header", "api-key")
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["summary"], path
            assert operation["description"], path


async def test_the_reference_page_needs_no_other_host(api: Api) -> None:
    page = (await api.call("GET", "/api/reference", key=None)).text
    assert "http://" not in page
    assert "https://" not in page
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert f"/api/reference/{name}" in page
        assert (await api.call("GET", f"/api/reference/{name}", key=None)).status_code == 200


@pytest.mark.parametrize("path", ["/api/v3/builds/upload-url", "/api/v2/builds/builds/upload-url?name=x"])
async def test_upload_urls_lead_where_the_fleet_is_and_not_where_a_caller_says(api: Api, path: str) -> None:
    name = socket.gethostname()
    for host in ("fleet.test", "localhost:9000", "127.0.0.1:9000", "[::1]:9000", f"{name}:80", name.upper()):
        answer = await api.call("POST", path, headers={"host": host})
        assert answer.status_code < 300, answer.text
        assert answer.json()["upload_url"].startswith(f"http://{host}/upload/")
    for host in ("games.example:9000", "192.0.2.7", "127.0.0.1.example", "0.0.0.0", "fleet.test.evil.example"):
        answer = await api.call("POST", path, headers={"host": host})
        assert answer.status_code == 400, (host, answer.text)
        assert "FLEET_PUBLIC_URL" in answer.json()["detail"]
    api.settings.public_url = "https://games.example/"
    answer = await api.call("POST", path, headers={"host": "evil.example"})
    assert answer.json()["upload_url"].startswith("https://games.example/upload/")


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("missing", "invalid_type"),
        ("int_parsing", "invalid_type"),
        ("greater_than_equal", "too_small"),
        ("less_than_equal", "too_big"),
        ("string_too_short", "too_small"),
        ("too_long", "too_big"),
        ("literal_error", "invalid_enum_value"),
        ("string_pattern_mismatch", "invalid_string"),
    ],
)
def test_issue_codes(kind: str, code: str) -> None:
    assert issue_code(kind) == code


async def test_the_same_question_at_once_asks_the_database_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await api.running()
    path = f"{PATH}/{server['instance_id']}"
    await api.call("GET", path)  # the key is known from here on
    await api.regions.update("us-east", server["instance_id"], {"round": 1})
    reads, first = 0, api.store.first

    async def counted(statement: Any) -> Any:
        nonlocal reads
        reads += 1
        return await first(statement)

    monkeypatch.setattr(api.store, "first", counted)
    answers = await asyncio.gather(*(api.call("GET", path) for _ in range(20)))
    assert {answer.json()["custom_data"]["round"] for answer in answers} == {1}
    assert reads == 1


async def test_an_unkept_answer_is_computed_for_each(api: Api) -> None:
    answers = await asyncio.gather(*(api.call("GET", f"{PATH}/unknown") for _ in range(5)))
    assert [answer.status_code for answer in answers] == [404] * 5
