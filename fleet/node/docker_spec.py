"""LaunchSpec → container configuration, and labels → what was launched. Pure: no engine, no files, no clock.

Everything that a restarted agent must know is in the labels, so that a listing is enough to adopt a container.
"""

import posixpath
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from fleet.node.disk import DiskPlan
from fleet.node.executable import executable_of, game_arguments
from fleet.node.game_api import CONFIG_PATH
from fleet.node.runtime import LaunchSpec, Port, RunKey
from fleet.node.secret_files import SECRETS, TOLD, owner_of

GAME, BUNDLE, CONFIG, TMP = "/game", "/bundle", "/playflow", "/tmp"
NETWORK = "fleet.network"  # label: the sandbox whose network a game has joined
DOOR = "fleet.door"  # label: where the game finds its node
LOOPBACK = "127.0.0.1"  # where a game is published whose TLS the node ends
SOCKET, UNIX = "agent.sock", "unix"
GAME_USER = "1000:1000"
_PORT_TAKEN = ("port is already allocated", "address already in use")
# The engine's own list, and what it mounts from the host's disk for each container: root could fill it from inside.
_READ_ONLY = (
    *("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"),
    *("/etc/hosts", "/etc/hostname", "/etc/resolv.conf"),
)
# Fills the writable copy, then becomes the game: no process stays between it and its signals.
_FILL = f'cp -RP {BUNDLE}/. {GAME}/ && chmod -R u+w {GAME} && cd "$0" && exec "$@"'


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a launch needs to know of an image."""

    reference: str
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: frozenset[str] = frozenset()
    volumes: tuple[str, ...] = ()
    user: str = ""


@dataclass(frozen=True, slots=True)
class Host:
    """What of the host goes into a configuration."""

    fleet_id: str
    cpus: int
    servers_dir: Path
    bundles: Path
    open_files: int = 4096
    secrets: Path = Path()  # folders of runs with secrets that are files
    network: str = "bridge"  # NetworkMode of a container with a network of its own
    runtime: str = ""  # of games, by its name in the engine; empty: the engine's default
    door_port: int = 0  # first choice for the port of a game's door (`docker_doors.py`); 0: a Unix socket


def door_of(spec: LaunchSpec, first_port: int) -> str:
    """Where the run's door is: the first port from `first_port` that the game has not declared, or `unix`."""
    if not first_port:
        return UNIX
    declared = {port.internal for port in spec.ports if port.protocol == "tcp"}
    return str(next(port for port in range(first_port, first_port + len(declared) + 1) if port not in declared))


def config_url(door: str) -> str:
    """PLAYFLOW_CONFIG_URL as the game is told it."""
    if door == UNIX:
        return f"http+unix://{CONFIG.replace('/', '%2F')}%2F{SOCKET}{CONFIG_PATH}"
    return f"http://127.0.0.1:{door}{CONFIG_PATH}"


def container_name(fleet_id: str, key: RunKey) -> str:
    return f"fleet-{fleet_id}-{key.instance_id}-{key.generation}"


def fleet_filter(fleet_id: str, region: str) -> list[str]:
    """Label filter that matches exactly the containers of one fleet in one region."""
    return [f"fleet.id={fleet_id}", f"fleet.region={region}"]


def container_config(
    spec: LaunchSpec, image: ImageFacts, host: Host, disk: DiskPlan | None = None, mounted: Path = Path("/")
) -> dict[str, Any]:
    """Body of the engine's create call. `mounted`: where the run's own file system is, if its disk plan has one."""
    door = door_of(spec, host.door_port)
    config: dict[str, Any] = {
        "Image": image.reference,
        "Labels": labels_of(spec, host.fleet_id) | {DOOR: door},
        "Env": _environment(spec, image, door),
        "ExposedPorts": {port_key(port): {} for port in spec.ports if spec.network is None},
        "HostConfig": _host_config(spec, host, disk or DiskPlan(), mounted),
        "AttachStdout": False,
        "AttachStderr": False,
    }
    return config | (_zip_command(spec) if spec.build.kind == "zip" else _image_command(spec, image))


def labels_of(spec: LaunchSpec, fleet_id: str) -> dict[str, str]:
    ports = [[port.name, *port.numbers()] for port in spec.ports]
    network = {NETWORK: spec.network} if spec.network else {}
    return (
        spec.labels
        | network
        | {
            "fleet.id": fleet_id,
            "fleet.region": spec.region,
            "fleet.server": spec.key.instance_id,
            "fleet.generation": str(spec.key.generation),
            "fleet.ports": orjson.dumps(ports).decode(),
            "fleet.memory": str(spec.memory_mb),
            "fleet.cpus": f"{spec.cpus:g}",
        }
    )


def key_of(labels: dict[str, str], name: str, fleet_id: str) -> RunKey | None:
    """The run of a container with these labels and this name; None if we did not launch it.

    An image can carry labels of its own, ours among them, so the name must agree: images cannot name containers.
    """
    generation = labels.get("fleet.generation", "")
    if not generation.isdigit():
        return None
    key = RunKey(labels.get("fleet.server", ""), int(generation))
    return key if name.lstrip("/") == container_name(fleet_id, key) else None


def ports_of(labels: dict[str, str]) -> tuple[Port, ...]:
    return tuple(Port(*fields) for fields in orjson.loads(labels["fleet.ports"]))


def port_key(port: Port) -> str:
    return f"{port.internal}/{port.protocol}"


def _environment(spec: LaunchSpec, image: ImageFacts, door: str) -> list[str]:
    url = config_url(door)
    defaults = {
        "PLAYFLOW_CONFIG": f"{CONFIG}/playflow.json",
        "PLAYFLOW_CONFIG_URL": url,
        "PLAYFLOW_AGENT_URL": url.removesuffix(CONFIG_PATH),
    }
    if spec.secrets.files:
        defaults[TOLD] = SECRETS
    if "HOME" not in image.environment or spec.build.kind == "zip":
        defaults["HOME"] = TMP
    return [f"{name}={value}" for name, value in (defaults | spec.environment | spec.secrets.variables).items()]


def secrets_owner(spec: LaunchSpec, image: ImageFacts) -> tuple[int, int] | None:
    """Whom the game runs as, by number; None if only the image knows."""
    return owner_of(GAME_USER if spec.build.kind == "zip" else image.user)


def _arguments(spec: LaunchSpec) -> list[str]:
    return game_arguments(spec.startup_args, {port.name: port.internal for port in spec.ports})


def _zip_command(spec: LaunchSpec) -> dict[str, Any]:
    folder = posixpath.join(GAME, spec.build.root).rstrip("/")
    command = [f"./{executable_of(spec.build)}", *_arguments(spec)]
    if not spec.build.writable:
        return {"User": GAME_USER, "WorkingDir": folder, "Entrypoint": [], "Cmd": command}
    fill = ["/bin/sh", "-c", _FILL, folder, *command]
    return {"User": GAME_USER, "WorkingDir": "/", "Entrypoint": [], "Cmd": fill}


def _image_command(spec: LaunchSpec, image: ImageFacts) -> dict[str, Any]:
    args = _arguments(spec)
    if spec.build.executable:
        return {"Entrypoint": [spec.build.executable], "Cmd": args}
    if not args:
        return {}
    return {"Entrypoint": list(image.entrypoint), "Cmd": [*image.command, *args]}


def _host_config(spec: LaunchSpec, host: Host, disk: DiskPlan, mounted: Path) -> dict[str, Any]:
    memory = spec.memory_mb << 20
    cpus = min(spec.cpus, host.cpus)
    log_kb = max(spec.log_mb * 1024 // 4, 64)
    return {
        "Memory": memory,
        "MemorySwap": memory,
        "NanoCpus": int(cpus * 1e9),
        "CpuShares": max(2, int(cpus * 1024)),
        "PidsLimit": spec.pids,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Init": True,
        "ReadonlyRootfs": disk.root is None,
        **({"StorageOpt": {"size": f"{disk.size_mb}M"}} if disk.root == "quota" else {}),
        **({"ReadonlyPaths": list(_READ_ONLY)} if disk.root is not None else {}),
        "RestartPolicy": {"Name": "no"},
        **({"Runtime": host.runtime} if host.runtime else {}),
        "LogConfig": {"Type": "local", "Config": {"max-size": f"{log_kb}k", "max-file": "4", "compress": "false"}},
        "Ulimits": [_limit("nofile", host.open_files), _limit("core", 0)],
        "Tmpfs": _tmpfs(spec, disk),
        "Mounts": _mounts(spec, host) + _volumes(disk, mounted),
        **_network(spec, host),
    }


def _network(spec: LaunchSpec, host: Host) -> dict[str, Any]:
    if spec.network is not None:
        return {"NetworkMode": f"container:{spec.network}"}
    return {"NetworkMode": host.network, "PortBindings": port_bindings(spec.ports, spec.bind_host)}


def port_bindings(ports: tuple[Port, ...], host: str) -> dict[str, Any]:
    return {
        port_key(port): [{"HostIp": LOOPBACK if port.tls else host, "HostPort": str(port.published)}] for port in ports
    }


def is_port_taken(message: str) -> bool:
    """Whether the engine says that a host port is in use."""
    return any(words in message for words in _PORT_TAKEN)


def taken_ports(message: str, ports: tuple[Port, ...]) -> tuple[Port, ...]:
    """The ports of the spec that the engine's message names; all of them if it names none."""
    numbers = {int(number) for number in re.findall(r":(\d+)(?=[ :])", message)}
    return tuple(port for port in ports if port.published in numbers) or ports


def _limit(name: str, value: int) -> dict[str, Any]:
    return {"Name": name, "Soft": value, "Hard": value}


def _tmpfs(spec: LaunchSpec, disk: DiskPlan) -> dict[str, str]:
    # exec: single-file .NET servers unpack their libraries there.
    tmpfs = {TMP: f"rw,exec,nosuid,nodev,mode=1777,size={spec.tmpfs_mb}m"}
    if disk.volumes_in == "memory":
        tmpfs |= {path: f"rw,exec,nosuid,nodev,mode=1777,size={disk.volume_mb}m" for path in disk.volumes}
    elif TMP in disk.volumes:
        del tmpfs[TMP]
    if spec.build.kind == "zip" and spec.build.writable:
        size = (spec.build.unpacked_bytes >> 20) + 1 + spec.writable_extra_mb
        tmpfs[GAME] = f"rw,exec,nosuid,nodev,mode=0755,uid=1000,gid=1000,size={size}m"
    return tmpfs


def _mounts(spec: LaunchSpec, host: Host) -> list[dict[str, Any]]:
    mounts = [_bind(host.servers_dir / str(spec.key), CONFIG)]
    if spec.secrets.files:
        mounts.append(_bind(host.secrets / str(spec.key), SECRETS))
    if spec.build.kind == "zip":
        target = BUNDLE if spec.build.writable else GAME
        mounts.append(_bind(host.bundles / str(spec.build.content_hash), target))
    return mounts


def _volumes(disk: DiskPlan, mounted: Path) -> list[dict[str, Any]]:
    """The engine fills them with what the image has there, as it does its own."""
    if disk.volumes_in == "memory":
        return []
    return [
        {
            "Type": "volume",
            "Target": path,
            "VolumeOptions": {
                "DriverConfig": {
                    "Name": "local",
                    "Options": {"type": "none", "o": "bind", "device": str(mounted / "volumes" / str(number))},
                }
            },
        }
        for number, path in enumerate(disk.volumes)
    ]


def _bind(source: Path, target: str) -> dict[str, Any]:
    return {"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": True}


def time_ms(text: str) -> int | None:
    """Milliseconds of the engine's RFC 3339 time; None for its zero time."""
    if text.startswith("0001"):
        return None
    return int(datetime.fromisoformat(re.sub(r"\.(\d{1,6})\d*", r".\1", text)).timestamp() * 1000)
