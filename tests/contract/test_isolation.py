"""What a stranger's build meets, by the settings and rules in force. No packet is sent to find out."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleet.node import isolation
from fleet.node.docker import DockerRuntime
from fleet.node.docker_spec import container_name
from fleet.node.engine import Engine
from fleet.node.firewall import missing
from fleet.node.isolation import network_name, take_down
from fleet.node.runtime import Port, RunKey
from tests import games
from tests.contract.runtime_stage import HOST, PORTS, Stage, ask, engine_problem
from tests.waiting import eventually


@pytest.fixture(params=["a fleet's engine", "an engine that was there"])
async def stage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stage]:
    if problem := await asyncio.to_thread(engine_problem):
        pytest.skip(f"no container engine: {problem}")
    if shutil.which("iptables-save") is None:
        pytest.skip("no iptables")
    if request.param == "an engine that was there":
        monkeypatch.setattr(isolation, "ENGINE_LABEL", "of=somebody else")
    monkeypatch.setattr(isolation, "CHECK_S", 0.2)
    stage = Stage("docker", tmp_path / "s", None)  # type: ignore[arg-type]
    place = replace(stage.place(), walled=True, api_ports=(8000,))
    stage.place = lambda: place  # type: ignore[method-assign]
    await stage.open()
    yield stage
    await stage.clear()
    await stage.die()
    engine = Engine()
    if request.param == "an engine that was there":
        await engine.call("DELETE", f"/networks/{network_name(place.fleet_id)}")
    await engine.close()
    take_down(place.fleet_id, place.servers_dir.parent / "firewall.lock")
    assert place.fleet_id[:12] not in saved()


def saved() -> str:
    return subprocess.run(["iptables-save", "-t", "filter"], check=True, capture_output=True, text=True).stdout


async def inspect(path: str) -> dict[str, Any]:
    engine = Engine()
    try:
        return await engine.call("GET", path)
    finally:
        await engine.close()


def walls_of(stage: Stage) -> Any:
    assert isinstance(stage.runtime, DockerRuntime)
    walls = stage.runtime._isolation._walls
    assert walls is not None
    return walls


async def test_games_stand_within_walls_that_are_kept_up(stage: Stage) -> None:
    spec = await stage.running(games.demo())
    assert ask(spec, "ping 1").startswith("pong"), "players come in"
    assert stage.runtime.warnings() == ()
    walls = walls_of(stage)
    assert missing(saved(), walls) == []
    details = await inspect(f"/containers/{container_name(stage.place().fleet_id, spec.key)}/json")
    (network,) = details["NetworkSettings"]["Networks"]
    options = (await inspect(f"/networks/{network}"))["Options"]
    assert options["com.docker.network.bridge.enable_icc"] == "false"
    assert options["com.docker.network.bridge.name"] == walls.bridge
    for spoiled in (f"-F FLEET-FW-{walls.bridge}", f"-D INPUT -i {walls.bridge} -j FLEET-IN-{walls.bridge}"):
        await asyncio.to_thread(subprocess.run, ["iptables", "-w", "5", *spoiled.split()], check=True)
    await asyncio.to_thread(eventually, lambda: missing(saved(), walls) == [], 30, "the walls are mended")
    assert ask(spec, "ping 2").startswith("pong")


async def test_networks_made_ahead_are_within_the_walls_too(stage: Stage) -> None:
    key = RunKey("warm", 1)
    ports = (Port("game", 7777, PORTS.take(str(key)), "udp"),)
    assert stage.runtime.networks is not None
    await stage.runtime.networks.make("fleet-net-walled", HOST, ports)
    stage.runtime.networks.take("fleet-net-walled")
    spec = stage.spec(stage.build(games.demo()), key=key, ports=ports, network="fleet-net-walled")
    await stage.runtime.launch(spec)
    await stage.ready(spec)
    assert ask(spec, "ping 1").startswith("pong")
    details = await inspect("/containers/fleet-net-walled/json")
    (network,) = details["NetworkSettings"]["Networks"]
    options = (await inspect(f"/networks/{network}"))["Options"]
    assert options["com.docker.network.bridge.name"] == walls_of(stage).bridge


async def test_a_game_has_no_privilege_and_nothing_of_the_host(stage: Stage) -> None:
    spec = await stage.running(games.demo())
    details = await inspect(f"/containers/{container_name(stage.place().fleet_id, spec.key)}/json")
    host = details["HostConfig"]
    assert (host["Privileged"], host["CapAdd"], host["CapDrop"]) == (False, None, ["ALL"])
    assert host["SecurityOpt"] == ["no-new-privileges"], "and so the engine's seccomp profile"
    assert host["ReadonlyRootfs"]
    assert details["Config"]["User"] == "1000:1000"
    assert all(host[mode] in ("", "private") for mode in ("PidMode", "IpcMode", "UTSMode", "UsernsMode"))
    assert not host["Devices"]
    assert not host["DeviceRequests"]
    assert host["Memory"] == host["MemorySwap"] > 0
    assert host["PidsLimit"] > 0
    assert {(mount["Destination"], mount["RW"]) for mount in details["Mounts"]} == {
        ("/game", False),
        ("/playflow", False),
    }
    assert "docker.sock" not in str(host["Binds"]) + str(details["Mounts"])
    names = {entry.split("=")[0] for entry in details["Config"]["Env"]}
    assert not {name for name in names if name.startswith(("RAY_", "FLEET_"))}
    info = await inspect("/info")
    assert any(option.startswith("name=seccomp") for option in info["SecurityOptions"])
