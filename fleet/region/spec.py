"""From a server's row to what a node is told: LaunchSpec, playflow.json, environment. Pure."""

from typing import Any

import orjson

from fleet.catalog import ComputeSize
from fleet.node.hearing import READY_BY
from fleet.node.model import NodeShare
from fleet.node.runtime import BuildRef, GameSecrets, LaunchSpec, Port
from fleet.region.plan import current
from fleet.settings import FleetSettings
from fleet.store.tables import Build, Server


def game_config(server: Server) -> dict[str, Any]:
    """The content of playflow.json. Fields are strings and left out rather than null: clients read them so."""
    config: dict[str, Any] = {
        "instance_id": server.instance_id,
        "region": server.region,
        "version_tag": server.version_tag,
        "startup_args": server.startup_args or "",
        "arguments": server.startup_args or "",
        "custom_data": server.custom_data or {},
    }
    if server.match_id is not None:
        config["match_id"] = server.match_id
    if server.is_pool_server:
        config["pool"] = "claimed" if server.pool_claimed_at else "idle"
    return config


def game_environment(server: Server, own: dict[str, str]) -> dict[str, str]:
    """What the game finds in its environment; `own`, the caller's variables, win."""
    known = {
        "PLAYFLOW_INSTANCE_ID": server.instance_id,
        "PLAYFLOW_REGION": server.region,
        "PLAYFLOW_VERSION_TAG": server.version_tag,
        "PLAYFLOW_MATCH_ID": server.match_id or "",
        "PLAYFLOW_STARTUP_ARGS": server.startup_args or "",
        "PLAYFLOW_CUSTOM_DATA": orjson.dumps(server.custom_data or {}).decode(),
    }
    for port in server.port_configs or []:
        name = "".join(c if c.isalnum() else "_" for c in port["name"]).upper()
        known[f"PLAYFLOW_PORT_{name}"] = str(port["internal_port"])
    # The kernel refuses a longer single string; the game still has it in playflow.json.
    if len(known["PLAYFLOW_CUSTOM_DATA"]) > 64 * 1024:
        del known["PLAYFLOW_CUSTOM_DATA"]
    return {**known, **own}


def build_ref(build: Build, credentials: dict[str, str] | None) -> BuildRef:
    zipped = build.build_type == "zip"
    return BuildRef(
        build_id=build.build_id,
        kind="zip" if zipped else "image",
        content_hash=build.content_hash,
        root=build.bundle_root or "",
        executable=build.executable_path,
        image=build.image_url,
        credentials=credentials,
        writable=build.writable,
        unpacked_bytes=build.unpacked_bytes or 0,
        packed_bytes=build.packed_bytes or 0,
        ready_by=build.ready_by,
        project_id=build.project_id,
    )


def launch_spec(
    server: Server,
    build: BuildRef,
    size: ComputeSize,
    share: NodeShare,
    settings: FleetSettings,
    environment: dict[str, str],
    secrets: GameSecrets,
) -> LaunchSpec:
    """The run of the row's present generation, with its own variables in clear. Host ports are 0 here; the node gives
    them."""
    limits = settings.servers
    ports = [_port(p) for p in server.port_configs or []]
    return LaunchSpec(
        key=current(server),
        region=server.region,
        project_id=server.project_id,
        build=build,
        memory_mb=size.memory_mb,
        cpus=size.cpus,
        dedicated=size.dedicated,
        ports=tuple(ports),
        bind_host=share.bind_host,
        startup_args=server.startup_args,
        environment=game_environment(server, environment),
        config=game_config(server),
        labels={
            "fleet.project": server.project_id,
            "fleet.build": server.build_id,
            READY_BY: build.ready_by or "ports",
        },
        disk_mb=size.disk_mb,
        pids=limits.pids,
        tmpfs_mb=limits.tmpfs_mb,
        log_mb=settings.logs.max_mb,
        writable_extra_mb=limits.writable_extra_mb,
        secrets=secrets,
    )


def _port(declared: dict[str, Any]) -> Port:
    number, tls = int(declared["internal_port"]), bool(declared.get("tls_enabled"))
    return Port(declared["name"], number, 0, declared["protocol"], tls)


def network_ports(server: Server, ports: tuple[Port, ...], host: str | None) -> list[dict[str, Any]]:
    """The API's `network_ports`: players use host:external_port (null until a node is found)."""
    external = {port.name: port.external for port in ports}
    return [
        {
            "name": port["name"],
            "internal_port": port["internal_port"],
            "external_port": external.get(port["name"]),
            "protocol": port["protocol"],
            "host": host,
            "tls_enabled": bool(port.get("tls_enabled", False)),
        }
        for port in server.port_configs or []
    ]
