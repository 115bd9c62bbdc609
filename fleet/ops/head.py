"""The Ray head of this machine: start it privately, remember it, know whether it lives."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from fleet.ops.haproxy import proxy_environment
from fleet.ops.home import Home, StartFailed, free_ports, make_run_dir, read_json, reserve_ports, write_private
from fleet.ops.processes import MARKER, ProcessId, command_of, end, identify, is_alive, supervised
from fleet.region.nodes_config import load_nodes_config
from fleet.settings import FleetSettings

log = structlog.get_logger(__name__)

OBJECT_STORE_BYTES = 150_000_000
START_TIMEOUT_S = 120.0
KILLED_S = 10.0  # for a process that was killed to end
NOT_INHERITED = frozenset({"RAY_ADDRESS", "RAY_TMPDIR", "RAY_NAMESPACE", "PYTHONDONTWRITEBYTECODE"})
GCS, RAYLET = "gcs_server", "raylet"
CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@dataclass(frozen=True, slots=True)
class Head:
    """A running head. `environment` is what every process needs to talk to it."""

    address: str
    gcs: ProcessId
    raylet: ProcessId
    environment: dict[str, str]

    @property
    def alive(self) -> bool:
        return is_alive(self.gcs) and is_alive(self.raylet)


def head_environment(home: Home, settings: FleetSettings) -> dict[str, str]:
    """What the head, and so each of its workers, gets on top of the caller's environment."""
    reserve_ports(settings.port, settings.tls.api_port)
    environment = {
        # Off, Ray takes 127.0.0.1 for an address, and all of its processes listen there alone. On, it replaces it by
        # the network card's address, and listens on every interface, which other machines need.
        CLUSTER: "0" if is_this_machine(head_address(settings)) else "1",
        "FLEET_PORT": str(settings.port),
        "FLEET_RUNTIME": settings.runtime,
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # Ray ends idle workers after 1 s; a build's pipeline then pays a new worker's start of seconds each time.
        "RAY_idle_worker_killing_time_threshold_ms": "60000",
        "DASHBOARD_METRIC_PORT": str(free_ports(1)[0]),
    }
    if settings.node_config:
        environment["FLEET_NODE_CONFIG"] = str(settings.node_config.resolve())
    if settings.plans_config:
        environment["FLEET_PLANS_CONFIG"] = str(settings.plans_config.resolve())
    return ray_environment(home, settings) | environment | proxy_environment(home.run_dir / "proxy", settings)


def ray_environment(home: Home, settings: FleetSettings) -> dict[str, str]:
    """What Ray needs on the head and on every node."""
    return {
        MARKER: str(home.path),
        "FLEET_HOME": str(home.path),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file(home, settings)),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray would tell the head's metadata store of every call's every state, for a list that nobody here reads.
        "RAY_task_events_report_interval_ms": "0",
        "RAY_event_stats": "0",
        # Ray's default is nice 15: any busy game or neighbour would starve the API, the managers and the agents,
        # which need little but need it at once.
        "RAY_worker_niceness": "0",
        # A dead machine is known after about 8 s (15 by Ray's defaults); a stall must last as long to pass for one.
        "RAY_health_check_period_ms": "2000",
        "RAY_health_check_timeout_ms": "4000",
        "RAY_health_check_failure_threshold": "4",
        "PYTHONUNBUFFERED": "1",
    }


def child_environment(additions: dict[str, str]) -> dict[str, str]:
    """The caller's environment, without what leads to another Ray cluster or slows imports, and the additions."""
    own = {key: value for key, value in os.environ.items() if key not in NOT_INHERITED}
    programs = str(Path(sys.executable).parent)
    return own | {"PATH": f"{programs}{os.pathsep}{own.get('PATH', os.defpath)}"} | additions


def start_head(home: Home, settings: FleetSettings) -> Head:
    """Start Ray's head with one unit of `node:<region>` for each enabled region. OpsError if it does not come up."""
    make_run_dir(home)
    # Replicas count into it; those of an earlier head are gone, and counters that begin anew are no fault.
    shutil.rmtree(home.path / "metrics", ignore_errors=True)
    environment = head_environment(home, settings)
    address = head_address(settings)
    gcs_port, client_port, agent_port = free_ports(3)
    gcs_port = settings.head_port or gcs_port
    command = _command(home, settings, address, gcs_port, client_port, agent_port)
    output = home.logs / "ray-start.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            env=child_environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=home.work_dir,
            start_new_session=True,
        )
        try:
            code = process.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait(KILLED_S)
    if code != 0:
        raise StartFailed(f"Ray did not start (exit code {code}): {last_words(output)} More is in {output}.")
    head = Head(f"{address}:{gcs_port}", *_find_processes(home), environment)
    _end_client_server(home)
    write_private(home.head_file, json.dumps(asdict(head), indent=2))
    return head


def head_address(settings: FleetSettings) -> str:
    """Where nodes reach the head. `auto` is the address from which this machine reaches the rest of the world."""
    if settings.head_address != "auto":
        return settings.head_address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # chooses a route; nothing is sent
        return str(probe.getsockname()[0])


def is_this_machine(address: str) -> bool:
    """Whether only this machine reaches a head there: exactly what Ray takes for it."""
    return address in ("127.0.0.1", "::1", "localhost")


def token_file(home: Home, settings: FleetSettings) -> Path:
    """The cluster's token: as the settings say, else this home's own."""
    return settings.ray_token.expanduser().resolve() if settings.ray_token else home.token_file


def _command(
    home: Home, settings: FleetSettings, address: str, gcs_port: int, client_port: int, agent_port: int
) -> list[str]:
    nodes = load_nodes_config(settings.node_config)
    resources = nodes.resources()
    return [
        str(Path(sys.executable).parent / "ray"),
        "start",
        "--head",
        f"--node-ip-address={address}",
        f"--port={gcs_port}",
        f"--ray-client-server-port={client_port}",
        f"--dashboard-agent-listen-port={agent_port}",
        "--include-dashboard=false",
        "--include-log-monitor=false",
        "--disable-usage-stats",
        # In a cluster the head carries the fleet's own processes only, and those ask for no CPU.
        f"--num-cpus={max(2, os.cpu_count() or 2) if nodes.on_head else 0}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--resources={json.dumps(resources)}",
        f"--temp-dir={home.run_dir / 'ray'}",
        f"--autoscaling-config={settings.autoscaling_config}" if settings.autoscaling_config else "--no-monitor",
    ]


def _find_processes(home: Home) -> tuple[ProcessId, ProcessId]:
    programs = {Path(command_of(pid).split(" ", 1)[0]).name: pid for pid in supervised(home)}
    found = [identify(programs[name]) for name in (GCS, RAYLET) if name in programs]
    if len(found) != 2 or found[0] is None or found[1] is None:
        raise StartFailed(f"Ray started, but died at once. See {home.run_dir / 'ray'} and {home.logs}.")
    return found[0], found[1]


def _end_client_server(home: Home) -> None:
    """Ray's remote-client server is of no use here: 90 MB of memory and one more door. `ray start` cannot omit it."""
    pids = [pid for pid in supervised(home) if "ray.util.client.server" in command_of(pid)]
    end(pids, home, grace_s=2.0)


def read_head(home: Home) -> Head | None:
    """The head that was started last, alive or not."""
    found = read_json(home.head_file)
    if not found:
        return None
    try:
        gcs, raylet = ProcessId(**found.pop("gcs")), ProcessId(**found.pop("raylet"))
        return Head(gcs=gcs, raylet=raylet, **found)
    except (KeyError, TypeError):
        log.warning("head_record_unreadable", file=str(home.head_file))
        return None


def forget_head(home: Home) -> None:
    home.head_file.unlink(missing_ok=True)


def run_module(home: Home, head: Head, module: str, *arguments: str, timeout_s: float, log_file: Path) -> int:
    """Run one of our modules as a process that may connect to the head; -SIGKILL if it took too long."""
    make_run_dir(home)
    with log_file.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=child_environment(head.environment | {"RAY_ADDRESS": head.address}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=home.work_dir,
            start_new_session=True,
        )
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait(KILLED_S)


def last_words(path: Path) -> str:
    """What a program said last, as one short line: of a trace only its error."""
    return without_traces(tail(path, 60)) or "it said nothing."


def without_traces(text: str) -> str:
    """The last line that says what happened: neither of a stack's lines nor an empty one."""
    said = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith((" ", "\t"))]
    said = [line for line in said if not line.startswith("Traceback (most recent call last)")]
    return said[-1][:400] if said else ""


def tail(path: Path, lines: int) -> str:
    """The last lines of a text file, at most 16 KiB; empty if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 16384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""
