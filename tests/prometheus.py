"""A Prometheus server of the tests' own, on a loopback port, from Debian's package (unpacked, not installed)."""

import math
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from fleet.ops.home import free_ports
from tests.debian import unpack_debian
from tests.waiting import eventually

CONFIGS = Path(__file__).parent.parent / "configs"


def program(name: str) -> Path:
    return unpack_debian("prometheus") / "usr" / "bin" / name


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [program("promtool"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def config_for(url: str, interval: str = "1s") -> str:
    """configs/prometheus.yml, as it is but for where the fleet is and how often it is asked."""
    text = (CONFIGS / "prometheus.yml").read_text()
    place = url.removeprefix("http://")
    assert text.count("127.0.0.1:8000") == 2
    assert text.count("15s") == 2
    assert text.count("30s") == 1
    text = text.replace("127.0.0.1:8000", place).replace("15s", interval).replace("30s", interval)
    return text.replace("rule_files: [alerts.yml]", f"rule_files: [{CONFIGS / 'alerts.yml'}]")


class Prometheus:
    """A running server; its answers as lists of (labels, value)."""

    def __init__(self, port: int) -> None:
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def ready(self) -> bool:
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def api(self, path: str, **params: str) -> Any:
        answer = self._http.get(f"/api/v1/{path}", params=params).json()
        assert answer["status"] == "success", (params, answer)
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """What there is now. AssertionError if the expression is not one."""
        found = self.api("query", query=expression)
        if found["resultType"] == "scalar":
            return [({}, float(found["result"][1]))]
        return [(one["metric"], float(one["value"][1])) for one in found["result"]]

    def has(self, expression: str) -> bool:
        """Whether it gives a number."""
        return any(not math.isnan(value) for _, value in self.query(expression))


@contextmanager
def running_prometheus(config: str, folder: Path) -> Iterator[Prometheus]:
    """Started with that config, its data in `folder`; ended and waited for afterwards."""
    file, log = folder / "prometheus.yml", folder / "prometheus.log"
    file.write_text(config)
    port = free_ports(1)[0]
    command = [
        str(program("prometheus")),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    server = Prometheus(port)
    try:
        eventually(lambda: server.ready() or process.poll() is not None, 60, "Prometheus answers")
        assert process.poll() is None, log.read_text()
        yield server
    finally:
        server.close()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
