"""What every Runtime promises. One suite, run on the Docker engine and on plain processes."""

import asyncio
import secrets
import socket
import subprocess
from pathlib import Path

import orjson
import pytest

from fleet.errors import Conflict, NotFound
from fleet.node.docker import DockerRuntime
from fleet.node.engine import Engine
from fleet.node.health import until_ready
from fleet.node.process import ProcessRuntime
from fleet.node.runtime import (
    BuildRef,
    LaunchFailed,
    Port,
    PortTaken,
    RunKey,
    RuntimePlace,
)
from tests import games
from tests.contract.runtime_stage import HOST, PATIENCE, PORTS, Stage, ask, docker_only, gone, until


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


async def test_removal_leaves_nothing_and_refuses_what_runs(stage: Stage) -> None:
    spec = await stage.running(games.demo())
    with pytest.raises(Conflict):
        await stage.runtime.remove(spec.key)
    await stage.runtime.stop(spec.key, PATIENCE)
    await stage.exit_of(spec.key)
    await gone(lambda: stage.runtime.remove(spec.key))
    await stage.runtime.remove(spec.key)  # again: no error
    with pytest.raises(NotFound):
        await stage.runtime.rewrite_config(spec.key, {})
    assert await stage.runtime.list() == []
    left = {str(path.relative_to(stage.folder)) for path in (stage.folder / "servers").rglob("*")}
    assert left <= {"servers/.disks"}, "but for the place of disks"


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


def processor_ticks(pids: list[int]) -> int:
    """User and system time of processes so far, in clock ticks."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats)


async def test_a_frozen_game_uses_no_processor_and_goes_on_when_it_is_thawed(stage: Stage) -> None:
    spec = await stage.running(games.busy())
    pids = await stage.pids(spec.key)
    assert len(pids) >= 2, "the game and its child"
    await stage.runtime.freeze(spec.key)
    await stage.runtime.freeze(spec.key)  # again: no error
    before = processor_ticks(pids)
    with pytest.raises(TimeoutError):
        await asyncio.to_thread(games.udp_ask, HOST, spec.ports[0].external, b"x", 0.5, 2)
    assert processor_ticks(pids) == before
    assert (await stage.runtime.readiness(spec.ports, spec.key)).ready, "its ports stay"
    assert [run.frozen for run in await stage.runtime.list()] == [True]
    await stage.runtime.thaw(spec.key)
    await stage.runtime.thaw(spec.key)
    assert (await asyncio.to_thread(ask, spec, "y")).startswith("echo")
    assert [run.frozen for run in await stage.runtime.list()] == [False]


async def test_a_frozen_game_is_stopped_as_politely_as_any(stage: Stage) -> None:
    spec = await stage.running(games.demo())
    await stage.runtime.freeze(spec.key)
    await stage.die()
    await stage.open()
    assert [(run.running, run.frozen) for run in await stage.runtime.list()] == [(True, True)], "the next life knows"
    await stage.runtime.stop(spec.key, PATIENCE)
    assert (await stage.exit_of(spec.key)).exit_code == 0


async def test_what_does_not_run_is_neither_frozen_nor_thawed(stage: Stage) -> None:
    spec = await stage.running(games.demo())
    await stage.runtime.stop(spec.key, PATIENCE)
    await stage.exit_of(spec.key)
    for key in (spec.key, RunKey("unknown", 1)):
        with pytest.raises(NotFound):
            await stage.runtime.freeze(key)
        with pytest.raises(NotFound):
            await stage.runtime.thaw(key)


async def test_usage_tells_what_a_game_uses(stage: Stage) -> None:
    idle, busy = await stage.running(games.demo()), await stage.running(games.busy())
    unknown = RunKey("unknown", 1)
    keys = [idle.key, busy.key, unknown]
    first = await stage.runtime.usage(keys)
    assert first.keys() == {idle.key, busy.key}
    assert all(1 << 20 < usage.memory_bytes < 256 << 20 for usage in first.values())
    assert [first[key].connections for key in keys[:2]] == [1, 1], "one bound socket each"
    payload = "say " + "x" * 1000
    await asyncio.to_thread(ask, idle, payload)

    async def a_second_later() -> bool:
        return (await stage.runtime.usage(keys))[busy.key].cpu_ns > first[busy.key].cpu_ns + 10**9

    await until(a_second_later)
    later = await stage.runtime.usage(keys)
    assert later[idle.key].cpu_ns - first[idle.key].cpu_ns < 5 * 10**8
    if stage.kind == "docker":
        assert (later[idle.key].rx_bytes or 0) - (first[idle.key].rx_bytes or 0) >= 1000
    else:
        assert later[idle.key].rx_bytes is None


async def test_the_conversation_with_the_node_is_no_connection_of_a_player(stage: Stage) -> None:
    spec = await stage.running(games.long_poller())
    async with asyncio.timeout(PATIENCE):
        async for line in stage.runtime.follow(spec.key, None):
            if line.message.startswith("{"):
                break

    async def waits_again() -> bool:
        api = stage.runtime._api  # type: ignore[attr-defined]
        return stage.kind == "process" or api.connections(spec.key) == 1

    await until(waits_again)
    if stage.kind == "docker":
        assert (await stage.runtime.usage([spec.key]))[spec.key].connections == 1
