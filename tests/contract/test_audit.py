"""The audit of dependencies: skipped with a reason where nobody can be asked, and red where something is found."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fleet.ops import audit
from fleet.ops.home import free_ports

FOUND = {
    "id": "PYSEC-0000-1",
    "summary": "a hole",
    "affected": [
        {
            "package": {"name": "jinja2", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "3.0"}]}],
            "versions": ["2.4.1"],
        }
    ],
}


@contextmanager
def database(vulnerable: tuple[str, ...]) -> Iterator[str]:
    """OSV's interface on loopback, with one hole in the named packages."""

    class Osv(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["content-length"])))
            hit = asked["package"]["name"].lower() in vulnerable
            said = json.dumps({"vulns": [FOUND]} if hit else {}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, format: str, *args: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Osv) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "requirements.lock"
    path.write_text(f"jinja2==2.4.1 --hash=sha256:{'0' * 64}\n")
    return path


def test_without_a_network_it_is_skipped_with_the_reason(lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main(lock, f"http://127.0.0.1:{free_ports(1)[0]}/v1/query") == 0
    assert "SKIPPED: http://127.0.0.1" in capsys.readouterr().out


def test_a_database_that_knows_nothing_is_not_believed(lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with database(()) as url:
        assert audit.main(lock, url) == 0
    assert "does not know what it must know" in capsys.readouterr().out


def test_a_vulnerable_pin_fails_and_a_sound_one_does_not(lock: Path) -> None:
    with database(("jinja2",)) as url:
        assert audit.main(lock, url) != 0
        lock.write_text(f"idna==3.10 --hash=sha256:{'0' * 64}\n")
        assert audit.main(lock, url) == 0
