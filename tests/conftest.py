"""What all suites share: one real fleet per session, and its logs when something failed."""

import json
import os
import random
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import hypothesis
import pytest

from fleet.ops.head import tail
from fleet.ops.home import free_ports
from fleet.store import migrate
from tests.player import Studio
from tests.postgres import PostgresMissing, PostgresServer
from tests.s3 import LOGIN, S3Server

ROOT = Path(__file__).parent.parent
UP_TIMEOUT_S = 600

# A busy machine is no fault of the example that was being tried.
hypothesis.settings.register_profile("fleet", deadline=None)
hypothesis.settings.load_profile("fleet")
STARTED: pytest.StashKey[list[Path]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    """What runs within the tests' process has no fleet's home, above all not the developer's own in this folder."""
    os.environ["FLEET_HOME"] = str(ROOT / ".no-home-in-tests")


@dataclass(frozen=True)
class RunningFleet:
    """A fleet that answers at `url`; `env` is what its commands need."""

    url: str
    server_key: str
    client_key: str
    project_id: str
    home: Path
    env: dict[str, str]

    def client(self, key: str | None = None) -> httpx.Client:
        """An HTTP client with the server key (or another)."""
        return httpx.Client(base_url=self.url, headers={"api-key": key or self.server_key}, timeout=90, trust_env=False)

    @property
    def faults(self) -> Path:
        """Where a file of a crash point's name kills the process that passes it (fleet/faults.py)."""
        return Path(self.env["FLEET_FAULTS"])

    def command(self, *arguments: str, timeout_s: float = UP_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        return run_fleet(self.env, *arguments, timeout_s=timeout_s)


def run_fleet(
    env: dict[str, str], *arguments: str, timeout_s: float = UP_TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """The `fleet` command with that environment; output as text, no exception on failure."""
    command = [sys.executable, "-m", "fleet.cli", *arguments]
    return subprocess.run(
        command,
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def fleet_environment(folder: Path) -> dict[str, str]:
    """Settings of a fleet of its own: home, API port, and game ports that are unlikely to meet another fleet's."""
    first = random.randrange(20000, 29000, 100)
    config = folder / "nodes.yaml"
    (folder / "faults").mkdir(exist_ok=True)
    config.write_text(f"regions: all\nnode:\n  ports: {{first: {first}, per_region: 200}}\n")
    own = {key: value for key, value in os.environ.items() if not key.startswith(("FLEET_", "RAY_"))}
    passed_on = {key: os.environ[key] for key in ("FLEET_RUNTIME", "FLEET_BASE_IMAGE") if key in os.environ}
    return (
        own
        | passed_on
        | {
            "FLEET_HOME": str(folder / "home"),
            "FLEET_PORT": str(free_ports(1)[0]),
            "FLEET_NODE_CONFIG": str(config),
            "FLEET_FAULTS": str(folder / "faults"),
            "FLEET_LOCAL_IMAGES": '["fleet-test-*"]',
            # What tests wait for comes sooner than the defaults would bring it.
            "FLEET_SERVERS__READY_DEADLINE_S": "20",
            "FLEET_RESTARTS__BACKOFF_FIRST_S": "0.2",
            "FLEET_RESTARTS__MAX_CRASHES": "3",
            # The suites share one key and are many at once, as a big customer's back ends are.
            "FLEET_LIMITS__READS_PER_S": "5000",
            "FLEET_LIMITS__WRITES_PER_S": "1000",
            "FLEET_LIMITS__LOBBY_WRITES_PER_ADDRESS_PER_S": "1000",
            "FLEET_LIMITS__UNKNOWN_KEYS_PER_MINUTE": "100000",
        }
    )


def started_fleet(env: dict[str, str]) -> RunningFleet:
    """`fleet up`, and what it wrote for scripts."""
    done = run_fleet(env, "up")
    assert done.returncode == 0, done.stdout + done.stderr
    access = json.loads(Path(env["FLEET_HOME"], "fleet.json").read_text())
    return RunningFleet(**access, home=Path(env["FLEET_HOME"]), env=env)


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[RunningFleet]:
    """The session's fleet: real Ray, real Serve, real containers where there is an engine.

    FLEET_TEST_HOME names one that runs already (a developer's loop): it is used and left running.
    """
    if running := os.environ.get("FLEET_TEST_HOME"):
        yield started_fleet(dict(os.environ) | {"FLEET_HOME": running})
        return
    env = fleet_environment(tmp_path_factory.mktemp("fleet"))
    request.config.stash.setdefault(STARTED, []).append(Path(env["FLEET_HOME"]))
    try:
        yield started_fleet(env)
    finally:
        down = run_fleet(env, "down")
    assert down.returncode == 0, down.stdout + down.stderr


@pytest.fixture(scope="session")
def studio(fleet: RunningFleet) -> Iterator[Studio]:
    """A studio's back end on the session's fleet."""
    found = Studio(fleet.url, fleet.server_key)
    yield found
    found.http.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server with a database `migrated`, to be copied."""
    try:
        server = PostgresServer()
    except PostgresMissing as missing:
        pytest.skip(f"no PostgreSQL: {missing}")
    try:
        server.create()
        server.start()
        server.sql("CREATE DATABASE migrated")
        migrate.upgrade(server.url("migrated"))
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """A migrated, empty database of the test's own."""
    name = postgres.new_database("migrated")
    yield postgres.url(name)
    postgres.drop(name)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3_url(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of the test's own in the bucket, with the login in the environment."""
    for name, value in LOGIN.items():
        monkeypatch.setenv(name, value)
    return s3.url(f"t-{secrets.token_hex(6)}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """After a failure, the last lines of every log of the session's fleet."""
    if not (terminalreporter.stats.get("failed") or terminalreporter.stats.get("error")):
        return
    for home in config.stash.get(STARTED, []):
        for path in sorted(home.glob("logs/*.log")):
            terminalreporter.write_sep("-", f"{path.name} (last lines)")
            terminalreporter.write_line(tail(path, 20))
