"""A Godot web game that ships with its client key: it joins the server that runs, or starts the one."""

import time
from typing import Any

import httpx

from tests.clients.reading import read

PORT = {"name": str, "host": str, "external_port": int, "protocol": str, "tls_enabled": bool}
SERVER = {"instance_id": str, "status": str, "network_ports": [PORT]}
POLL_S, LONGEST_S = 2.0, 90.0


class Refused(Exception):
    """401 and 403 mean to it: this key may not."""


class GodotGame:
    """Its port asks for TLS, since browsers speak wss alone."""

    def __init__(self, url: str, client_key: str, version_tag: str) -> None:
        self.http = httpx.Client(base_url=f"{url}/api/v3", headers={"api-key": client_key}, timeout=30)
        self.version_tag = version_tag

    def _call(self, method: str, path: str, **kwargs: Any) -> Any:
        answer = self.http.request(method, path, **kwargs)
        if answer.status_code in (401, 403):
            raise Refused(answer.text)
        assert answer.is_success, answer.text
        return answer.json()

    def join(self) -> dict[str, Any]:
        """The port to connect to."""
        servers = read({"servers": [SERVER]}, self._call("GET", "/servers?include_launching=true"))["servers"]
        for status in ("running", "launching"):
            if found := next((one for one in servers if one["status"] == status), None):
                return self._ready(found)
        return self._ready(read(SERVER, self._call("POST", "/servers/start", json=self._start_body())))

    def _start_body(self) -> dict[str, Any]:
        port = {"name": "game", "internal_port": 8080, "protocol": "tcp", "tls_enabled": True}
        return {
            "name": "lobby",
            "region": "us-east",
            "compute_size": "small",
            "ttl": 3600,
            "version_tag": self.version_tag,
            "port_configs": [port],
        }

    def _ready(self, server: dict[str, Any]) -> dict[str, Any]:
        deadline = time.monotonic() + LONGEST_S
        while server["status"] != "running":
            assert time.monotonic() < deadline, server
            time.sleep(POLL_S)
            server = read(SERVER, self._call("GET", f"/servers/{server['instance_id']}"))
        return next(one for one in server["network_ports"] if one["protocol"] == "tcp" and one["tls_enabled"])

    def stop(self, instance_id: str) -> None:
        """Which its key may not."""
        self._call("DELETE", f"/servers/{instance_id}")
