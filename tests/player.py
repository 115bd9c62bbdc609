"""A studio's back end and its players, as tests play them: the public API and real packets, nothing else."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests import games

WAIT_S = 60


class Studio:
    """Talks to a running fleet with its server key."""

    def __init__(self, url: str, key: str) -> None:
        self.http = httpx.Client(base_url=url, headers={"api-key": key}, timeout=WAIT_S + 30)

    def call(self, method: str, path: str, expect: int = 200, **kwargs: Any) -> Any:
        answer = self.http.request(method, f"/api/v3{path}", **kwargs)
        assert answer.status_code == expect, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def push(self, archive: bytes, name: str, executable: str = games.EXECUTABLE) -> dict[str, Any]:
        """Upload a ZIP and wait for the pipeline's end; the build, `ready` or `failed`."""
        params = {"name": name, "executable_path": executable}
        link = self.call("POST", "/builds/upload-url", 201, params=params)
        sent = httpx.put(link["upload_url"], content=archive, timeout=WAIT_S)
        assert sent.status_code == 200, sent.text
        return self.processed(link["build_id"])

    def processed(self, build_id: str) -> dict[str, Any]:
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            build = self.call("GET", f"/builds/{build_id}")
            if build["status"] in ("ready", "failed"):
                return build
            time.sleep(0.1)
        raise AssertionError(f"build {build_id} is still {build['status']}")

    def start(self, build: str, *, wait: bool = True, expect: int = 201, **fields: Any) -> dict[str, Any]:
        """Start a server of that build; with `wait`, running when this returns."""
        body = {"name": build, "region": "us-east", "compute_size": "micro", "version_tag": build, **fields}
        params = {"wait_for": "running", "timeout": WAIT_S} if wait else {}
        server = self.call("POST", "/servers/start", expect, json=body, params=params)
        if wait and expect == 201:
            assert server["status"] == "running", (server, self.events(server))
        return server

    def server(self, server: dict[str, Any], wait_for: str | None = None) -> dict[str, Any]:
        params = {"wait_for": wait_for, "timeout": WAIT_S} if wait_for else {}
        return self.call("GET", f"/servers/{server['instance_id']}", params=params)

    def stop(self, server: dict[str, Any]) -> None:
        self.call("DELETE", f"/servers/{server['instance_id']}")

    def events(self, server: dict[str, Any]) -> list[dict[str, Any]]:
        return self.call("GET", f"/servers/{server['instance_id']}/events")["events"]

    def last_stop(self, server: dict[str, Any]) -> dict[str, Any]:
        """Data of the event that ended the server."""
        ends = [e["data"] for e in self.events(server) if e["type"] in ("stopping", "stopped")]
        return [data for data in ends if "reason" in data][-1]

    def log(self, server: dict[str, Any]) -> list[str]:
        page = self.call("GET", f"/servers/{server['instance_id']}/logs", params={"limit": 1000})
        return [line["message"] for line in page["logs"]]

    def until_stopped(self, server: dict[str, Any], seconds: int) -> dict[str, Any]:
        """As `server(…, "stopped")`, for a wait longer than one long poll may be."""
        end = time.monotonic() + seconds
        while (seen := self.server(server, "stopped"))["status"] != "stopped" and time.monotonic() < end:
            pass
        return seen

    def until_gone(self, server: dict[str, Any]) -> None:
        """Return once the server's container is gone too."""
        end = time.monotonic() + WAIT_S
        while self.events(server)[-1]["type"] != "stopped":
            assert time.monotonic() < end, self.events(server)
            time.sleep(0.02)

    def until_elsewhere(self, server: dict[str, Any]) -> dict[str, Any]:
        """The server once it runs on other ports than `server` says."""
        return self.until(server, lambda s: s["status"] == "running" and s["network_ports"] != server["network_ports"])

    def until(self, server: dict[str, Any], wanted: Any) -> dict[str, Any]:
        """The server once `wanted(server)` holds."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            seen = self.server(server)
            if wanted(seen):
                return seen
            time.sleep(0.1)
        raise AssertionError(f"never came true: {seen} {self.events(server)}")


def ask(server: dict[str, Any], packet: str, port: str | None = None) -> str:
    """A player's packet to the server's public address, and the game's answer."""
    ports = server["network_ports"]
    found = next(p for p in ports if port is None or p["name"] == port)
    return games.udp_ask(found["host"], found["external_port"], packet.encode()).decode()


@contextmanager
def lobby_config(studio: Studio, config: dict[str, Any]) -> Iterator[str]:
    """The project has this lobby config too, until the end; its name."""
    before = studio.call("GET", "/projects/settings")["lobby_configs"]
    studio.call("POST", "/projects/settings", json={"lobby_configs": [*before, config]})
    try:
        yield config["name"]
    finally:
        studio.call("POST", "/projects/settings", json={"lobby_configs": before})


@contextmanager
def stopped_after(studio: Studio, *servers: dict[str, Any]) -> Iterator[None]:
    """Stop these servers in the end, whatever happens."""
    try:
        yield
    finally:
        for server in servers:
            studio.stop(server)
