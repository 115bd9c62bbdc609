"""Networks made ahead: launches join them, and none is left over, whatever dies."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from fleet.node.docker_exits import CUT_OFF
from fleet.node.docker_networks import ROLE, hold_folder
from fleet.node.docker_spec import container_name
from fleet.node.engine import Engine
from fleet.node.model import RunState
from fleet.node.ports import is_free
from fleet.node.runtime import Network, RunKey
from fleet.settings import NodeSettings
from tests import games
from tests.contract.node_bench import Bench, open_bench
from tests.contract.runtime_stage import HOST, until


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, NodeSettings(health_every_s=0.1, warm_networks=1)) as bench:
        yield bench


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine()
    yield engine
    await engine.close()


async def networks(bench: Bench) -> list[Network]:
    found = bench.node._runtime.networks
    assert found is not None
    return await found.list()


async def one_ready(bench: Bench) -> Network:
    """The network that waits for a game."""

    async def ready() -> bool:
        return len(bench.node._warm._ready) == 1

    await until(ready)
    (network,) = bench.node._warm._ready.values()
    return network


async def container(bench: Bench, engine: Engine, key: RunKey) -> dict[str, Any]:
    return await engine.call("GET", f"/containers/{container_name(bench.stage.place().fleet_id, key)}/json")


async def test_the_next_game_joins_a_network_made_ahead_and_takes_it_along(bench: Bench, engine: Engine) -> None:
    await bench.running(games.demo())
    network = await one_ready(bench)
    port = network.ports[0].external
    assert not is_free(HOST, port), "its ports are published"
    key, ports = await bench.running(games.demo())
    assert [p.external for p in ports] == [port]
    mode = (await container(bench, engine, key))["HostConfig"]["NetworkMode"]
    assert mode.startswith("container:")
    answer = games.udp_ask(HOST, port, b"ping 1")
    assert answer == f"pong {key.instance_id[:8]} 1".encode()
    assert (await one_ready(bench)).name != network.name, "the stock is filled again"
    assert games.udp_ask(HOST, port, b"crash 5") == b"crashing"
    ended = await bench.until(lambda v: v.key == key and v.state.ended)
    assert (ended.state, ended.exit_code) == (RunState.EXITED, 5)
    assert "asked to crash" in ended.message

    async def gone() -> bool:
        return network.name not in {n.name for n in await networks(bench)} and not bench.node._ports.held_by(
            network.name
        )

    await until(gone)
    assert is_free(HOST, port)
    assert network.name not in os.listdir(hold_folder(bench.stage.place()))


async def test_a_game_on_it_finds_its_door_open(bench: Bench) -> None:
    await bench.running(games.demo())
    await one_ready(bench)
    _, ports = await bench.running(games.long_poller())
    answer = orjson.loads(await asyncio.to_thread(games.udp_ask, HOST, ports[0].external, b"ask"))
    assert answer["config"]["custom_data"] == {"map": "arena"}


async def test_a_game_of_another_shape_does_not_take_it(bench: Bench) -> None:
    await bench.running(games.demo())
    network = await one_ready(bench)
    spec = bench.stage.spec(bench.stage.build(games.demo()), ports=())
    await bench.node.launch(1, spec)
    await bench.until(lambda v: v.key == spec.key and v.state is RunState.RUNNING)
    assert bench.node._warm._ready == {network.name: network}


async def test_a_network_that_someone_removed_is_no_failure(bench: Bench, engine: Engine) -> None:
    await bench.running(games.demo())
    network = await one_ready(bench)
    bench.node._warm._changed = asyncio.Event()  # nobody looks meanwhile
    await engine.call("DELETE", f"/containers/{network.name}", params={"force": "1"})
    key, ports = await bench.running(games.demo())
    assert games.udp_ask(HOST, ports[0].external, b"ping 1").startswith(b"pong " + key.instance_id[:8].encode())


async def test_a_game_whose_network_is_removed_by_hand_has_crashed(bench: Bench, engine: Engine) -> None:
    await bench.running(games.demo())
    network = await one_ready(bench)
    key, _ = await bench.running(games.demo())
    await engine.call("DELETE", f"/containers/{network.name}", params={"force": "1"})
    ended = await bench.until(lambda v: v.key == key and v.state.ended)
    assert ended.state is RunState.EXITED
    assert ended.exit_code != 0
    assert CUT_OFF in ended.message


async def test_removed_while_no_agent_lives_it_is_told_by_the_next(bench: Bench, engine: Engine) -> None:
    await bench.running(games.demo())
    network = await one_ready(bench)
    key, _ = await bench.running(games.demo())
    await bench.node.close()
    await engine.call("DELETE", f"/containers/{network.name}", params={"force": "1"})
    await bench.open()
    if not bench.runs()[key].state.ended:
        await bench.until(lambda v: v.key == key and v.state.ended)
    assert CUT_OFF in bench.runs()[key].message


async def test_the_next_agent_takes_over_what_is_ready_and_drops_what_nobody_uses(bench: Bench) -> None:
    await bench.running(games.demo())
    first = await one_ready(bench)
    key, ports = await bench.running(games.demo())
    ready = await one_ready(bench)
    await bench.node.close()
    orphan = "fleet-net-orphan-" + bench.stage.folder.name
    made = bench.node._runtime.networks
    await bench.stage.open()  # an agent that took a network and died before its game was there
    lost = bench.stage.runtime.networks
    assert made is not None
    assert lost is not None
    await lost.make(orphan, HOST, ())
    lost.take(orphan)
    await bench.stage.die()
    await bench.open()
    assert bench.node._warm._ready.keys() == {ready.name}

    async def dropped() -> bool:
        return {n.name for n in await networks(bench)} == {first.name, ready.name}

    await until(dropped)
    assert bench.node._ports.held_by(first.name) == [ports[0].external]
    await asyncio.to_thread(games.udp_ask, HOST, ports[0].external, b"quit")
    await bench.until(lambda v: v.key == key and v.state.ended)

    async def followed() -> bool:
        return first.name not in {n.name for n in await networks(bench)}

    await until(followed)


async def test_without_any_agent_only_those_in_use_stay(bench: Bench, engine: Engine) -> None:
    await bench.running(games.demo())
    taken = await one_ready(bench)
    key, ports = await bench.running(games.demo())
    ready = await one_ready(bench)
    await bench.node.close()
    os.utime(hold_folder(bench.stage.place()) / "alive", (0, 0))  # as if that was long ago
    for network in (taken, ready):
        await look_again(engine, network.name)

    async def left() -> bool:
        rows = await engine.call("GET", "/containers/json", params={"filters": _named(taken.name, ready.name)})
        return [row["Names"] for row in rows] == [[f"/{taken.name}"]]

    await until(left)
    assert games.udp_ask(HOST, ports[0].external, b"ping 1").startswith(b"pong " + key.instance_id[:8].encode())
    await bench.open()


async def test_one_that_was_never_started_is_not_left(bench: Bench, engine: Engine) -> None:
    """As after kill -9 of an agent between the engine's create and its start."""
    await bench.running(games.demo())
    network = await one_ready(bench)
    details = await engine.call("GET", f"/containers/{network.name}/json")
    name = f"{network.name}-half"
    labels = details["Config"]["Labels"] | {ROLE: name}
    half = {"Image": details["Config"]["Image"], "Cmd": ["true"], "Labels": labels}
    await engine.call("POST", "/containers/create", params={"name": name}, json=half)
    await bench.node.close()
    await bench.open()

    async def gone() -> bool:
        filters = orjson.dumps({"name": [name]}).decode()
        return not await engine.call("GET", "/containers/json", params={"all": "1", "filters": filters})

    await until(gone)


async def look_again(engine: Engine, name: str) -> None:
    """End a sandbox's present sleep."""
    top = await engine.call("GET", f"/containers/{name}/top")
    pid, command = (top["Titles"].index(title) for title in ("PID", "CMD"))
    for row in top["Processes"]:
        if row[command].startswith("sleep"):
            os.kill(int(row[pid]), signal.SIGTERM)


def _named(*names: str) -> str:
    return orjson.dumps({"name": list(names)}).decode()


async def test_a_port_taken_meanwhile_is_stepped_over(bench: Bench) -> None:
    """The allocator believes everything to be free, so the network's first port is another's."""
    bench.node._ports._free = lambda _host, _port: True
    _, ports = await bench.running(games.demo())
    first = await one_ready(bench)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        thief.bind((HOST, first.ports[0].external + 1))
        key, _ = await bench.running(games.demo())
        second = await one_ready(bench)
    assert second.ports[0].external == first.ports[0].external + 2
    assert ports
    assert key
