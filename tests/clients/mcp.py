"""playflow-mcp: an assistant's tools over v3, with the server key. Its base URL lacks /api; booleans are words."""

from pathlib import Path
from typing import Any

import httpx

from tests.clients.reading import read


class ToolError(Exception):
    """`args` are the text and the status."""


class Mcp:
    def __init__(self, url: str, key: str) -> None:
        self.http = httpx.Client(base_url=f"{url}/api/v3", headers={"api-key": key}, timeout=90)

    def call(self, method: str, path: str, body: Any = None, **params: Any) -> dict[str, Any]:
        """Parameters that are None stay away; an empty answer is `{}`."""
        words = {name: str(value).lower() if isinstance(value, bool) else value for name, value in params.items()}
        query = {name: value for name, value in words.items() if value is not None}
        answer = self.http.request(method, path, json=body, params=query)
        if answer.is_error:
            said = answer.json()
            raise ToolError(said.get("detail") or said.get("error") or said.get("message"), answer.status_code)
        return read(dict, answer.json()) if answer.content else {}

    def list_servers(self, include_launching: bool = False, include_pool: bool = False) -> dict[str, Any]:
        flags = {"include_launching": include_launching, "include_pool": include_pool}
        return self.call("GET", "/servers", limit=50, offset=0, **flags)

    def start_server(self, name: str, region: str, version_tag: str = "default", **given: Any) -> dict[str, Any]:
        always = {"compute_size": "small", "version_tag": version_tag, "auto_restart": False}
        return self.call("POST", "/servers/start", {"name": name, "region": region, **always, **given})

    def get_server(self, instance_id: str) -> dict[str, Any]:
        return self.call("GET", f"/servers/{instance_id}")

    def restart_server(self, instance_id: str, **given: Any) -> dict[str, Any]:
        """Sends `{}` where nothing is to change."""
        return self.call("POST", f"/servers/{instance_id}/restart", given)

    def stop_server(self, instance_id: str, shutdown_reason: str | None = None) -> dict[str, Any]:
        return self.call("DELETE", f"/servers/{instance_id}", shutdown_reason=shutdown_reason)

    def get_server_metrics(self, instance_id: str, period: str = "1h", step: str = "60s") -> dict[str, Any]:
        return self.call("GET", f"/servers/{instance_id}/metrics", period=period, step=step)

    def get_server_logs(self, instance_id: str, start_time: str | None = None, limit: int = 200) -> dict[str, Any]:
        return self.call("GET", f"/servers/{instance_id}/logs", start_time=start_time, limit=limit)

    def update_server_custom_data(self, instance_id: str, custom_data: dict[str, Any]) -> dict[str, Any]:
        return self.call("POST", f"/servers/{instance_id}/update", {"custom_data": custom_data})

    def list_builds(self, name: str | None = None) -> dict[str, Any]:
        return self.call("GET", "/builds", name=name, limit=50, offset=0)

    def get_build(self, build_id: str) -> dict[str, Any]:
        return self.call("GET", f"/builds/{build_id}")

    def get_build_logs(self, build_id: str) -> dict[str, Any]:
        return self.call("GET", f"/builds/{build_id}/logs", limit=100, offset=0)

    def upload_build(self, file: Path, name: str = "default") -> dict[str, Any]:
        """The first answer is what the assistant sees; the PUT has neither key nor type."""
        link = self.call("POST", "/builds/upload-url", name=name, executable_path="Server.x86_64")
        sent = httpx.put(read({"upload_url": str}, link)["upload_url"], content=file.read_bytes(), timeout=600)
        assert sent.is_success, sent.text
        return link

    def create_build_from_docker(self, image_url: str, name: str, login: dict[str, str] | None) -> dict[str, Any]:
        credentials = {"registry_credentials": login} if login else {}
        return self.call("POST", "/builds/docker-image", {"image_url": image_url, "name": name, **credentials})

    def delete_build(self, build_id: str) -> dict[str, Any]:
        return self.call("DELETE", f"/builds/{build_id}")

    def get_project_settings(self) -> dict[str, Any]:
        return self.call("GET", "/projects/settings")
