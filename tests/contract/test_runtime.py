"""What every Runtime promises. One suite, run on the Docker engine and on plain processes."""

import asyncio
import secrets
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from fleet.errors import BadRequest, Conflict
from fleet.node.docker import DockerRuntime
from fleet.node.engine import Engine
from fleet.node.health import until_ready
from fleet.node.logs import LogArchive
from fleet.node.ports import PortAllocator
from fleet.node.process import ProcessRuntime
from fleet.node.runtime import (
    BuildRef,
    EngineUnavailable,
    Exited,
    LaunchFailed,
    LaunchSpec,
    Port,
    PortTaken,
    RunKey,
    Runtime,
    RuntimePlace,
)
from fleet.settings import LogLimits
from tests import games

HOST = "127.0.0.1"
PATIENCE = 60.0
SESSION = f"t{secrets.token_hex(4)}"
PORTS = PortAllocator(31000, 32700, HOST)


def engine_problem() -> str | None:
    async def ask() -> str | None:
        runtime = DockerRuntime(RuntimePlace("none", "none", Path("none"), Path("none")))
        try:
            await runtime.ping()
        except EngineUnavailable as error:
            return str(error)
        finally:
            await runtime.close()
        return None

    return asyncio.run(ask())


@dataclass
class Stage:
    """A runtime under test, with its exits collected, and what a test needs to put games on it."""

    kind: str
    folder: Path
    runtime: Runtime
    exits: dict[RunKey, Exited] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    reports: list[Exited] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    def place(self) -> RuntimePlace:
        return RuntimePlace(f"{SESSION}{self.folder.name}", "us-east", self.folder / "servers", self.folder / "bundles")

    def build(self, files: games.Files, *, writable: bool = False, root: str = "") -> BuildRef:
        content = secrets.token_hex(16)
        games.make_bundle(self.folder / "bundles" / content, files, str(Path(root) / games.EXECUTABLE))
        size = sum(len(data) for data, _ in files.values())
        return BuildRef(f"b{content}", "zip", content, root, writable=writable, unpacked_bytes=size)

    def spec(self, build: BuildRef, *, ports: tuple[Port, ...] | None = None, **changes: Any) -> LaunchSpec:
        key = changes.get("key") or RunKey(secrets.token_hex(8), 1)
        if ports is None:
            ports = (Port("game", 7777, PORTS.take(str(key)), "udp"),)
        fields: dict[str, Any] = {
            "key": key, "region": "us-east", "project_id": "p", "build": build, "memory_mb": 256, "cpus": 1.0,
            "dedicated": False, "ports": ports, "bind_host": HOST, "startup_args": None, "environment": {},
            "config": {"instance_id": key.instance_id, "custom_data": {"map": "arena"}}, "labels": {"fleet.test": "1"},
            "pids": 64, "tmpfs_mb": 8, "log_mb": 1, "writable_extra_mb": 8,
        }  # fmt: skip
        return LaunchSpec(**(fields | changes))

    async def running(self, files: games.Files, **changes: Any) -> LaunchSpec:
        """A game, launched and ready."""
        spec = self.spec(self.build(files), **changes)
        await self.runtime.launch(spec)
        await self.ready(spec)
        return spec

    async def ready(self, spec: LaunchSpec) -> None:
        state = await until_ready(lambda: self.runtime.readiness(spec.ports, spec.key), PATIENCE)
        assert state.ready, state

    async def exit_of(self, key: RunKey) -> Exited:
        async with asyncio.timeout(PATIENCE):
            while key not in self.exits:
                self.changed.clear()
                await self.changed.wait()
        return self.exits[key]

    async def listen(self) -> None:
        async for exited in self.runtime.exits():
            self.exits[exited.key] = exited
            self.reports.append(exited)
            self.changed.set()

    async def open(self) -> None:
        make = DockerRuntime if self.kind == "docker" else ProcessRuntime
        self.runtime = make(self.place())
        await self.runtime.start()
        self.task = asyncio.create_task(self.listen())

    async def die(self) -> None:
        """What a killed agent leaves: nothing in memory."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.runtime.close()
        self.exits.clear()
        self.reports.clear()

    async def clear(self) -> None:
        for run in await self.runtime.list():
            await self.runtime.stop(run.key, 0)
            await gone(lambda key=run.key: self.runtime.remove(key))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what has no event to wait for."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def gone(remove: Callable[[], Any]) -> None:
    """Remove a run that is just ending."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await remove()
            except Conflict:
                await asyncio.sleep(0.05)


@pytest.fixture(params=["docker", "process"])
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    if request.param == "docker" and (problem := await asyncio.to_thread(engine_problem)):
        pytest.skip(f"no container engine: {problem}")
    folder = tmp_path / secrets.token_hex(4)
    stage = Stage(request.param, folder, None)  # type: ignore[arg-type]
    await stage.open()
    yield stage
    await stage.clear()
    await stage.die()


def docker_only(stage: Stage, why: str) -> None:
    if stage.kind != "docker":
        pytest.skip(f"the process runtime does not isolate: {why}")


def ask(spec: LaunchSpec, text: str) -> str:
    return games.udp_ask(HOST, spec.ports[0].external, text.encode()).decode()


async def test_a_launched_game_answers_on_its_published_port(stage: Stage) -> None:
    spec = await stage.running(games.demo())
    answer = await asyncio.to_thread(ask, spec, "ping 7")
    assert answer == f"pong {spec.key.instance_id[:8]} 7"


async def test_config_is_there_before_the_start_and_is_rewritten_in_place(stage: Stage) -> None:
    spec = await stage.running(games.demo())
    assert orjson.loads(await asyncio.to_thread(ask, spec, "state"))["custom_data"] == {"map": "arena"}
    first = (await stage.runtime.logs(spec.key, None, None, 1))[0].message
    assert spec.key.instance_id in first  # read at boot
    await stage.runtime.rewrite_config(spec.key, spec.config | {"custom_data": {"map": "ice"}})
    assert orjson.loads(await asyncio.to_thread(ask, spec, "state"))["custom_data"] == {"map": "ice"}


async def test_arguments_and_environment_reach_the_game(stage: Stage) -> None:
    spec = await stage.running(
        games.demo(), startup_args='-mode "capture the flag" --x', environment={"GREETING": "hello world"}
    )
    assert orjson.loads(await asyncio.to_thread(ask, spec, "state"))["args"] == ["-mode", "capture the flag", "--x"]
    assert await asyncio.to_thread(ask, spec, "env GREETING") == "env GREETING=hello world"
    assert (await asyncio.to_thread(ask, spec, "env HOME")) != "env HOME="
    assert (await asyncio.to_thread(ask, spec, "env PLAYFLOW_CONFIG")).endswith("playflow.json")


async def test_unbalanced_quotes_in_arguments_split_at_spaces(stage: Stage) -> None:
    spec = await stage.running(games.demo(), startup_args="it's fine")
    assert orjson.loads(await asyncio.to_thread(ask, spec, "state"))["args"] == ["it's", "fine"]


async def test_a_game_in_a_subfolder_finds_its_own_folder(stage: Stage) -> None:
    files = {f"Linux/Server/{path}": entry for path, entry in games.demo().items()}
    spec = stage.spec(stage.build(files, root="Linux/Server"))
    await stage.runtime.launch(spec)
    await stage.ready(spec)
    assert orjson.loads(await asyncio.to_thread(ask, spec, "state"))["instance_id"] == spec.key.instance_id


async def test_a_writable_build_may_write_beside_its_executable(stage: Stage) -> None:
    files = games.script("echo save > saved.txt && cat saved.txt playflow.json; exit 0")
    spec = stage.spec(stage.build(files, writable=True), ports=())
    await stage.runtime.launch(spec)
    assert (await stage.exit_of(spec.key)).exit_code == 0
    lines = [line.message for line in await stage.runtime.logs(spec.key, None, None, 100)]
    assert lines[0] == "save"
    assert spec.key.instance_id in "".join(lines)


async def test_two_declared_ports_are_both_needed(stage: Stage) -> None:
    key = RunKey(secrets.token_hex(8), 1)
    ports = (Port("game", 7777, PORTS.take(str(key)), "udp"), Port("tcp", 7778, PORTS.take(str(key)), "tcp"))
    spec = stage.spec(stage.build(games.demo()), key=key, ports=ports, startup_args="--tcp {port:tcp}")
    await stage.runtime.launch(spec)
    await stage.ready(spec)

    def greeting() -> bytes:
        with socket.create_connection((HOST, ports[1].external), timeout=10) as connection:
            return connection.recv(100)

    assert await asyncio.to_thread(greeting) == f"hello from {key.instance_id}\n".encode()


async def test_not_ready_until_the_port_is_open(stage: Stage) -> None:
    spec = stage.spec(stage.build(games.slow_boot(1.5)))
    await stage.runtime.launch(spec)
    state = await stage.runtime.readiness(spec.ports, spec.key)
    assert state.missing == spec.ports
    await stage.ready(spec)
    assert await asyncio.to_thread(ask, spec, "x") == "echo x"


async def test_udp_does_not_stand_in_for_tcp(stage: Stage) -> None:
    key = RunKey(secrets.token_hex(8), 1)
    port = Port("game", 7777, PORTS.take(str(key)), "udp")
    spec = stage.spec(stage.build(games.tcp_listener()), key=key, ports=(port,))
    await stage.runtime.launch(spec)
    as_tcp = Port("game", 7777, port.external, "tcp")
    assert (await until_ready(lambda: stage.runtime.readiness((as_tcp,), key), PATIENCE)).ready
    assert (await stage.runtime.readiness((port,), key)).missing == (port,)


async def test_a_port_on_the_containers_loopback_is_told_apart(stage: Stage) -> None:
    docker_only(stage, "there is only one loopback")
    spec = stage.spec(stage.build(games.loopback_only()))
    await stage.runtime.launch(spec)

    async def bound() -> bool:
        return not (await stage.runtime.readiness(spec.ports, spec.key)).missing

    await until(bound)
    state = await stage.runtime.readiness(spec.ports, spec.key)
    assert (state.loopback, state.ready) == (spec.ports, False)


async def test_a_crash_tells_exit_code_and_last_words_once(stage: Stage) -> None:
    spec = stage.spec(stage.build(games.crash(3)))
    await stage.runtime.launch(spec)
    exited = await stage.exit_of(spec.key)
    assert (exited.exit_code, exited.oom) == (3, False)
    assert "fatal: no map" in exited.tail
    observed = {run.key: run for run in await stage.runtime.list()}[spec.key]
    assert (observed.running, observed.exit_code) == (False, 3)
    assert abs((observed.ended_at or 0) - exited.at) < 5000
    assert [report.key for report in stage.reports].count(spec.key) == 1


async def test_a_normal_end_is_exit_code_zero(stage: Stage) -> None:
    spec = await stage.running(games.demo())
    await asyncio.to_thread(ask, spec, "quit")
    assert (await stage.exit_of(spec.key)).exit_code == 0


async def test_a_polite_game_stops_at_once_and_a_deaf_one_after_its_grace(stage: Stage) -> None:
    polite = await stage.running(games.demo())
    deaf = await stage.running(games.deaf())
    await stage.runtime.stop(polite.key, PATIENCE)
    assert (await stage.exit_of(polite.key)).exit_code == 0
    await stage.runtime.stop(deaf.key, 1)
    assert (await stage.exit_of(deaf.key)).exit_code == 137
    await stage.runtime.stop(deaf.key, 1)  # again: no error
    await stage.runtime.stop(RunKey("unknown", 1), 1)


async def test_memory_beyond_the_limit_ends_only_that_game(stage: Stage) -> None:
    docker_only(stage, "memory is not limited to the size")
    bystander = await stage.running(games.demo())
    spec = stage.spec(stage.build(games.memory_eater()), memory_mb=64)
    await stage.runtime.launch(spec)
    exited = await stage.exit_of(spec.key)
    assert exited.oom
    assert exited.exit_code == 137
    assert await asyncio.to_thread(ask, bystander, "ping 1")


async def test_a_fork_bomb_stays_within_its_limit(stage: Stage) -> None:
    docker_only(stage, "processes are limited per user, and not for root")
    bystander = await stage.running(games.demo())
    spec = await stage.running(games.fork_bomb())
    engine = Engine()
    async with asyncio.timeout(PATIENCE):
        while True:
            row = await engine.call("GET", f"/containers/fleet-{stage.place().fleet_id}-{spec.key.instance_id}-1/top")
            if len(row["Processes"]) > 30:
                break
    await engine.close()
    assert len(row["Processes"]) <= spec.pids
    assert await asyncio.to_thread(ask, bystander, "ping 1")
    await stage.runtime.stop(spec.key, 0)
    await stage.exit_of(spec.key)


async def test_a_disk_filler_hits_its_own_wall(stage: Stage) -> None:
    docker_only(stage, "/tmp is the machine's")
    spec = await stage.running(games.disk_filler())
    async with asyncio.timeout(PATIENCE):
        async for line in stage.runtime.follow(spec.key, None):
            if line.message.startswith("wrote"):
                assert int(line.message.split()[1]) <= spec.tmpfs_mb << 20
                break


async def test_an_endless_log_is_rotated(stage: Stage) -> None:
    spec = await stage.running(games.log_writer())
    first = await anext(aiter(stage.runtime.follow(spec.key, None)))

    async def rotated() -> bool:
        return (await stage.runtime.logs(spec.key, None, None, 1))[0] != first

    await until(rotated)
    await stage.runtime.stop(spec.key, 0)
    await stage.exit_of(spec.key)
    size = sum([len(line.message) async for line in stage.runtime.follow(spec.key, None)])
    assert size <= spec.log_mb << 20


async def test_a_port_that_something_else_took_is_told_and_nothing_runs(stage: Stage) -> None:
    key = RunKey(secrets.token_hex(8), 1)
    number = PORTS.take(str(key))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as squatter:
        squatter.bind((HOST, number))
        spec = stage.spec(stage.build(games.demo()), key=key, ports=(Port("game", 7777, number, "udp"),))
        with pytest.raises(PortTaken) as taken:
            await stage.runtime.launch(spec)
        assert taken.value.ports == spec.ports
        assert [run for run in await stage.runtime.list() if run.key == key] == []
    await stage.runtime.launch(spec)  # free again: the same key may be launched
    await stage.ready(spec)


async def test_a_port_of_a_sibling_is_taken_too(stage: Stage) -> None:
    first = await stage.running(games.demo())
    second = stage.spec(stage.build(games.demo()), ports=first.ports)
    with pytest.raises(PortTaken):
        await stage.runtime.launch(second)
    assert await asyncio.to_thread(ask, first, "ping 1")


async def test_launching_one_key_twice_is_one_game(stage: Stage) -> None:
    spec = stage.spec(stage.build(games.demo()))
    await asyncio.gather(stage.runtime.launch(spec), stage.runtime.launch(spec))
    await stage.ready(spec)
    await stage.runtime.launch(spec)
    assert [run.key for run in await stage.runtime.list()] == [spec.key]


async def test_a_cancelled_launch_can_still_be_stopped(stage: Stage) -> None:
    spec = stage.spec(stage.build(games.demo()))
    launch = asyncio.create_task(stage.runtime.launch(spec))

    async def begun() -> bool:
        return bool(await stage.runtime.list())

    await until(begun)
    launch.cancel()
    await asyncio.gather(launch, return_exceptions=True)
    await stage.runtime.stop(spec.key, 5)
    await stage.exit_of(spec.key)
    assert [run.running for run in await stage.runtime.list()] == [False]


async def test_a_missing_executable_is_a_clear_failure(stage: Stage) -> None:
    build = stage.build(games.demo())
    bad = BuildRef(build.build_id, "zip", build.content_hash, executable="Game.x86_64")
    with pytest.raises(LaunchFailed, match=r"Game\.x86_64.*not in the build") as failure:
        await stage.runtime.launch(stage.spec(bad))
    assert failure.value.reason == "STARTUP_FAILURE_EXECUTABLE"
    with pytest.raises(LaunchFailed, match="not unpacked") as failure:
        await stage.runtime.prepare(BuildRef("b", "zip", "0" * 64))
    assert failure.value.reason == "STARTUP_FAILURE_DOWNLOAD"


async def test_a_missing_interpreter_fails_or_ends_at_once(stage: Stage) -> None:
    spec = stage.spec(stage.build(games.script("", "/no/such/interpreter")))
    if stage.kind == "docker":  # the engine's init starts first, and reports it as a shell does
        await stage.runtime.launch(spec)
        assert (await stage.exit_of(spec.key)).exit_code == 127
        return
    with pytest.raises(LaunchFailed, match="No such file") as failure:
        await stage.runtime.launch(spec)
    assert failure.value.reason == "STARTUP_FAILURE_EXECUTABLE"


async def test_a_new_runtime_object_adopts_what_runs_and_tells_what_ended_meanwhile(stage: Stage) -> None:
    stays = await stage.running(games.demo())
    ends = await stage.running(games.demo())
    await stage.die()
    assert await asyncio.to_thread(ask, ends, "crash 9") == "crashing"
    await stage.open()
    assert (await stage.exit_of(ends.key)).exit_code == 9
    runs = {run.key: run for run in await stage.runtime.list()}
    assert runs[stays.key].running
    assert (runs[stays.key].ports, runs[stays.key].memory_mb, runs[stays.key].cpus) == (stays.ports, 256, 1.0)
    assert runs[stays.key].labels["fleet.test"] == "1"
    await stage.ready(stays)
    await stage.runtime.rewrite_config(stays.key, {"instance_id": "adopted", "custom_data": {"n": 1}})
    assert orjson.loads(await asyncio.to_thread(ask, stays, "state"))["custom_data"] == {"n": 1}
    await stage.runtime.stop(stays.key, PATIENCE)
    assert (await stage.exit_of(stays.key)).exit_code == 0


async def test_log_pages_join_without_loss_or_repetition(stage: Stage) -> None:
    spec = await stage.running(games.log_writer(500))
    await stage.runtime.stop(spec.key, 0)
    await stage.exit_of(spec.key)
    whole = await stage.runtime.logs(spec.key, None, None, 10_000)
    numbered = [line.message for line in whole if line.message.startswith("line ")]
    assert numbered == [f"line {n}" for n in range(len(numbered))]
    pages, token = [], None
    while page := await stage.runtime.logs(spec.key, token, None, 7):
        pages += page
        token = page[-1].token
    assert pages == whole
    assert len({line.token for line in whole}) == len(whole)
    with pytest.raises(BadRequest):
        await stage.runtime.logs(spec.key, "yesterday", None, 7)


async def test_following_shows_lines_as_they_come_and_ends_with_the_run(stage: Stage) -> None:
    spec = await stage.running(games.demo())
    booted = await stage.runtime.logs(spec.key, None, None, 100)
    seen: list[str] = []
    said = asyncio.Event()

    async def follow() -> None:
        async for line in stage.runtime.follow(spec.key, booted[-1].token):
            seen.append(line.message)
            said.set()

    task = asyncio.create_task(follow())
    await asyncio.to_thread(ask, spec, "say hello there")
    async with asyncio.timeout(PATIENCE):
        await said.wait()
    await asyncio.to_thread(ask, spec, "quit")
    await asyncio.wait_for(task, PATIENCE)
    assert seen == ["hello there", "quit: bye"]


async def test_both_streams_and_long_lines_are_kept_whole(stage: Stage) -> None:
    long = "x" * 40_000
    spec = stage.spec(stage.build(games.script(f"echo {long}; echo oops >&2; printf unfinished")), ports=())
    await stage.runtime.launch(spec)
    await stage.exit_of(spec.key)
    lines = await stage.runtime.logs(spec.key, None, None, 10)
    assert sorted((line.stream, line.message) for line in lines) == sorted(
        [("stdout", long), ("stderr", "oops"), ("stdout", "unfinished")]
    )


async def test_the_archive_continues_where_a_live_reader_stopped(stage: Stage, tmp_path: Path) -> None:
    spec = await stage.running(games.demo())
    live = await stage.runtime.logs(spec.key, None, None, 1)
    await asyncio.to_thread(ask, spec, "crash 3")
    await stage.exit_of(spec.key)
    whole = await stage.runtime.logs(spec.key, None, None, 100)
    archive = LogArchive(tmp_path / "archive", LogLimits())
    await archive.keep(stage.runtime, spec.key)
    await archive.keep(stage.runtime, spec.key)  # again: no change
    await stage.runtime.remove(spec.key)
    assert await archive.page(spec.key, None, None, 100) == whole
    assert await archive.page(spec.key, live[-1].token, None, 100) == whole[1:]
    assert await stage.runtime.logs(spec.key, None, None, 100) == []


async def test_removal_leaves_nothing_and_refuses_what_runs(stage: Stage) -> None:
    spec = await stage.running(games.demo())
    with pytest.raises(Conflict):
        await stage.runtime.remove(spec.key)
    await stage.runtime.stop(spec.key, PATIENCE)
    await stage.exit_of(spec.key)
    await gone(lambda: stage.runtime.remove(spec.key))
    await stage.runtime.remove(spec.key)  # again: no error
    assert await stage.runtime.list() == []
    assert list((stage.folder / "servers").iterdir()) == []


async def test_other_fleets_and_regions_are_not_seen(stage: Stage) -> None:
    await stage.running(games.demo())
    place = stage.place()
    make = DockerRuntime if stage.kind == "docker" else ProcessRuntime
    for other in (
        RuntimePlace("other", place.region, place.servers_dir, place.bundles),
        RuntimePlace(place.fleet_id, "eu-west", place.servers_dir, place.bundles),
    ):
        stranger = make(other)
        await stranger.start()
        assert await stranger.list() == []
        await stranger.close()


async def test_real_games_run(stage: Stage) -> None:
    try:
        files = await asyncio.to_thread(games.teeworlds)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"Debian's game packages are out of reach: {error}")
    spec = stage.spec(stage.build(files), startup_args=games.TEEWORLDS_ARGS.replace("{name}", "real one"))
    await stage.runtime.launch(spec)
    await stage.ready(spec)
    assert await asyncio.to_thread(games.teeworlds_name, HOST, spec.ports[0].external) == "real one"
