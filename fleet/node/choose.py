"""Which runtime a node uses: the engine where there is one, else plain processes; or the simulation, if asked for."""

import structlog

from fleet.node.docker import DockerRuntime
from fleet.node.firewall import check_reach
from fleet.node.process import ProcessRuntime
from fleet.node.runtime import EngineUnavailable, Runtime, RuntimePlace
from fleet.node.simulated import SimulatedRuntime
from fleet.settings import FleetSettings

log = structlog.get_logger(__name__)


async def choose_runtime(settings: FleetSettings, region: str, node: str = "0") -> Runtime:
    """`settings.runtime`, where `auto` is docker if an engine answers now and process otherwise.

    `node` tells simulated nodes of a region apart.
    """
    place = RuntimePlace(
        fleet_id=settings.fleet_id,
        region=region,
        servers_dir=settings.servers_dir,
        bundles=settings.bundles,
        base_image=settings.base_image,
        door_port=settings.node.door_port,
        api_ports=(settings.tls.api_port or settings.port,),  # with TLS the plain one is on the loopback
        reach=tuple(check_reach(target) for target in settings.node.reach),
        walled=settings.node.walls,
    )
    if settings.runtime == "simulated":
        return SimulatedRuntime(place, settings.simulated, node)
    if settings.runtime == "process":
        return ProcessRuntime(place)
    docker = DockerRuntime(place)
    if settings.runtime == "docker":
        return docker
    try:
        await docker.ping()
    except EngineUnavailable as error:
        await docker.close()
        log.warning(
            "no container engine: games run as plain processes, without isolation",
            error=str(error),
        )
        return ProcessRuntime(place)
    return docker
