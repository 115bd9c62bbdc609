"""What a server of an image may write: the game sees a disk that is full, the host sees a file of at most that size."""

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from fleet.node.disk import DiskMeans
from fleet.node.docker import DockerRuntime
from fleet.node.docker_spec import container_name
from fleet.node.engine import Engine, EngineError
from fleet.node.runtime import BuildRef, LaunchFailed, LaunchSpec
from fleet.node.server_disks import NoRoom, ServerDisks
from fleet.ops.left_games import stop_left_games
from fleet.settings import FleetSettings
from tests.contract.conftest import open_stage
from tests.contract.runtime_stage import PATIENCE, Stage

pytestmark = pytest.mark.docker

DISK_MB = 64
# Writes 1 GB to the last argument, tells how that ended, and stays. `exec`: signals reach it.
FILL = (
    'cd "${2:-$1}"; for file in hosts hostname resolv.conf; do echo x >> "/etc/$file"; done; '
    "busybox dd if=/dev/zero of=fill bs=1M count=1024 2>&1; ls; echo done; exec sleep 600"
)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with open_stage("docker", tmp_path) as stage:
        yield stage


def docker_runtime(stage: Stage) -> DockerRuntime:
    assert isinstance(stage.runtime, DockerRuntime)
    return stage.runtime


def means(stage: Stage) -> DiskMeans:
    return docker_runtime(stage)._disks.means


def mounts_or_skip(stage: Stage) -> None:
    if problem := means(stage).loop or means(stage).layers:
        pytest.skip(f"this machine mounts no disks for servers: {problem}")


@pytest.fixture
async def build(stage: Stage, engine: Engine) -> AsyncIterator[BuildRef]:
    """Of an image that declares a volume, with a file in it, and fills the folder it is told to."""
    base = docker_runtime(stage)._base.reference
    name = f"test-disk-{secrets.token_hex(4)}"
    made = ["mkdir -p /data /srv/game", "echo from-image > /data/kept", "chmod 750 /data"]
    created = await engine.call(
        "POST", "/containers/create", json={"Image": base, "Cmd": ["sh", "-c", " && ".join(made)], "User": "0"}
    )
    path = f"/containers/{created['Id']}"
    await engine.call("POST", f"{path}/start")
    await engine.call("POST", f"{path}/wait")
    config = {
        "WorkingDir": "/srv/game",
        "Entrypoint": ["/bin/sh", "-c", FILL, "game"],
        "Cmd": ["/data"],
        "Volumes": {"/data": {}},
    }
    await engine.call("POST", "/commit", params={"container": created["Id"], "repo": name, "tag": "1"}, json=config)
    await engine.call("DELETE", path, params={"force": "1"})
    image = await engine.call("GET", f"/images/{name}:1/json")
    build = BuildRef(f"b{secrets.token_hex(6)}", "image", image["Id"], image=f"{name}:1")
    yield build
    await stage.clear()
    for tag in (f"fleet-build:{build.build_id}", f"{name}:1"):
        with suppress(EngineError):
            await engine.call("DELETE", f"/images/{tag}", params={"force": "1"})


async def said(stage: Stage, spec: LaunchSpec) -> list[str]:
    """What the game has said once it is done."""
    lines: list[str] = []
    async with asyncio.timeout(PATIENCE):
        while "done" not in lines:
            lines = [line.message for line in await stage.runtime.logs(spec.key, None, None, 100)]
            await asyncio.sleep(0.05)
    return lines


def disk_spec(stage: Stage, build: BuildRef, **changes: object) -> LaunchSpec:
    return stage.spec(build, ports=(), disk_mb=DISK_MB, **changes)


def folder_of(stage: Stage, spec: LaunchSpec) -> Path:
    return stage.folder / "servers" / ".disks" / str(spec.key)


async def volumes(engine: Engine) -> set[str]:
    return {one["Name"] for one in (await engine.call("GET", "/volumes"))["Volumes"] or ()}


async def leave_nothing(stage: Stage, engine: Engine, spec: LaunchSpec, before: set[str]) -> None:
    """End the run and look for what is left of it on the host."""
    folder = folder_of(stage, spec)
    await stage.runtime.stop(spec.key, 0)
    await stage.exit_of(spec.key)
    await stage.runtime.remove(spec.key)
    assert not folder.exists()
    assert str(folder) not in Path("/proc/self/mounts").read_text()
    assert await volumes(engine) - before == set()


async def test_a_volume_is_full_at_the_servers_size(stage: Stage, engine: Engine, build: BuildRef) -> None:
    mounts_or_skip(stage)
    before = await volumes(engine)
    spec = disk_spec(stage, build)
    await stage.runtime.launch(spec)
    lines = await said(stage, spec)
    assert any("No space left on device" in line for line in lines)
    assert {"fill", "kept"} <= set(lines)  # what the image has there is there, and its user may write
    written = (folder_of(stage, spec) / "disk.img").stat()
    assert written.st_blocks * 512 <= written.st_size == DISK_MB << 20
    assert await stage.runtime.full_disks([spec.key]) == {spec.key}
    await leave_nothing(stage, engine, spec, before)


async def test_a_writable_root_is_full_at_the_servers_size(stage: Stage, engine: Engine, build: BuildRef) -> None:
    """Also what the engine gives each container from the host's disk cannot be written to."""
    mounts_or_skip(stage)
    before = await volumes(engine)
    build = replace(build, writable=True)
    spec = disk_spec(stage, build, startup_args="/srv/game")
    await stage.runtime.launch(spec)
    lines = await said(stage, spec)
    assert any("No space left on device" in line for line in lines)
    assert sum("Read-only file system" in line for line in lines) == 3
    written = (folder_of(stage, spec) / "disk.img").stat()
    assert written.st_blocks * 512 <= written.st_size == DISK_MB << 20
    container = await engine.call("GET", f"/containers/{container_name(stage.place().fleet_id, spec.key)}/json")
    layer = Path(container["GraphDriver"]["Data"]["UpperDir"])
    assert os.path.islink(layer)
    await leave_nothing(stage, engine, spec, before)
    assert not layer.parent.exists()


async def test_a_disk_outlives_its_agent_and_goes_with_its_run(stage: Stage, engine: Engine, build: BuildRef) -> None:
    mounts_or_skip(stage)
    before = await volumes(engine)
    build = replace(build, writable=True)
    spec = disk_spec(stage, build, startup_args="/srv/game")
    await stage.runtime.launch(spec)
    await stage.die()
    await stage.open()
    assert await stage.runtime.full_disks([spec.key]) <= {spec.key}
    await stage.runtime.launch(spec)  # told again: the same run, on the same disk
    await leave_nothing(stage, engine, spec, before)


async def test_a_disk_without_a_container_is_found_and_removed(stage: Stage, engine: Engine, build: BuildRef) -> None:
    """What an agent leaves that is killed between making the disk and its container; or the container, by hand."""
    mounts_or_skip(stage)
    spec = disk_spec(stage, build)
    await stage.runtime.launch(spec)
    other = disk_spec(stage, build)
    await asyncio.to_thread(docker_runtime(stage)._disks.files.ensure, str(other.key), DISK_MB, 0)
    name = container_name(stage.place().fleet_id, spec.key)
    await stage.die()
    await engine.call("DELETE", f"/containers/{name}", params={"force": "1", "v": "1"})
    await stage.open()
    assert await stage.runtime.remove_orphans() == 0  # it may be in the making
    assert await stage.runtime.remove_orphans() >= 3  # both disks, and the folder of the run
    assert docker_runtime(stage)._disks.files.runs() == set()
    assert str(stage.folder) not in Path("/proc/self/mounts").read_text()


async def test_a_fleet_that_ends_without_its_agents_leaves_no_disk(stage: Stage, build: BuildRef) -> None:
    mounts_or_skip(stage)
    spec = disk_spec(stage, replace(build, writable=True))
    await stage.runtime.launch(spec)
    settings = FleetSettings(home=stage.folder)
    assert await asyncio.to_thread(stop_left_games, stage.place().fleet_id, settings, ["us-east"]) == 1
    assert not folder_of(stage, spec).exists()
    assert str(stage.folder) not in Path("/proc/self/mounts").read_text()


async def test_a_disk_that_the_node_has_no_room_for_waits(stage: Stage, build: BuildRef) -> None:
    mounts_or_skip(stage)
    total = shutil.disk_usage(stage.folder).total
    spec = stage.spec(build, ports=(), disk_mb=total >> 20)
    with pytest.raises(NoRoom, match="left for that"):
        await stage.runtime.launch(spec)
    assert docker_runtime(stage)._disks.files.promised() == 0
    assert await stage.runtime.list() == []


async def test_without_any_way_a_volume_is_in_memory_and_a_writable_root_is_refused(
    stage: Stage, build: BuildRef
) -> None:
    docker_runtime(stage)._disks.means = DiskMeans("the agent is not root")
    with pytest.raises(LaunchFailed, match="the agent is not root"):
        await stage.runtime.prepare(replace(build, writable=True))
    spec = disk_spec(stage, build)
    await stage.runtime.launch(spec)
    assert any("No space left on device" in line for line in await said(stage, spec))
    state = await stage.runtime.list()
    assert [run.running for run in state] == [True]  # and memory was not used up by it


async def test_why_a_machine_cannot_mount_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"Driver": "overlayfs", "DockerRootDir": "/var/lib/docker"}
    disks = ServerDisks(tmp_path, 10.0)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("fleet.node.server_disks.missing_tools", lambda _names: ["mkfs.ext4"])
    found = await asyncio.to_thread(disks.means, info, str(tmp_path / "none.sock"), "r")
    assert "mkfs.ext4" in found.loop or "root" in found.loop
    assert "overlayfs" in found.layers
