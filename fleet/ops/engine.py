"""The container engine: use the one that runs, else install and start one where we may, else say what is missing.

An engine that already runs is never touched. One that we start is remembered in the home folder, so that `down` stops
that one and no other.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import Any

import docker
import docker.errors
import structlog

from fleet.node.choose import read_pin
from fleet.node.isolation import ENGINE_LABEL
from fleet.ops.head import tail
from fleet.ops.home import Home, OpsError, read_json, write_private
from fleet.ops.processes import ProcessId, held, identify, is_alive, wait_ended
from fleet.settings import SIMULATED, FleetSettings

log = structlog.get_logger(__name__)
Report = Callable[[str], None]
PACKAGES = ("docker.io", "iptables", "iproute2", "ca-certificates")
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


def connect_engine(timeout_s: float = 5.0) -> docker.DockerClient:
    """A client of the engine; DockerException if there is none."""
    return docker.DockerClient.from_env(timeout=int(timeout_s))  # pyright: ignore[reportUnknownMemberType]


def engine_answers() -> bool:
    """Whether a container engine is reachable by the usual means (DOCKER_HOST, the default socket)."""
    try:
        with closing(connect_engine()) as client:
            return bool(client.ping())  # pyright: ignore[reportUnknownMemberType]
    except (docker.errors.DockerException, OSError):
        return False


def ensure_engine(home: Home, settings: FleetSettings, report: Report) -> bool:
    """True if containers can be used. Never raises unless `runtime` is set to docker and there is no way to it."""
    runtime = settings.runtime if settings.runtime != "auto" else read_pin(home.path) or "auto"
    if runtime == "simulated":
        report(SIMULATED)
    if runtime in ("process", "simulated") or engine_answers():
        return runtime not in ("process", "simulated")
    problem = _why_not()
    if problem is None:
        try:
            _install(report)
            _start(home, report)
            return True
        except OpsError as error:
            problem = error.detail
        except (OSError, subprocess.SubprocessError) as error:
            problem = f"it could not be installed and started: {error}"
    if settings.runtime == "docker":
        raise OpsError(f"No container engine answers: {problem}")
    log.warning("no_engine", problem=problem, runtime=runtime)
    if runtime == "docker":  # what this home's games have run in is waited for, never replaced
        report(f"No container engine answers: {problem}. Nodes wait for it, since this home's games run in containers")
    else:
        report(f"No container engine: {problem}. Games run as plain processes, WITHOUT isolation")
    return False


def _why_not() -> str | None:
    """Why we may not start an engine ourselves; None if we may."""
    if os.environ.get("DOCKER_HOST"):
        return f"DOCKER_HOST={os.environ['DOCKER_HOST']} does not answer"
    if os.geteuid() != 0:
        return "none answers, and only root may start one"
    if shutil.which("dockerd") is None and shutil.which("apt-get") is None:
        return "none is installed, and there is no apt-get here"
    return None


def _install(report: Report) -> None:
    if shutil.which("dockerd") and shutil.which("iptables"):
        return
    report("Installing the container engine (apt-get, about a minute)")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(
            ["apt-get", "-o", "DPkg::Lock::Timeout=120", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
        if done.returncode != 0:
            raise OpsError(f"apt-get {command[0]} failed: {done.stdout.strip()[-600:]}")


def _start(home: Home, report: Report) -> None:
    """Start dockerd in a session of its own and wait until it answers."""
    if engine_answers():  # the package may have started it as a service
        return
    report("Starting the container engine")
    config = home.path / "dockerd.json"
    # With the proxy, ports on loopback are dead whenever the engine restarts; without it, the kernel serves them.
    # icc: games of different projects must not reach each other over the bridge they share.
    write_private(
        config, json.dumps({"userland-proxy": False, "live-restore": True, "icc": False, "labels": [ENGINE_LABEL]})
    )
    output = home.logs / "dockerd.log"
    with output.open("ab") as file:
        process = subprocess.Popen(
            ["dockerd", "--config-file", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = identify(process.pid)
    if started:
        write_private(home.engine_file, json.dumps(asdict(started)))
    deadline = time.monotonic() + START_TIMEOUT_S
    while not engine_answers():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            home.engine_file.unlink(missing_ok=True)
            raise OpsError(f"dockerd did not start. Its last words, from {output}:\n{tail(output, 8)}")
        time.sleep(0.1)
    log.info("engine_started", pid=process.pid)


def stop_engine(home: Home, report: Report) -> bool:
    """Stop the engine that this fleet started, unless others use it now; True if it was stopped."""
    record = read_json(home.engine_file)
    if record is None:
        return False
    process = ProcessId(**record)
    if not is_alive(process):
        home.engine_file.unlink()
        return False
    others = _running_containers()
    if others:
        report(f"Leaving the container engine: {len(others)} other containers run in it")
        return False
    report("Stopping the container engine")
    with held(process.pid) as fd:
        if fd is not None and is_alive(process):
            os.kill(process.pid, 15)
            if wait_ended([fd], STOP_TIMEOUT_S):
                log.error("engine_did_not_stop", pid=process.pid)
                return False
    home.engine_file.unlink()
    return True


def _running_containers() -> list[Any]:
    try:
        with closing(connect_engine()) as client:
            return list(client.containers.list())
    except (docker.errors.DockerException, OSError):
        return []
