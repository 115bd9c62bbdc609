"""This machine as a node of a fleet whose head is elsewhere: `fleet node join`, `run`, `leave`.

A node is a Ray node that offers `node:<region>`; the region's manager leases it by an agent, which brings all else it
must know. Games outlive all of this: after Ray has ended and come back they are adopted.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from fleet.node.tls_proxy import end_all_proxies
from fleet.ops.engine import ensure_engine
from fleet.ops.head import (
    CLUSTER,
    OBJECT_STORE_BYTES,
    START_TIMEOUT_S,
    child_environment,
    is_this_machine,
    ray_environment,
    tail,
    token_file,
)
from fleet.ops.home import Home, OpsError, free_ports, make_run_dir, read_json, write_private
from fleet.ops.left_games import stop_left_games
from fleet.ops.membership import is_known
from fleet.ops.processes import command_of, end_supervised, held, supervised, wait_ended
from fleet.settings import FleetSettings
from fleet.times import keep_clock

log = structlog.get_logger(__name__)
Report = Callable[[str], None]
RAYLET = "raylet"
# The head is asked so often whether it knows this node; after so many times "no" the node joins anew.
ASK_EVERY_S, UNKNOWN_LIMIT = 10.0, 3
BACKOFF_FIRST_S, BACKOFF_MAX_S, STABLE_S = 2.0, 60.0, 120.0
_RESOURCE = re.compile(r"node:([a-z0-9-]+)(:[a-z0-9-]+)?")


def offered(regions: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Ray resources of this node: as asked for, else as Ray's autoscaler says (it wins anyway)."""
    told: dict[str, float] = json.loads(environment.get("RAY_OVERRIDE_RESOURCES", "{}"))
    return {**{f"node:{region}": 1 for region in regions}, **{k: v for k, v in told.items() if _RESOURCE.fullmatch(k)}}


def join(
    home: Home, settings: FleetSettings, address: str, regions: list[str], node_ip: str | None, report: Report
) -> None:
    """Become a node; what was joined from this home before is replaced, its games go on. OpsError if it fails."""
    resources = offered(regions, dict(os.environ))
    if not resources:
        raise OpsError("Say which region this node is for: --region us-east.")
    if is_this_machine(address.rpartition(":")[0]):
        raise OpsError(
            f"A head at {address} takes no nodes. Start its fleet with FLEET_HEAD_ADDRESS=auto (docs/deploy.md), and "
            "say its address here."
        )
    ensure_engine(home, settings, report)
    end_supervised(home, grace_s=3.0)
    make_run_dir(home)
    write_private(home.path / "node.json", json.dumps({"address": address, "resources": resources}))
    report(f"Joining the fleet at {address}")
    output = home.logs / "ray-start.log"
    with output.open("wb") as file:
        code = _start(home, settings, _command(home, address, resources, node_ip), file.fileno())
    if code != 0:
        raise OpsError(f"Ray did not start (exit code {code}). Its last words, from {output}:\n{tail(output, 15)}")
    log.info("node_joined", address=address, resources=resources)


def _command(home: Home, address: str, resources: dict[str, float], node_ip: str | None) -> list[str]:
    command = [
        str(Path(sys.executable).parent / "ray"),
        "start",
        f"--address={address}",
        "--num-cpus=0",
        f"--resources={json.dumps(resources)}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={home.run_dir / 'ray'}",
        f"--dashboard-agent-listen-port={free_ports(1)[0]}",
        "--include-log-monitor=false",
        "--disable-usage-stats",
    ]
    return [*command, f"--node-ip-address={node_ip}"] if node_ip else command


def _start(home: Home, settings: FleetSettings, command: list[str], output: int) -> int:
    process = subprocess.Popen(
        command,
        env=child_environment(ray_environment(home, settings) | {CLUSTER: "1"}),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=home.work_dir,
        start_new_session=True,
    )
    try:
        return process.wait(START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def leave(home: Home, settings: FleetSettings, report: Report) -> bool:
    """Stop the games of this node and its part of Ray; False if there was nothing."""
    report("Leaving the fleet")
    ended = end_supervised(home, grace_s=3.0)
    resources: dict[str, float] = (read_json(home.path / "node.json") or {}).get("resources", {})
    regions = {found[1] for name in resources if (found := _RESOURCE.fullmatch(name))}
    stopped = stop_left_games(settings.fleet_id, settings, regions)
    end_all_proxies(home.path, regions)
    log.info("node_left", processes=ended, games=stopped)
    return bool(ended or stopped)


def known_by_head(home: Home, settings: FleetSettings, address: str) -> bool | None:
    """Whether the head counts this node as alive; None if it cannot be asked."""
    try:
        token = token_file(home, settings).read_text().strip()
    except OSError:
        return None
    return is_known(address, token, home.run_dir / "ray")


def keep_joined(
    rejoin: Callable[[], None], known: Callable[[], bool | None], home: Home, stop: threading.Event
) -> None:
    """Join, and join again whenever Ray here has ended (the head went, or started anew), or the head says of this node
    that it does not know it (`known`), until told to stop."""
    wait_s = 0.0
    while not stop.wait(wait_s):
        began = time.monotonic()
        try:
            rejoin()
            _until_left(home, known, stop)
        except OpsError as error:
            log.error("join_failed", error=error.detail)
        except Exception as error:  # no room on the disk, no descriptors: there may be some the next time
            log.error("join_failed", error=repr(error), exc_info=error)
        lasted = time.monotonic() - began
        wait_s = BACKOFF_FIRST_S if lasted > STABLE_S else min(max(BACKOFF_FIRST_S, wait_s * 2), BACKOFF_MAX_S)


def _until_left(home: Home, known: Callable[[], bool | None], stop: threading.Event) -> None:
    """Until this machine's raylet has ended, or belongs to no cluster any more."""
    raylet = next((pid for pid in supervised(home) if Path(command_of(pid).split(" ", 1)[0]).name == RAYLET), None)
    if raylet is None:
        return
    unknown, asked = 0, time.monotonic()
    with held(raylet) as fd:
        while fd is not None and not stop.is_set() and wait_ended([fd], 1.0):
            keep_clock(home.path)
            if time.monotonic() - asked < ASK_EVERY_S:
                continue
            unknown = unknown + 1 if known() is False else 0
            asked = time.monotonic()
            if unknown >= UNKNOWN_LIMIT:
                log.error("node_unknown_to_head", raylet=raylet, times=unknown)
                return


def stop_on_signals() -> threading.Event:
    """Set by SIGTERM and SIGINT."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return stop
