"""Which runtime a node uses: the engine where there is one, else plain processes; or the simulation, if asked for.

Decided once per home and written down before the first use (`runtime.json`): what holds games now is never replaced
because it does not answer at the moment. An engine that is away is waited for.
"""

import asyncio
import os
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import orjson
import structlog

from fleet.node.docker import DockerRuntime
from fleet.node.docker_networks import ROLE
from fleet.node.engine import Engine, EngineError, socket_path
from fleet.node.file_lock import awaited
from fleet.node.firewall import check_reach
from fleet.node.process import ProcessRuntime
from fleet.node.process_folder import RunFolder
from fleet.node.runtime import EngineUnavailable, Runtime, RuntimePlace
from fleet.node.simulated import SimulatedRuntime
from fleet.settings import FleetSettings

log = structlog.get_logger(__name__)

Kind = Literal["docker", "process"]
PIN = "runtime.json"
LOCK_S = 60.0  # while another agent of this home decides
REFUSED_S = 15.0  # an engine whose socket is there and refuses may be starting


@dataclass(frozen=True, slots=True)
class Decision:
    """`note`: what operators should know, if they may expect another one."""

    kind: Kind
    note: str = ""


def decide(wanted: Literal["auto", "docker", "process"], pinned: Kind, games: int) -> Decision:
    """Of a home that has used a runtime, which has that many games. Pure."""
    if wanted in ("auto", pinned) or not games:
        return Decision(pinned if wanted == "auto" else wanted)
    return Decision(
        pinned,
        f"FLEET_RUNTIME={wanted} is not followed: {games} servers of this machine are in the {pinned} runtime. "
        "Stop them, then start the node again.",
    )


async def choose_runtime(settings: FleetSettings, region: str, node: str = "0") -> Runtime:
    """`settings.runtime`, where `auto` is docker if there is an engine and process otherwise, once and for all.

    `node` tells simulated nodes of a region apart. EngineUnavailable: it cannot be known now.
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
        no_progress_s=settings.node.no_progress_s,
        min_free_percent=settings.bundle_limits.min_free_percent,
        registries=tuple(settings.registries),
        image_limits=settings.image_limits,
        oci_runtime=settings.docker_runtime,
    )
    if settings.runtime == "simulated":
        return SimulatedRuntime(place, settings.simulated, node)
    async with awaited(settings.home / "runtime.lock", LOCK_S):
        decision = await _decide(settings)
        write_pin(settings.home, decision.kind)
    if decision.note:
        log.warning("runtime_kept", setting=settings.runtime, runtime=decision.kind, note=decision.note)
        # Who asks for containers does not get new games without isolation.
        closed = decision.note if settings.runtime == "docker" and decision.kind == "process" else ""
        place = replace(place, notes=(decision.note,), closed=closed)
    return DockerRuntime(place) if decision.kind == "docker" else ProcessRuntime(place)


async def _decide(settings: FleetSettings) -> Decision:
    pinned = read_pin(settings.home) or await asyncio.to_thread(_used_before, settings.servers_dir)
    wanted = cast(Literal["auto", "docker", "process"], settings.runtime)
    if wanted == "auto" and pinned == "process" and await asyncio.to_thread(_knock, socket_path()) == "there":
        return Decision(pinned, "a container engine is there and not used: FLEET_RUNTIME=docker changes to it")
    if pinned is not None:
        differs = wanted not in ("auto", pinned)
        return decide(wanted, pinned, await _games(settings, pinned) if differs else 0)
    return Decision(wanted if wanted != "auto" else await _first_choice())


def read_pin(home: Path) -> Kind | None:
    """The runtime that this home has used; None if none."""
    try:
        kind = orjson.loads((home / PIN).read_bytes())["runtime"]
    except FileNotFoundError:
        return None
    if kind not in ("docker", "process"):
        raise ValueError(f"{home / PIN} names no runtime: {kind!r}")
    return kind


def write_pin(home: Path, kind: Kind) -> None:
    """On disk for good when this returns."""
    if read_pin(home) == kind:
        return
    draft = home / f".{PIN}"
    with draft.open("wb") as file:
        file.write(orjson.dumps({"runtime": kind}))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(home / PIN)
    folder = os.open(home, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _used_before(servers_dir: Path) -> Kind | None:
    """What the folders of runs tell, where nothing was written down: homes of earlier versions."""
    folders = [path for path in servers_dir.glob("*") if path.is_dir()]
    if any((path / "run.json").exists() for path in folders):
        return "process"
    return "docker" if folders else None


async def _games(settings: FleetSettings, kind: Kind) -> int:
    """How many runs this home has in a runtime, also ended ones that are not forgotten yet."""
    if kind == "process":
        folders = settings.servers_dir.glob("*.*")
        ours = settings.fleet_id
        return sum(RunFolder(path).description().get("fleet_id") == ours for path in folders if path.is_dir())
    engine = Engine()
    try:
        params = {"all": "1", "filters": orjson.dumps({"label": [f"fleet.id={settings.fleet_id}"]}).decode()}
        rows = await engine.call("GET", "/containers/json", params=params)
    except (EngineUnavailable, EngineError) as error:
        raise EngineUnavailable(
            f"FLEET_RUNTIME={settings.runtime} cannot be followed: this home's games are in the container engine, "
            f"which does not answer ({error}), so some may still run. Start the engine; if it is gone for good, remove "
            f"{settings.home / PIN}."
        ) from error
    finally:
        await engine.close()
    return sum(ROLE not in row["Labels"] for row in rows)


async def _first_choice() -> Kind:
    """Docker if there is an engine, also one that does not answer now; process if there is none."""
    end = asyncio.get_running_loop().time() + REFUSED_S
    while (found := await asyncio.to_thread(_knock, socket_path())) == "refused":
        if asyncio.get_running_loop().time() > end:
            break
        await asyncio.sleep(0.5)
    if found == "there":
        return "docker"
    log.warning("no_container_engine", found=found, effect="games run as plain processes, without isolation")
    return "process"


def _knock(path: str) -> Literal["there", "refused", "absent"]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knocking:
        knocking.settimeout(5.0)
        try:
            knocking.connect(path)
        except ConnectionRefusedError:
            return "refused"
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return "absent"
        except OSError:  # it has too much to do to answer
            return "there"
    return "there"
