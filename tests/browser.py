"""A headless Chromium for tests, from Debian's packages, that trusts one certificate authority more."""

import os
import shutil
import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue

import pytest

PACKAGES = ("chromium", "libnss3-tools")


def ensure_browser() -> str:
    """Path of the browser, installed if that is possible; the test is skipped otherwise."""
    if shutil.which("chromium") is None or shutil.which("certutil") is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            pytest.skip("no chromium, and only root may install it by apt-get")
        apt = ["apt-get", "-o", "DPkg::Lock::Timeout=120", "-q"]
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in ([*apt, "update"], [*apt, "install", "-y", "--no-install-recommends", *PACKAGES]):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode != 0:
                pytest.skip(f"chromium cannot be installed: {done.stderr.strip()[-200:]}")
    return str(shutil.which("chromium"))


@contextmanager
def page(html: str, folder: Path, ca: Path) -> Generator[Queue[str]]:
    """The page, open in a browser; what it POSTs to `/said` comes through the queue."""
    browser = ensure_browser()
    said: Queue[str] = Queue()

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = html.encode()
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            said.put(self.rfile.read(int(self.headers["content-length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Tests are quiet."""

    site = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    home = folder / "browser"
    _trust(home / ".pki" / "nssdb", ca)
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
        f"--user-data-dir={home / 'profile'}", f"--crash-dumps-dir={home}", "--remote-debugging-port=0",
        f"http://127.0.0.1:{site.server_port}/",
    ]  # fmt: skip
    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, "HOME": str(home)}, stdout=log, stderr=log)
    try:
        yield said
    finally:
        process.terminate()
        process.wait(30)
        site.shutdown()
        site.server_close()


def _trust(database: Path, ca: Path) -> None:
    database.mkdir(parents=True)
    for arguments in (["-N", "--empty-password"], ["-A", "-t", "C,,", "-n", "fleet", "-i", str(ca)]):
        subprocess.run(["certutil", "-d", f"sql:{database}", *arguments], check=True, capture_output=True, timeout=60)
