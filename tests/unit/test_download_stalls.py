"""A download that stands still ends: of the store's client by its read timeout, of whoever waits by what is seen."""

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.builds import object_store
from fleet.builds.bundles import LOCK_S, locked, progress
from fleet.builds.object_store import ObjectStore
from fleet.errors import Unavailable


class Stalls(http.server.BaseHTTPRequestHandler):
    """Sends the beginning of an object, and nothing more."""

    let_go = threading.Event()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.send_header("ETag", '"x"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(b"x" * 1000)
        self.wfile.flush()
        self.let_go.wait(30)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def stalls() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stalls)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    Stalls.let_go.set()
    server.shutdown()
    server.server_close()


def test_a_store_that_stops_sending_is_given_up(stalls: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(object_store, "_CLIENT", {**object_store._CLIENT, "read_timeout": "500ms"})
    store = ObjectStore(f"s3://bucket?endpoint={stalls}&region=x&virtual_hosted_style_request=false", patience_s=1.0)
    began = time.monotonic()
    with pytest.raises(Unavailable):
        store.get_to("archives/x.zip", tmp_path / "x.zip")
    assert time.monotonic() - began < 20
    assert not (tmp_path / "x.zip").exists()


def test_progress_is_what_any_process_does_to_a_bundle(tmp_path: Path) -> None:
    assert progress(tmp_path, "a" * 64) == (0, 0, 0)
    (tmp_path / f".staging-{'a' * 64}-1.zip").write_bytes(b"12")
    before = progress(tmp_path, "a" * 64)
    (tmp_path / f".staging-{'a' * 64}-1.zip").write_bytes(b"123")
    assert progress(tmp_path, "a" * 64) != before
    (tmp_path / f".staging-{'b' * 64}-1").mkdir()
    assert progress(tmp_path, "a" * 64)[:2] == (3, 1)


def test_a_bundle_that_another_process_works_on_is_not_waited_for_without_end(tmp_path: Path) -> None:
    with (
        locked(tmp_path, "c"),
        pytest.raises(Unavailable, match="worked on"),
        locked(tmp_path, "c", within_s=0.2),
    ):
        pass
    assert float("inf") > LOCK_S
