"""Games that are still there when no manager can stop them: found by label and by folder, stopped gracefully."""

import asyncio
import shutil
from contextlib import closing
from typing import Any

import docker.errors
import structlog

from fleet.catalog import load_catalog
from fleet.node.docker_networks import ROLE
from fleet.node.process import ProcessRuntime
from fleet.node.runtime import RuntimePlace
from fleet.ops.engine import connect_engine, engine_answers
from fleet.ops.home import Home
from fleet.settings import FleetSettings

log = structlog.get_logger(__name__)


def stop_left_games(home: Home, settings: FleetSettings) -> int:
    """Stop every game of this fleet, in every runtime; returns how many there were. Containers are removed."""
    grace_s = settings.servers.stop_grace_s
    shutil.rmtree(settings.home / "simulated", ignore_errors=True)  # nothing runs there
    return _stop_containers(home, grace_s) + asyncio.run(_stop_processes(home, settings, grace_s))


def _stop_containers(home: Home, grace_s: float) -> int:
    if not engine_answers():
        return 0
    with closing(connect_engine(timeout_s=grace_s + 30)) as client:
        found = client.containers.list(all=True, filters={"label": f"fleet.id={home.fleet_id}"})
        games = [container for container in found if ROLE not in container.labels]
        for container in games:
            _remove(container, grace_s)
        for network in (container for container in found if ROLE in container.labels):
            _remove(network, 0)  # after the games that use it
        return len(games)


def _remove(container: Any, grace_s: float) -> None:
    try:
        if container.status == "paused":  # a frozen game could not hear the signal
            container.unpause()
        container.stop(timeout=int(grace_s))
        container.remove(force=True)
    except docker.errors.NotFound:
        return
    except docker.errors.APIError as error:
        log.error("container_not_removed", container=container.name, error=str(error))


async def _stop_processes(home: Home, settings: FleetSettings, grace_s: float) -> int:
    stops: list[asyncio.Task[None]] = []
    for region in load_catalog().regions:
        runtime = ProcessRuntime(RuntimePlace(home.fleet_id, region, settings.servers_dir, settings.bundles))
        running = [run.key for run in await runtime.list() if run.running]
        stops += [asyncio.create_task(runtime.stop(key, grace_s)) for key in running]
    await asyncio.gather(*stops)
    return len(stops)
