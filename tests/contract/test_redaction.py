"""Secrets never reach a log, in whatever part of a line they stand; the rest of the line stays readable."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fleet.telemetry.logs import redacted

KEY = "pf_Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("said", "secret"),
    [
        (f"key {KEY} is unknown", KEY),
        (f"{{'api-key': 'pfclient_{KEY[3:]}'}}", KEY[3:]),
        (f"pfadmin_{KEY[3:]}", KEY[3:]),
        (f"whsec_{KEY[3:]}", KEY[3:]),
        ("PUT /upload/b1?expires=17&signature=0123456789abcdef HTTP/1.1", "0123456789abcdef"),
        (f"authorization: Bearer {KEY[3:]}", KEY[3:]),
        (f"x-player-token {JWT}", JWT.rpartition(".")[2]),
        ("postgresql://fleet:hunter2@db:5432/fleet refused", "hunter2"),
        ('quoted "signature=abc123" twice', "abc123"),
    ],
)
def test_a_secret_is_not_in_the_line(said: str, secret: str) -> None:
    line = redacted(json.dumps({"event": "x", "detail": said, "n": 1}).encode())
    assert secret.encode() not in line
    assert b"***" in line
    assert json.loads(line)["n"] == 1


@pytest.mark.parametrize(
    "plain",
    ["http://127.0.0.1:8000/api/v3/servers", "docker://sha256:abc", "a pf_ prefix", "match-1@eu-west:7777"],
)
def test_what_is_no_secret_stays(plain: str) -> None:
    line = json.dumps({"event": plain}).encode()
    assert redacted(line) == line


def test_a_whole_log_of_the_api_has_no_secret(tmp_path: Path) -> None:
    """What requests write, read back from the file: a process of its own, since logging is set up once."""
    script = """
import asyncio, structlog, sys
from pathlib import Path
from fleet.telemetry.logs import setup_logging
folder = Path(sys.argv[1])
setup_logging("api", folder)
from tests.unit.api_kit import open_api
async def main():
    api = await open_api(folder)
    async def broken(*_args, **_more):
        raise RuntimeError("with " + api.project.server_key)
    link = (await api.call("POST", "/api/v3/builds/upload-url")).json()["upload_url"]
    await api.call("PUT", link + "0", key=None, content=b"x")
    type(api.app.state.context.servers).page = broken
    await api.call("GET", "/api/v3/servers")
    structlog.get_logger().info("told", api_key=api.project.client_key, password="hunter2")
    print(api.project.server_key, api.project.client_key, link.rpartition("=")[2])
    await api.close()
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    text = (tmp_path / "logs" / "api.log").read_text()
    assert "request_failed" in text
    for secret in [*done.stdout.split(), "hunter2"]:
        assert secret not in text
