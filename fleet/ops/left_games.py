"""Games that are still there when no manager can stop them: found by label and by folder, stopped gracefully."""

import asyncio
import shutil
from collections.abc import Collection, Coroutine
from contextlib import closing
from typing import Any

import docker.errors
import structlog

from fleet.catalog import load_catalog
from fleet.node.as_root import NotAllowed
from fleet.node.docker_networks import ROLE
from fleet.node.docker_spec import key_of
from fleet.node.isolation import network_name, take_down
from fleet.node.process import ProcessRuntime
from fleet.node.runtime import RuntimePlace
from fleet.node.server_disks import ServerDisks
from fleet.ops.engine import connect_engine, engine_answers
from fleet.settings import FleetSettings

log = structlog.get_logger(__name__)


def stop_left_games(fleet_id: str, settings: FleetSettings, regions: Collection[str] | None = None) -> int:
    """Stop the fleet's games on this machine, in every runtime; all or of some regions. Returns how many there were."""
    grace_s = settings.servers.stop_grace_s
    if regions is None:
        regions = tuple(load_catalog().regions)
    shutil.rmtree(settings.home / "simulated", ignore_errors=True)  # nothing runs there
    processes = asyncio.run(_stop_processes(fleet_id, settings, regions, grace_s))
    containers = _stop_containers(fleet_id, regions, grace_s)
    _drop_disks(fleet_id, settings)
    _drop_walls(fleet_id, settings)
    return containers + processes


def _stop_containers(fleet_id: str, regions: Collection[str], grace_s: float) -> int:
    if not engine_answers():
        return 0
    with closing(connect_engine(timeout_s=grace_s + 30)) as client:
        ours = client.containers.list(all=True, filters={"label": f"fleet.id={fleet_id}"})
        found = [container for container in ours if container.labels.get("fleet.region") in regions]
        games = [container for container in found if ROLE not in container.labels]
        for container in games:
            _remove(container, grace_s)
        for network in (container for container in found if ROLE in container.labels):
            _remove(network, 0)  # after the games that use it
        return len(games)


def _drop_disks(fleet_id: str, settings: FleetSettings) -> None:
    """What games wrote that have no container any more, and the mounts of it."""
    disks = ServerDisks(settings.servers_dir, 0.0)
    left = disks.runs()
    if not left or not engine_answers():
        return
    with closing(connect_engine()) as client:
        ours: list[Any] = client.containers.list(all=True, filters={"label": f"fleet.id={fleet_id}"})
        there = {str(key_of(container.labels, container.name or "", fleet_id)) for container in ours}
    for run in left - there:
        try:
            disks.remove(run)
        except NotAllowed as error:
            log.error("disk_not_removed", run=run, error=str(error))


def _drop_walls(fleet_id: str, settings: FleetSettings) -> None:
    """The rules and the bridge go with the last container."""
    if engine_answers():
        with closing(connect_engine()) as client:
            if client.containers.list(filters={"label": f"fleet.id={fleet_id}"}):
                return
            for network in client.networks.list(names=[network_name(fleet_id)]):
                network.remove()
    take_down(fleet_id, settings.home / "firewall.lock")


def _remove(container: Any, grace_s: float) -> None:
    try:
        if container.status == "paused":  # a frozen game could not hear the signal
            container.unpause()
        container.stop(timeout=int(grace_s))
        container.remove(force=True, v=True)
    except docker.errors.NotFound:
        return
    except docker.errors.APIError as error:
        log.error("container_not_removed", container=container.name, error=str(error))


async def _stop_processes(fleet_id: str, settings: FleetSettings, regions: Collection[str], grace_s: float) -> int:
    stops: list[Coroutine[Any, Any, None]] = []
    for region in regions:
        runtime = ProcessRuntime(RuntimePlace(fleet_id, region, settings.servers_dir, settings.bundles))
        running = [run.key for run in await runtime.list() if run.running]
        stops += [runtime.stop(key, grace_s) for key in running]
    await asyncio.gather(*stops)
    return len(stops)
