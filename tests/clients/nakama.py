"""nakama-playflow: a Go plug-in that keeps a fleet. It trusts no answer, and never sends a start twice."""

import re
from collections.abc import Generator
from typing import Any

import httpx

from tests.clients.reading import Optional, read

PAGE = 100
MOST_PAGES = 100
MOST_BYTES = 4 << 20
TIMEOUT_S = 15
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_TEXT, _NUMBER = Optional(str), Optional(int)
INSTANCE = {
    "instance_id": str,
    "status": str,
    "name": _TEXT,
    "network_ports": [
        {"name": str, "host": str, "external_port": int, "internal_port": int, "protocol": str, "tls_enabled": bool}
    ],
    "startup_args": _TEXT,
    "service_type": _TEXT,
    "compute_size": _TEXT,
    "region": _TEXT,
    "version_tag": _TEXT,
    "version": _NUMBER,
    "started_at": _TEXT,
    "stopped_at": _TEXT,
    "auto_restart": bool,
    "custom_data": Optional(dict),
    "ttl": _NUMBER,
    "is_pool_server": bool,
    "pool_claimed_at": _TEXT,
    "match_id": _TEXT,
    "created_at": _TEXT,
    "updated_at": _TEXT,
}
Walk = Generator[dict[str, Any], dict[str, Any], list[dict[str, Any]]]


def instance(value: Any) -> dict[str, Any]:
    found = read(INSTANCE, value)
    assert _ID.fullmatch(found["instance_id"])
    assert found["status"]
    return found


def walk() -> Walk:
    """Yields the query of each page and is sent the page; returns every server, each once."""
    found: dict[str, dict[str, Any]] = {}
    offset = 0
    for _ in range(MOST_PAGES):
        query = {"include_launching": "true", "include_pool": "false", "limit": PAGE, "offset": offset}
        page = yield query
        read({"total": int, "servers": list, "limit": int, "offset": int, "has_more": bool}, page)
        assert page["offset"] == offset
        assert 1 <= page["limit"] <= PAGE
        assert len(page["servers"]) <= page["limit"]
        for one in page["servers"]:
            found.setdefault(instance(one)["instance_id"], one)
        if not page["has_more"]:
            return list(found.values())
        offset += page["limit"]
    raise AssertionError("the pages have no end")


class Nakama:
    """Its base URL ends in /api; no redirect is followed; only status and Retry-After of an error are read."""

    def __init__(self, url: str, key: str) -> None:
        headers = {"api-key": key, "accept": "application/json"}
        self.http = httpx.Client(base_url=f"{url}/api", headers=headers, timeout=TIMEOUT_S, follow_redirects=False)

    def _send(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        answer = self.http.request(method, path, **kwargs)
        assert len(answer.content) <= MOST_BYTES
        return answer

    def start(self, name: str, region: str, correlation: str, **given: Any) -> httpx.Response:
        """Sent once. Whatever happens to the answer, `find` tells whether there is a server."""
        body = {"name": name, "region": region, "auto_restart": False, "custom_data": {"correlation": correlation}}
        return self._send("POST", "/v3/servers/start", json=body | given)

    def find(self, correlation: str) -> list[dict[str, Any]]:
        return [one for one in self.list() if (one["custom_data"] or {}).get("correlation") == correlation]

    def list(self) -> list[dict[str, Any]]:
        pages = walk()
        query = next(pages)
        while True:
            answer = self._send("GET", "/v3/servers", params=query)
            assert answer.status_code == 200, answer.text
            try:
                query = pages.send(answer.json())
            except StopIteration as end:
                return end.value

    def get(self, instance_id: str) -> dict[str, Any]:
        answer = self._send("GET", f"/v3/servers/{instance_id}")
        assert answer.status_code == 200, answer.text
        found = instance(answer.json())
        assert found["instance_id"] == instance_id
        return found

    def stop(self, instance_id: str) -> None:
        """404 is as good as stopped."""
        answer = self._send("DELETE", f"/v3/servers/{instance_id}")
        assert answer.status_code in range(200, 300) or answer.status_code == 404
