"""Unity's v2 kit: its server client at run time, and the editor's upload of a build."""

from typing import Any

import httpx

from tests.clients.reading import Absent, Optional, read

PORT = {
    "name": str,
    "internal_port": int,
    "external_port": int,
    "protocol": str,
    "host": str,
    "tls_enabled": bool,
}
# Its JSON reader takes null for a string, for nothing else that is not marked so.
INSTANCE = {
    "instance_id": str,
    "name": str,
    "network_ports": [PORT],
    "status": str,
    "startup_args": Optional(str),
    "service_type": str,
    "compute_size": str,
    "region": str,
    "version_tag": str,
    "started_at": Optional(str),
    "stopped_at": Optional(str),
    "custom_data": Optional(dict),
    "ttl": Optional(int),
}
STARTED = {
    name: INSTANCE[name] for name in ("instance_id", "name", "status", "region", "network_ports", "compute_size")
}
# What readers of a game server in Unreal do: fields are taken as strings and numbers without looking.
UNREAL = {
    "status": str,
    "network_ports": [PORT],
    "startup_args": Absent(str),
    "ttl": Absent(int),
    "started_at": Absent(str),
}


class ApiError(Exception):
    """`args[0]` is what the game's developer gets to read."""


class UnityV2:
    """The calls as that kit sends them; answers are read as it reads them."""

    def __init__(self, url: str, key: str) -> None:
        self.http = httpx.Client(base_url=url, headers={"api-key": key, "accept": "application/json"}, timeout=90)

    def send(self, method: str, path: str, payload: Any = None, headers: dict[str, str] | None = None) -> Any:
        answer = self.http.request(method, path, json=payload, headers=headers)
        if answer.is_success:
            return answer.json()
        raise ApiError(_message(answer.json()), answer.status_code)

    def list(self, include_launching: bool) -> dict[str, Any]:
        found = self.send("GET", f"/v2/servers/?include_launching={str(include_launching).lower()}")
        return read({"total_servers": int, "servers": [INSTANCE]}, found)

    def start(self, name: str, region: str, **given: Any) -> dict[str, Any]:
        """`version` goes out as text, whatever it is."""
        if "version" in given:
            given["version"] = str(given["version"])
        payload = {"name": name, "compute_size": "small", "region": region, **given}
        return read(STARTED, self.send("POST", "/v2/servers/start", payload))

    def get(self, instance_id: str) -> dict[str, Any]:
        return read(INSTANCE, self.send("GET", f"/v2/servers/{instance_id}"))

    def stop(self, instance_id: str) -> dict[str, Any]:
        return read({"status": str}, self.send("DELETE", f"/v2/servers/{instance_id}"))

    def report(self, instance_id: str, status: str) -> dict[str, Any]:
        """What the game itself sends; no body."""
        return read(
            INSTANCE, self.send("PUT", f"/v2/servers/{instance_id}/update", headers={"X-Server-Status": status})
        )

    def project_id(self) -> str:
        return read({"project_id": str}, self.send("GET", "/v2/project"))["project_id"]

    def upload(self, archive: bytes, name: str) -> dict[str, Any]:
        """An empty body of type JSON asks for the link; after the PUT nothing more is called."""
        path = f"/v2/builds/builds/upload-url?name={name}"
        link = self.send("POST", path, headers={"content-type": "application/json"})
        read({"build_id": str, "name": str, "upload_url": str, "message": str}, link)
        headers = {"content-type": "application/octet-stream"}
        sent = httpx.put(link["upload_url"], content=archive, headers=headers, timeout=600)
        assert sent.is_success, sent.text
        return link


def _message(body: dict[str, Any]) -> str:
    """The first issue of a list, else `message`, else `detail` where that is a text."""
    detail = body.get("detail")
    if isinstance(detail, list):
        first = read({"loc": list, "msg": str, "type": str}, detail[0])
        return f"{first['msg']} ({' -> '.join(str(part) for part in first['loc'])}, {first['type']})"
    return body.get("message") or read(str, detail)
