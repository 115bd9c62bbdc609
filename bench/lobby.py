"""Lobbies through their keeper, without the API: `make bench-lobby`.

A keeper as an actor of a small Ray of its own, over a SQLite database with synchronous=FULL; this process is the
replica. Game servers are a stand-in that answers at once, so that what is measured is lobbies, queue and matches.

  operations/s   create, join, state, settings, leave; each durable before it is answered
  tickets/s      lobbies that queue for a duel, until all are in a match with a server
  completing     from the call that completes a match to the change seen by the other lobby's stream, with many waiting
"""

import argparse
import asyncio
import gc
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

from fleet.lobbies.calls import Answer, Command, Poll, Polled
from fleet.lobbies.client import KeeperClient
from fleet.lobbies.core import Core
from fleet.lobbies.lobbies import Lobbies
from fleet.lobbies.match import Match
from fleet.lobbies.model import LobbyChange, NewLobby
from fleet.lobbies.watch import Watch
from fleet.lobbies.world import World
from fleet.projects.service import create_project
from fleet.settings import LobbySettings
from fleet.store import migrate
from fleet.store.commit import GroupCommit, row_of, row_values, take_epoch
from fleet.store.engine import Store
from fleet.store.tables import Project, Server
from fleet.telemetry.logs import setup_logging
from fleet.times import now_ms

CONFIG = {
    "name": "bench",
    "maxPlayers": 4,
    "timeout": 3600,
    "matchmaking": {
        "modes": {
            "duel": {"teams": 2, "playersPerTeam": 1},
            "pinned": {"teams": 2, "playersPerTeam": 1, "rules": [{"type": "equals", "field": "map"}]},
        }
    },
}


class InstantServers(World):
    """Every match has a server at once, which runs until it is stopped."""

    _row = row_values(
        Server(
            instance_id="",
            project_id="",
            region="",
            name="bench",
            status="running",
            step="running",
            compute_size="small",
            build_id="b",
            version_tag="default",
            created_at=0,
            updated_at=0,
            launched_at=0,
            step_at=0,
        )
    )

    async def start(self, caller: Any, match: Match, config: Any, data: dict[str, Any]) -> Server:
        now = now_ms()
        mine = {"instance_id": match.id, "project_id": match.project_id, "region": match.region, "match_id": match.id}
        return row_of(Server, {**self._row, **mine, "created_at": now, "updated_at": now, "started_at": now})

    async def changed(self, match: Match) -> Server | None:
        await asyncio.Event().wait()

    async def stop(self, match: Match, why: str, *, sure: bool) -> None:
        return None

    async def announce(self, *_: Any) -> bool:
        return True


@ray.remote
class BenchKeeper:
    async def __init__(self, url: str, folder: str) -> None:
        setup_logging("bench-keeper", Path(folder))
        store = Store(url)
        commits = GroupCommit(store, "lobbies/0", await take_epoch(store, "lobbies/0"), lambda _: os._exit(1))
        nothing: Any = None
        self._core = Core(0, LobbySettings(), store, commits, InstantServers(store, nothing, nothing))
        await self._core.load(lambda _: 0)
        gc.freeze()  # as the real keeper does
        gc.set_threshold(100_000, 20, 50)

    async def commands(self, commands: list[Command]) -> list[Answer]:
        return await self._core.commands(commands)

    async def poll(self, poll: Poll) -> Polled:
        return await self._core.poll(poll)

    async def counts(self) -> dict[str, float]:
        commits, books = self._core.commits, self._core.books
        playing = sum(lobby.status == "in_game" for lobby in books.lobbies.values())
        return {
            "batches": commits.batches,
            "cpu_s": time.process_time(),
            "matches": len(books.matches),
            "playing": playing,
        }


class Replica:
    def __init__(self, store: Store, handle: Any, project_id: str) -> None:
        client = KeeperClient(store, 1)
        client._handles[0] = handle  # pyright: ignore[reportPrivateUsage]
        self.handle = handle
        self.lobbies = Lobbies(store, client)
        self.watch = Watch(client.command, client.poll, client.shard_of)
        self.where = (project_id, "bench")

    async def do(self, method: str, player: str, *arguments: Any, **named: Any) -> Any:
        return await getattr(self.lobbies, method)(*self.where, player, *arguments, **named)


async def many(count: int, at_once: int, work: Callable[[int], Awaitable[Any]]) -> float:
    """Do it for each number, so many at once; the seconds it took."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await work(number)

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    return time.perf_counter() - began


async def operations(replica: Replica, lobbies: int, at_once: int) -> dict[str, Any]:
    async def life(number: int) -> None:
        ann, bob = f"a{number}", f"b{number}"
        made = await replica.do("create", ann, NewLobby("bench", settings={"map": "dust", "rounds": 5}))
        await replica.do("join", bob, lobby_id=made.id)
        await replica.do("set_state", bob, {"ready": True, "mmr": 1500})
        await replica.do("change", ann, LobbyChange(settings={"rounds": 7}))
        await replica.do("leave", bob)
        await replica.do("leave", ann)

    before = await replica.handle.counts.remote()
    seconds = await many(lobbies, at_once, life)
    after = await replica.handle.counts.remote()
    done = lobbies * 6
    return {
        "per_s": round(done / seconds),
        "mean_ms": round(seconds / done * at_once * 1000, 2),
        "per_commit": round(done / (after["batches"] - before["batches"]), 1),
        "keeper_us": round((after["cpu_s"] - before["cpu_s"]) / done * 1e6),
    }


async def tickets(replica: Replica, lobbies: int, at_once: int) -> dict[str, Any]:
    players = [f"t{number}" for number in range(lobbies)]
    await many(lobbies, at_once, lambda n: replica.do("create", players[n], NewLobby("bench")))
    before = await replica.handle.counts.remote()
    began = time.perf_counter()
    await many(lobbies, at_once, lambda n: replica.do("start_matchmaking", players[n], "duel"))
    while (after := await replica.handle.counts.remote())["playing"] < lobbies:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    seconds = time.perf_counter() - began
    assert after["matches"] - before["matches"] == lobbies // 2
    return {
        "per_s": round(lobbies / seconds),
        "mean_ms": round(seconds / lobbies * at_once * 1000, 2),
        "per_commit": round(lobbies / (after["batches"] - before["batches"]), 1),
        "keeper_us": round((after["cpu_s"] - before["cpu_s"]) / lobbies * 1e6),
    }


async def completing(replica: Replica, waiting: int, pairs: int) -> dict[str, Any]:
    """Beside others whose maps differ, so that they wait."""

    async def wait(number: int) -> None:
        await replica.do("create", f"w{number}", NewLobby("bench", state={"map": f"m{number}"}))
        await replica.do("start_matchmaking", f"w{number}", "pinned")

    await many(waiting, 200, wait)
    took: list[float] = []

    async def pair(number: int) -> None:
        ann, bob = f"x{number}", f"y{number}"
        for name in (ann, bob):
            await replica.do("create", name, NewLobby("bench", state={"map": f"pair{number}"}))
        await replica.do("start_matchmaking", ann, "pinned")
        async with aclosing(replica.watch.follow(*replica.where, ann)) as events:
            await anext(events)
            await asyncio.sleep(0.1)  # the stream is known to the keeper
            began = time.perf_counter()
            calling = asyncio.create_task(replica.do("start_matchmaking", bob, "pinned"))
            async for event in events:
                if event.lobby is not None and event.lobby.match_id is not None:
                    took.append(time.perf_counter() - began)
                    break
            await calling

    await many(pairs, 10, pair)
    took.sort()
    return {
        "p50_ms": round(took[len(took) // 2] * 1000, 1),
        "p95_ms": round(took[int(len(took) * 0.95)] * 1000, 1),
        "p99_ms": round(took[int(len(took) * 0.99)] * 1000, 1),
        "waiting": waiting,
    }


async def run(folder: Path, lobbies: int, at_once: int, waiting: int) -> dict[str, dict[str, Any]]:
    url = f"sqlite+aiosqlite:///{folder / 'fleet.db'}"
    await asyncio.to_thread(migrate.upgrade, url)
    store = Store(url)
    project = await create_project(store, "bench")
    async with store.write() as session:
        row = await session.get_one(Project, project.project_id)
        row.settings = {"lobby_configs": [CONFIG]}
    handle = BenchKeeper.options(max_concurrency=10_000).remote(url, str(folder))  # pyright: ignore
    replica = Replica(store, handle, project.project_id)
    try:
        cases = {
            "operations, 1 at once": lambda: operations(replica, max(20, lobbies // 40), 1),
            f"operations, {at_once} at once": lambda: operations(replica, lobbies // 2, at_once),
            f"tickets, {at_once} at once": lambda: tickets(replica, lobbies, at_once),
            "completing ticket": lambda: completing(replica, waiting, 200),
        }
        figures: dict[str, dict[str, Any]] = {}
        for name, case in cases.items():
            async with asyncio.timeout(300):
                figures[name] = await case()
            print(name, figures[name], flush=True)
        return figures
    finally:
        await replica.watch.close()
        await store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lobbies", type=int, default=4000)
    parser.add_argument("--at-once", type=int, default=256)
    parser.add_argument("--waiting", type=int, default=2000)
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk to measure")
    arguments = parser.parse_args()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=arguments.folder) as folder:
        setup_logging("bench", Path(folder))
        figures = asyncio.run(run(Path(folder), arguments.lobbies, arguments.at_once, arguments.waiting))
        ray.shutdown()
    names = sorted({name for row in figures.values() for name in row})
    table = Table("lobbies", *names)
    for name, row in figures.items():
        table.add_row(name, *(str(row.get(key, "")) for key in names))
    Console(width=140).print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
