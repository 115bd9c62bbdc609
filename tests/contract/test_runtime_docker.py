"""What only a container engine can do: image builds, broken event streams, isolation as the game sees it."""

import asyncio
import io
import secrets
import subprocess
import tarfile
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from fleet.node.docker import DockerRuntime
from fleet.node.docker_spec import container_name
from fleet.node.engine import Engine, EngineError
from fleet.node.runtime import BuildRef, EngineUnavailable, LaunchFailed, Observed, Port, RunKey
from tests import games
from tests.contract.conftest import open_stage
from tests.contract.runtime_stage import HOST, PATIENCE, PORTS, Stage, ask


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with open_stage("docker", tmp_path) as stage:
        yield stage


@pytest.fixture
async def image(stage: Stage, engine: Engine) -> AsyncIterator[str]:
    """A local-only image of the demo game, as a studio would build it: game in /srv/game, root user."""
    base = next(
        tag
        for entry in await engine.call("GET", "/images/json")
        for tag in entry["RepoTags"] or []
        if tag.startswith("fleet-base:")
    )
    name = f"test-game-{secrets.token_hex(4)}"
    created = await engine.call("POST", "/containers/create", json={"Image": base, "Cmd": ["true"]})
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("srv/game/run")
        content = games.demo()[games.EXECUTABLE][0]
        member.size, member.mode = len(content), 0o755
        tar.addfile(member, io.BytesIO(content))
    path = f"/containers/{created['Id']}"
    await engine.call("PUT", f"{path}/archive", params={"path": "/"}, data=archive.getvalue())
    config = {"WorkingDir": "/srv/game", "Entrypoint": ["./run"], "Cmd": ["--boot", "0"], "Env": ["HOME=/srv"]}
    await engine.call("POST", "/commit", params={"container": created["Id"], "repo": name, "tag": "1"}, json=config)
    await engine.call("DELETE", path, params={"force": "1"})
    yield f"{name}:1"
    await stage.clear()
    await engine.call("DELETE", f"/images/{name}:1", params={"force": "1"})


async def local_build(engine: Engine, image: str) -> BuildRef:
    """Of an image that no registry has, as the pipeline finds it."""
    found = await engine.call("GET", f"/images/{image}/json")
    return BuildRef(f"b{secrets.token_hex(6)}", "image", found["Id"], image=image)


@pytest.fixture
async def build(image: str, engine: Engine) -> AsyncIterator[BuildRef]:
    build = await local_build(engine, image)
    yield build
    with suppress(EngineError):
        await engine.call("DELETE", f"/images/fleet-build:{build.build_id}", params={"force": "1"})


async def test_an_end_that_the_engine_told_but_does_not_list_yet_is_not_missed(
    stage: Stage, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the event and the list lies the time in which the engine frees the network: an agent may begin then."""
    ends = await stage.running(games.demo())
    listed = await stage.runtime.list()
    await stage.die()
    assert await asyncio.to_thread(ask, ends, "crash 9") == "crashing"
    await engine.call("POST", f"/containers/{container_name(stage.place().fleet_id, ends.key)}/wait")

    async def as_before(_self: DockerRuntime) -> list[Observed]:
        return listed

    with monkeypatch.context() as patch:
        patch.setattr(DockerRuntime, "list", as_before)
        await stage.open()
        assert (await stage.exit_of(ends.key)).exit_code == 9
    assert len(stage.reports) == 1


async def test_a_freeze_that_the_engine_refuses_by_what_was_true_a_moment_ago_is_asked_for_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hears of its own pauses late, and may then call a game that runs paused."""
    spec = await stage.running(games.demo())
    ask_engine, refusals = Engine.call, [409, 409]

    async def late(self: Engine, method: str, path: str, **more: Any) -> Any:
        if path.endswith("/pause") and refusals:
            raise EngineError(refusals.pop(), "it is already paused")
        return await ask_engine(self, method, path, **more)

    monkeypatch.setattr(Engine, "call", late)
    await stage.runtime.freeze(spec.key)
    assert refusals == []
    assert [run.frozen for run in await stage.runtime.list()] == [True]
    refusals += [409] * 9
    await stage.runtime.thaw(spec.key)
    with pytest.raises(EngineUnavailable, match="already paused"):
        await stage.runtime.freeze(spec.key)


async def test_an_image_build_runs_with_its_own_command_and_our_config(
    stage: Stage, build: BuildRef, engine: Engine
) -> None:
    await stage.runtime.prepare(build)
    await stage.runtime.prepare(build)
    spec = stage.spec(build, startup_args="-extra 1")
    await stage.runtime.launch(spec)
    await stage.ready(spec)
    state = orjson.loads(await asyncio.to_thread(ask, spec, "state"))
    assert state["instance_id"] == spec.key.instance_id
    assert state["args"] == ["--boot", "0", "-extra", "1"]
    assert await asyncio.to_thread(ask, spec, "env HOME") == "env HOME=/srv"
    await stage.runtime.stop(spec.key, PATIENCE)
    await stage.exit_of(spec.key)
    await stage.runtime.remove(spec.key)
    await engine.call("DELETE", f"/images/fleet-build:{build.build_id}", params={"force": "1"})


async def test_a_build_keeps_its_image_when_the_tag_moves(stage: Stage, build: BuildRef, engine: Engine) -> None:
    await stage.runtime.prepare(build)
    name, _, tag = (build.image or "").partition(":")
    base = await stage.runtime._images.prepare(build)  # type: ignore[attr-defined]
    before = (await engine.call("GET", f"/images/{base.reference}/json"))["Id"]
    created = await engine.call("POST", "/containers/create", json={"Image": build.image, "Cmd": ["x"]})
    await engine.call("POST", "/commit", params={"container": created["Id"], "repo": name, "tag": tag}, json={})
    await engine.call("DELETE", f"/containers/{created['Id']}")
    await stage.die()
    await stage.open()
    await stage.runtime.prepare(build)
    assert (await engine.call("GET", f"/images/{base.reference}/json"))["Id"] == before


async def test_an_executable_override_must_be_in_the_image(stage: Stage, engine: Engine, image: str) -> None:
    build = replace(await local_build(engine, image), executable="/srv/game/other")
    with pytest.raises(LaunchFailed, match="not in image") as failure:
        await stage.runtime.prepare(build)
    assert failure.value.reason == "STARTUP_FAILURE_EXECUTABLE"


async def test_an_image_that_cannot_be_had_is_a_download_failure(stage: Stage) -> None:
    digest = f"sha256:{'0' * 64}"
    build = BuildRef(f"b{secrets.token_hex(6)}", "image", digest, image="localhost:1/no/such:1", packed_bytes=1)
    local = replace(build, packed_bytes=0)
    for missing, why in (
        (build, "cannot be pulled"),
        (local, "local image"),
        (replace(local, content_hash=None), "names"),
    ):
        with pytest.raises(LaunchFailed, match=why) as failure:
            await stage.runtime.prepare(missing)
        assert failure.value.reason == "STARTUP_FAILURE_DOWNLOAD"


async def test_the_game_sees_its_walls(stage: Stage) -> None:
    status = "grep -E 'CapEff|NoNewPrivs' /proc/self/status"
    look = f"id -u; touch x 2>&1; touch /etc/x 2>&1; {status}; touch /tmp/ok && echo tmp"
    spec = stage.spec(stage.build(games.script(look)), ports=())
    await stage.runtime.launch(spec)
    await stage.exit_of(spec.key)
    seen = " ".join([line.message for line in await stage.runtime.logs(spec.key, None, None, 100)])
    assert seen.startswith("1000 ")
    assert seen.count("Read-only file system") == 2
    assert "CapEff:\t0000000000000000" in seen
    assert "NoNewPrivs:\t1" in seen
    assert seen.endswith("tmp")


async def test_a_real_game_with_two_ports_and_its_own_library(stage: Stage) -> None:
    try:
        files = await asyncio.to_thread(games.cube2)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"Debian's game packages are out of reach: {error}")
    ports = (Port("game", 28785, PORTS.take("cube2"), "udp"), Port("info", 28786, PORTS.take("cube2"), "udp"))
    args = games.CUBE2_ARGS.replace("{name}", "Arena7")
    spec = stage.spec(stage.build(files), ports=ports, startup_args=args, environment={"LD_LIBRARY_PATH": "."})
    await stage.runtime.launch(spec)
    await stage.ready(spec)
    assert await asyncio.to_thread(games.cube2_name, HOST, ports[1].external) == "Arena7"


async def test_a_half_made_container_is_replaced(stage: Stage, engine: Engine) -> None:
    spec = stage.spec(stage.build(games.demo()))
    image = stage.runtime._base.reference  # type: ignore[attr-defined]
    name = container_name(stage.place().fleet_id, spec.key)
    await engine.call("POST", "/containers/create", params={"name": name}, json={"Image": image, "Cmd": ["false"]})
    await stage.runtime.launch(spec)
    await stage.ready(spec)
    assert await asyncio.to_thread(ask, spec, "ping 1")


class Proxy:
    """A stand-in for the engine's socket that can be cut, as when the engine restarts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()
        self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(Engine().socket)
        self._writers |= {writer, back}
        await asyncio.gather(_pump(reader, back), _pump(there, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def test_ends_during_an_outage_of_the_engine_are_told_after_it(stage: Stage, tmp_path: Path) -> None:
    proxy = Proxy(tmp_path / "engine.sock")
    await proxy.open()
    await stage.die()
    stage.runtime = DockerRuntime(stage.place(), socket=str(proxy.path))
    await stage.runtime.start()
    stage.task = asyncio.create_task(stage.listen())
    ended, vanished, stays = [await stage.running(games.demo()) for _ in range(3)]
    await proxy.cut()
    await asyncio.to_thread(ask, ended, "crash 7")
    other = DockerRuntime(stage.place())
    await other.stop(vanished.key, 5)
    await other.remove(vanished.key)
    await other.close()
    await proxy.open()
    assert (await stage.exit_of(ended.key)).exit_code == 7
    assert (await stage.exit_of(vanished.key)).exit_code == -1
    assert stays.key not in stage.exits
    await stage.runtime.stop(stays.key, PATIENCE)
    assert (await stage.exit_of(stays.key)).exit_code == 0
    assert sorted(str(report.key) for report in stage.reports) == sorted(
        str(spec.key) for spec in (ended, vanished, stays)
    )
    await proxy.cut()
    await stage.die()
    await stage.open()


async def test_a_run_nobody_knows_is_quietly_gone(stage: Stage) -> None:
    key = RunKey("unknown", 1)
    await stage.runtime.stop(key, 1)
    await stage.runtime.remove(key)
    assert await stage.runtime.logs(key, None, None, 5) == []
    assert [line async for line in stage.runtime.follow(key, None)] == []


async def test_games_run_under_the_engines_runtime_that_the_operator_names(stage: Stage, engine: Engine) -> None:
    """By a second name of the usual one, which every engine has: nothing stronger is installed here."""
    place = replace(stage.place(), oci_runtime="io.containerd.runc.v2")
    await stage.die()
    stage.place = lambda: place  # type: ignore[method-assign]
    await stage.open()
    spec = await stage.running(games.demo())
    details = await engine.call("GET", f"/containers/{container_name(place.fleet_id, spec.key)}/json")
    assert details["HostConfig"]["Runtime"] == "io.containerd.runc.v2"
    assert ask(spec, "ping 1").startswith("pong")
    assert not any("FLEET_DOCKER_RUNTIME" in warning for warning in stage.runtime.warnings())


async def test_a_runtime_that_the_engine_lacks_starts_no_game_and_says_so(stage: Stage) -> None:
    place = replace(stage.place(), oci_runtime="runsc")
    await stage.die()
    stage.place = lambda: place  # type: ignore[method-assign]
    await stage.open()
    with pytest.raises(LaunchFailed, match=r"no runtime 'runsc' .*it has .*runc"):
        await stage.runtime.launch(stage.spec(stage.build(games.demo())))
    assert any("runsc" in warning for warning in stage.runtime.warnings())
    assert await stage.runtime.list() == []
