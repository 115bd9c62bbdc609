"""Whatever bytes stand in a header that we read: an answer, never a fault."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.api_kit import Api

HEADERS = [
    "api-key",
    "admin-key",
    "authorization",
    "x-request-id",
    "idempotency-key",
    "origin",
    "host",
    "content-type",
    "last-event-id",
    "x-fleet-client",
    "x-fleet-scheme",
    "x-forwarded-for",
    "x-server-status",
    "x-player-id",
    "x-player-token",
    "access-control-request-method",
]
REQUESTS = [
    ("GET", "/api/v3/servers", b""),
    ("POST", "/api/v3/servers/start", b'{"name":"m","region":"us-east"}'),
    ("GET", "/api/v3/servers/unknown/logs?follow=true", b""),
    ("POST", "/api/v3/builds/upload-url", b""),
    ("POST", "/v2/builds/builds/upload", b"--x"),
    ("OPTIONS", "/api/v3/servers", b""),
    ("GET", "/metrics", b""),
    ("GET", "/api/admin/v1/projects", b""),
]
BYTES = st.one_of(st.binary(max_size=64), st.randoms(use_true_random=False).map(lambda r: r.randbytes(10_000)))


async def ask(api: Api, method: str, target: str, headers: list[tuple[bytes, bytes]], body: bytes) -> int:
    """Straight to the app: no client cleans the bytes first."""
    path, _, query = target.partition("?")
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("fleet.test", 80),
    }
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await api.app(scope, receive, send)  # pyright: ignore[reportArgumentType]
    return statuses[0]


@pytest.mark.parametrize("name", HEADERS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=BYTES)
async def test_any_bytes_in_a_header_are_answered(api: Api, name: str, value: bytes) -> None:
    usual = {"api-key": api.project.server_key.encode(), "host": b"fleet.test", "content-type": b"application/json"}
    headers = [(k.encode(), v) for k, v in (usual | {name: value}).items()]
    for method, target, body in REQUESTS:
        assert await ask(api, method, target, headers, body) < 500, (method, target)
    if name == "api-key":
        assert await ask(api, "GET", "/api/v3/servers", headers, b"") in (401, 429)
