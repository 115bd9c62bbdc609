"""What a running game can ask its node: its own config, and to wait for a new one."""

import asyncio
import contextlib
import secrets
import socket
from pathlib import Path
from typing import Any

import orjson
import pytest

from fleet.node.docker import DockerRuntime
from fleet.node.docker_spec import container_name
from fleet.node.engine import Engine
from fleet.node.game_api import MOST_CONNECTIONS, GameApi, revision_of
from fleet.node.runtime import LaunchSpec, Port, RunKey
from tests import games
from tests.contract.runtime_stage import HOST, PATIENCE, PORTS, Stage, ask, docker_only


async def answers(stage: Stage, spec: LaunchSpec, count: int) -> list[dict[str, Any]]:
    """The first answers that the long-polling game has got."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(PATIENCE):
        async for line in stage.runtime.follow(spec.key, None):
            if line.message.startswith("{"):
                found.append(orjson.loads(line.message))
            if len(found) == count:
                return found
    raise AssertionError(found)


async def knock(spec: LaunchSpec, question: str) -> dict[str, Any]:
    return orjson.loads(await asyncio.to_thread(ask, spec, f"ask {question}"))


async def check_a_claim_reaches_the_game(stage: Stage) -> None:
    spec = await stage.running(games.long_poller())
    (first,) = await answers(stage, spec, 1)
    assert first["config"] == spec.config
    claimed = spec.config | {"match_id": "m1"}
    await stage.runtime.rewrite_config(spec.key, claimed)
    assert (await answers(stage, spec, 2))[1]["config"] == claimed
    await stage.runtime.rewrite_config(spec.key, claimed)  # told again, as after a restart: nothing new
    assert (await knock(spec, ""))["revision"] == (await answers(stage, spec, 2))[1]["revision"]


async def test_a_claim_reaches_the_game_that_waits_for_it(stage: Stage) -> None:
    await check_a_claim_reaches_the_game(stage)


async def test_the_next_agent_answers_too(stage: Stage) -> None:
    spec = await stage.running(games.long_poller())
    await answers(stage, spec, 1)
    await stage.die()
    await stage.open()
    await stage.runtime.serve(spec.key)
    seen = await knock(spec, "")
    assert seen["config"] == spec.config
    again = await knock(spec, f"?after={seen['revision']}&timeout=0")
    assert again == seen, "nothing new: the same after the timeout"


async def test_bad_questions_get_words(stage: Stage) -> None:
    spec = await stage.running(games.long_poller())
    await answers(stage, spec, 1)
    for question in ("?after=x&timeout=soon", "?after=x&timeout=-1", "?after=x&timeout=nan", f"?after={'x' * 65}"):
        assert "error" in await knock(spec, question), question
    assert (await knock(spec, "/../secrets"))["error"] == "Not found"


async def test_without_root_the_door_is_a_socket_in_the_games_folder(stage: Stage) -> None:
    if not isinstance(stage.runtime, DockerRuntime):
        pytest.skip("a plain process needs no such door")
    stage.door_port = 0
    await stage.die()
    await stage.open()
    await check_a_claim_reaches_the_game(stage)


async def test_a_game_that_has_declared_our_port_keeps_it(stage: Stage) -> None:
    if not isinstance(stage.runtime, DockerRuntime):
        pytest.skip("there is only one port for all")
    key = RunKey(secrets.token_hex(8), 1)
    wanted = stage.runtime._place.door_port
    ports = (Port("game", 7777, PORTS.take(str(key)), "udp"), Port("tcp", wanted, PORTS.take(str(key)), "tcp"))
    spec = stage.spec(stage.build(games.demo()), key=key, ports=ports, startup_args="--tcp {port:tcp}")
    await stage.runtime.launch(spec)
    await stage.ready(spec)
    url = await asyncio.to_thread(ask, spec, "env PLAYFLOW_CONFIG_URL")
    assert url == f"env PLAYFLOW_CONFIG_URL=http://127.0.0.1:{wanted + 1}/config"


async def test_a_game_cannot_ask_for_another_or_hold_more_than_its_share(stage: Stage) -> None:
    if stage.kind != "process":
        pytest.skip("in a container only the game itself can knock, see the next test")
    first, second = await stage.running(games.demo()), await stage.running(games.demo())
    urls = [
        (await asyncio.to_thread(ask, spec, "env PLAYFLOW_CONFIG_URL")).partition("=")[2] for spec in (first, second)
    ]
    host, _, path = urls[0].removeprefix("http://").partition("/")
    port = int(host.rpartition(":")[2])
    assert f"127.0.0.1:{port}" in urls[1]
    assert first.config == (await http_get(port, f"/{path}"))["config"]
    assert "error" in await http_get(port, "/config")
    assert "error" in await http_get(port, f"/{path[:-8]}x/config")
    await stage.runtime.stop(first.key, PATIENCE)
    await stage.exit_of(first.key)
    assert "error" in await http_get(port, f"/{path}"), "an ended game has no address"


async def http_get(port: int, path: str) -> dict[str, Any]:
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    _, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return orjson.loads(body)


async def listening(api: GameApi, key: RunKey, folder: Path) -> int:
    """The port of a door on loopback."""
    listener = socket.create_server((HOST, 0))

    async def bind(factory: Any) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(factory, sock=listener)

    await api.listen(key, folder, bind)
    return listener.getsockname()[1]


@pytest.mark.parametrize("turns", range(6))
async def test_who_knocks_while_the_door_shuts_is_not_left_waiting(turns: int, tmp_path: Path) -> None:
    """At every turn of the loop between the kernel's accept and the protocol's."""
    (tmp_path / "playflow.json").write_bytes(b"{}")
    api, key = GameApi(), RunKey("a", 1)
    port = await listening(api, key, tmp_path)
    with socket.create_connection((HOST, port)) as knocking:
        for _ in range(turns):
            await asyncio.sleep(0)
        await api.shut(key)
        knocking.settimeout(PATIENCE)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.to_thread(knocking.recv, 1) == b""


async def test_connections_are_bounded(tmp_path: Path) -> None:
    """The same door on a loopback port of this machine."""
    content = b'{"n": 1}'
    (tmp_path / "playflow.json").write_bytes(content)
    api, key = GameApi(), RunKey("a", 1)
    port = await listening(api, key, tmp_path)
    idle = [await asyncio.open_connection(HOST, port) for _ in range(MOST_CONNECTIONS)]
    reader, writer = await asyncio.open_connection(HOST, port)
    assert await reader.read() == b"", "one too many is closed at once"
    writer.close()
    await writer.wait_closed()
    door = api.door(key)
    assert door is not None
    assert door.connections() == MOST_CONNECTIONS
    reader, writer = idle.pop()
    writer.write(f"GET /config?after={revision_of(content)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await asyncio.sleep(0)
    (tmp_path / "playflow.json").write_bytes(b'{"n": 2}')
    api.changed(key)
    assert b'{"n": 2}' in await asyncio.wait_for(reader.readuntil(b"}}"), PATIENCE)
    for _, other in [*idle, (reader, writer)]:
        other.close()
        await other.wait_closed()
    await api.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(HOST, port)


# In bash, which speaks TCP by itself: place, path.
SPEAK = r"""#!/bin/bash
speak() {
  timeout 0.5 bash -c "exec 3<>/dev/tcp/$1/7350" || return 1
  exec 3<>"/dev/tcp/$1/7350"
  body="{\"instance_id\": \"$OTHER\"}"
  printf 'POST %s HTTP/1.1\r\nHost: %s\r\nx-instance-id: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s' \
    "$2" "$OTHER" "$OTHER" "${#body}" "$body" >&3
  timeout 2 cat <&3
}
until (exec 3<>/dev/tcp/127.0.0.1/7350); do sleep 0.1; done 2>/dev/null
for place in 127.0.0.1 $TARGETS; do
  for path in /ready "/ready?instance_id=$OTHER" "/$OTHER/ready" "/ready/$OTHER"; do
    (speak "$place" "$path") 2>&1
  done
done
echo
cat "/playflow/../$OTHER/playflow.json" /proc/[0-9]*/root/playflow/playflow.json 2>/dev/null | grep -c "$OTHER"
echo done
exec sleep 600
"""


async def test_a_game_speaks_for_itself_only_whatever_it_says_and_where(stage: Stage) -> None:
    """It tries its own door, the other's address, and the host's, with the other's name in every place for one."""
    docker_only(stage, "plain processes share the host's network")
    heard: list[tuple[RunKey, object]] = []
    stage.runtime.hear(lambda key, word: heard.append((key, word)))
    other = await stage.running(games.demo())
    engine = Engine()
    name = container_name(stage.place().fleet_id, other.key)
    network = (await engine.call("GET", f"/containers/{name}/json"))["NetworkSettings"]
    await engine.close()
    targets = " ".join(filter(None, [network["IPAddress"], network["Gateway"]]))
    build = stage.build({games.EXECUTABLE: (SPEAK.encode(), 0o755)})
    spec = stage.spec(build, ports=(), environment={"TARGETS": targets, "OTHER": other.key.instance_id})
    await stage.runtime.launch(spec)
    lines: list[str] = []
    async with asyncio.timeout(PATIENCE):
        while "done" not in lines:
            lines = [line.message for line in await stage.runtime.logs(spec.key, None, None, 100)]
            await asyncio.sleep(0.05)
    assert lines[-2] == "0", "no file of the other is to be seen"
    assert {key for key, _ in heard} <= {spec.key}
    assert heard, "its own word is heard"
