"""What a running game says of itself reaches its region, and outlives the node's agent."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleet.node import words
from fleet.node.game_api import CALLS_AT_ONCE, MOST_BODY
from fleet.node.hearing import READY_BY
from fleet.node.model import RunState
from fleet.node.runtime import Port, RunKey
from tests import games
from tests.contract.node_bench import GAME, HABITS, Bench, open_bench
from tests.contract.runtime_stage import HOST, PATIENCE
from tests.python_games import python_game
from tests.waiting import eventually

PAGE = Path(__file__).parent.parent.parent / "docs" / "game-contract.md"
# Does what it is told by UDP, with the functions of the sample.
DRIVER = """
import socket, threading, urllib.error
door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
door.bind(("0.0.0.0", int(os.environ.get("PLAYFLOW_PORT_GAME", "7777"))))
configs = []
threading.Thread(target=follow_config, args=[configs.append], daemon=True).start()
while True:
    word, player = door.recvfrom(4096)
    try:
        order = json.loads(word)
        if order["path"] == "configs":
            answer = json.dumps(configs)
        elif order["path"] == "flood":
            codes = []
            for _ in range(order["times"]):
                try:
                    tell("/ready")
                    codes.append(200)
                except urllib.error.HTTPError as error:
                    codes.append(error.code)
            answer = json.dumps(codes)
        else:
            tell(order["path"], **order["body"])
            answer = "ok"
    except urllib.error.HTTPError as error:
        answer = f"{error.code} {error.read().decode()}"
    except OSError as error:
        answer = f"refused {error}"
    door.sendto(answer.encode(), player)
"""


def sample() -> str:
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def talker() -> games.Files:
    return python_game(sample() + DRIVER)


@pytest.fixture(params=["docker", "process"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, HABITS, request.param) as bench:
        yield bench


async def order(port: Port, path: str, **body: Any) -> str:
    word = json.dumps({"path": path, "body": body}).encode()
    return (await asyncio.to_thread(games.udp_ask, HOST, port.external, word)).decode()


async def launched(bench: Bench, ready_by: str) -> tuple[RunKey, Port]:
    spec = bench.stage.spec(bench.stage.build(talker()), labels={READY_BY: ready_by})
    (port,) = await bench.node.launch(1, replace(spec, ports=(GAME,)))
    await bench.until(lambda v: v.key == spec.key and v.state is RunState.BOOTING)
    return spec.key, port


async def test_a_build_may_ask_for_the_games_own_word(bench: Bench) -> None:
    key, port = await launched(bench, "game")
    waiting = await bench.until(lambda v: "has not said" in v.message)
    assert waiting.state is RunState.BOOTING
    assert await order(port, "/ready") == "ok"
    await bench.until(lambda v: v.key == key and v.state is RunState.RUNNING)
    await bench.node.close()
    await bench.open()  # the next agent knows that it was said
    async with asyncio.timeout(PATIENCE):
        while bench.state(key) is not RunState.RUNNING:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_the_project_may_say_it_for_its_game(bench: Bench) -> None:
    key, _ = await launched(bench, "game")
    await bench.until(lambda v: "has not said" in v.message)
    bench.node.ready(1, key)
    await bench.until(lambda v: v.key == key and v.state is RunState.RUNNING)
    await bench.node.close()
    await bench.open()
    async with asyncio.timeout(PATIENCE):
        while bench.state(key) is not RunState.RUNNING:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_players_and_configs_are_told_without_a_restart(bench: Bench) -> None:
    key, port = await launched(bench, "ports")
    await bench.until(lambda v: v.key == key and v.state is RunState.RUNNING)
    assert bench.node.usage(key, 300, 15)["players"] is None
    assert await order(port, "/players", count=3, capacity=8) == "ok"
    seen = bench.node.usage(key, 300, 15)["players"]
    assert (seen["count"], seen["capacity"]) == (3, 8)
    await bench.node.rewrite_config(1, key, {"custom_data": {"map": "new"}})

    def told() -> bool:
        word = json.dumps({"path": "configs"}).encode()
        return json.loads(games.udp_ask(HOST, port.external, word))[-1:] == [{"custom_data": {"map": "new"}}]

    await asyncio.to_thread(eventually, told, PATIENCE, "the new config")


async def test_a_broken_promise_to_beat_is_told_and_a_new_beat_mends_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "LEAST_BEAT_S", 0.1)
    key, port = await launched(bench, "ports")
    await bench.until(lambda v: v.key == key and v.state is RunState.RUNNING)
    assert await order(port, "/health", within_s=1.5) == "ok"
    await bench.node.freeze(1, key)
    await asyncio.sleep(2.5)
    assert bench.runs()[key].well, "a frozen game cannot beat"
    await bench.node.thaw(1, key)
    silent = await bench.until(lambda v: v.key == key and not v.well)
    assert "1.5 s" in silent.silent
    assert silent.healthy, "its ports are open"
    assert await order(port, "/health", within_s=600) == "ok"
    await bench.until(lambda v: v.key == key and v.well)


async def test_a_wish_to_be_stopped_is_told_even_by_the_next_agent(bench: Bench) -> None:
    key, port = await launched(bench, "ports")
    await bench.until(lambda v: v.key == key and v.state is RunState.RUNNING)
    assert await order(port, "/stop", reason="match over") == "ok"
    await bench.until(lambda v: v.key == key and v.stop_asked == "match over")
    await bench.node.close()
    await bench.open()
    await bench.until(lambda v: v.key == key and v.stop_asked == "match over")
    bench.node.stop(1, key, 5)
    await bench.until(lambda v: v.key == key and v.state is RunState.EXITED)


async def test_nonsense_is_refused_with_a_word_and_a_flood_by_429(bench: Bench) -> None:
    key, port = await launched(bench, "ports")
    await bench.until(lambda v: v.key == key and v.state is RunState.RUNNING)
    bad: list[tuple[str, dict[str, Any], str]] = [
        ("/players", {"count": -1}, "400"),
        ("/players", {"count": True}, "400"),
        ("/players", {}, "400"),
        ("/health", {"within_s": 1}, "400"),
        ("/stop", {"reason": 7}, "400"),
        ("/ready", {"x": "y" * MOST_BODY}, "400"),
        ("/nothing", {}, "404"),
        ("/config", {}, "405"),
    ]
    for path, body, code in bad:
        assert (await order(port, path, **body)).startswith(code), path
    assert bench.node.usage(key, 300, 15)["players"] is None
    word = json.dumps({"path": "flood", "times": int(CALLS_AT_ONCE) + 60}).encode()
    codes = json.loads(await asyncio.to_thread(games.udp_ask, HOST, port.external, word, 40, 1))
    assert 429 in codes
    assert 200 in codes
