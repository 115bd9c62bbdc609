"""A fleet of a benchmark's own: another home, another port, simulated nodes. Taken down in the end."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from fleet.client.packing import pack
from fleet.ops.home import find_home, free_ports, read_access
from fleet.ops.processes import command_of, supervised

ROOT = Path(__file__).parent.parent
UP_S = 600


@dataclass(frozen=True)
class OwnFleet:
    """`http` is a plain client with the server key; benchmarks that count use clients of their own."""

    url: str
    key: str
    home: Path
    env: dict[str, str]
    http: httpx.Client

    def call(self, method: str, path: str, expect: int = 200, **kwargs: Any) -> Any:
        answer = self.http.request(method, f"/api/v3{path}", **kwargs)
        if answer.status_code != expect:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer.json()

    def push_demo(self, name: str = "default") -> None:
        """A build, so that servers may be started; simulated nodes never unpack it."""
        link = self.call("POST", "/builds/upload-url", 201, params={"name": name})
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "build.zip"
            pack(ROOT / "examples" / "demo-game", archive)
            httpx.put(link["upload_url"], content=archive.read_bytes(), trust_env=False).raise_for_status()
        end = time.monotonic() + 120
        while (build := self.call("GET", f"/builds/{link['build_id']}"))["status"] != "ready":
            if time.monotonic() > end or build["status"] == "failed":
                raise RuntimeError(f"the build is {build}")
            time.sleep(0.1)

    def until_warm(self, wanted: dict[tuple[str, str], int], timeout_s: float = 300) -> None:
        """Return once the pools of these (region, size) have so many warm entries."""
        end = time.monotonic() + timeout_s
        while True:
            pools = self.call("GET", "/pools")["pools"]
            warm = {(pool["region"], pool["compute_size"]): pool["stock"]["warm"] for pool in pools}
            if all(warm.get(where, 0) >= count for where, count in wanted.items()):
                return
            if time.monotonic() > end:
                raise RuntimeError(f"the pools do not fill: {warm}")
            time.sleep(0.25)

    def memory(self) -> dict[str, list[tuple[int, int]]]:
        """What the fleet's processes are: name -> (pid, resident bytes) of each."""
        home = find_home(self.home)
        assert home is not None
        found: dict[str, list[tuple[int, int]]] = {}
        for pid in supervised(home):
            try:
                name, size = command_of(pid), psutil.Process(pid).memory_info().rss
            except psutil.NoSuchProcess:
                continue
            found.setdefault(_kind(name), []).append((pid, size))
        return found


def _kind(command: str) -> str:
    for part in ("RegionManager", "SimulatedHost", "ServeReplica", "ServeController", "HAProxyManager", "ProxyActor"):
        if part in command:
            return part
    return Path(command.split(" ", 1)[0]).name


@contextmanager
def own_fleet(nodes: dict[str, Any], folder: Path | None = None, **settings: str) -> Iterator[OwnFleet]:
    """A running fleet with that node configuration (docs/scale.md) and those FLEET_… settings."""
    with tempfile.TemporaryDirectory(prefix="fleet-bench-") as scratch:
        place = folder or Path(scratch)
        config = place / "nodes.yaml"
        config.write_text(yaml.safe_dump(nodes))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLEET_", "RAY_"))}
        own = {
            "FLEET_HOME": str(place / "home"),
            "FLEET_PORT": str(free_ports(1)[0]),
            "FLEET_NODE_CONFIG": str(config),
            "FLEET_RUNTIME": "simulated",
            # The limits stay in the way that is measured; only their numbers are a big customer's.
            "FLEET_LIMITS__READS_PER_S": "100000",
            "FLEET_LIMITS__WRITES_PER_S": "100000",
        }
        env = kept | own | {f"FLEET_{name}": value for name, value in settings.items()}
        try:
            _fleet(env, "up")
            access = _access(place / "home")
            with httpx.Client(
                base_url=access.url, headers={"api-key": access.server_key}, timeout=130, trust_env=False
            ) as http:
                yield OwnFleet(access.url, access.server_key, place / "home", env, http)
        finally:
            _fleet(env, "down")


def _access(path: Path) -> Any:
    home = find_home(path)
    access = read_access(home) if home else None
    if access is None:
        raise RuntimeError(f"no fleet runs in {path}")
    return access


def _fleet(env: dict[str, str], command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fleet.cli", command],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=UP_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        raise RuntimeError(f"fleet {command}: {done.stdout}{done.stderr}")
