"""Outages as users have them, one after another on one fleet: run inside the sandbox by tests/chaos/test_outages.py.

Prints as JSON what was seen and how long it took; `tests/chaos/test_outages.py` says what it must be.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from fleet.ops.processes import command_of
from fleet.store.engine import Store
from fleet.store.tables import Server
from tests import games
from tests.chaos.storm import sandbox
from tests.chaos.storm.faults import Faults
from tests.chaos.storm.ledger import Ledger
from tests.chaos.storm.schedule import Fault
from tests.chaos.storm.world import REGIONS, World, build_machines, start_world
from tests.player import Studio, ask

REGION = REGIONS[0]
BUILD = "outage-game"
AGENT, MANAGER = "ray::NodeAgent", "ray::RegionManager"


class Outages:
    def __init__(self, world: World) -> None:
        self._world = world
        access = world.access
        self._access = access
        self._studio = Studio(access.url, access.server_key)
        self._store = Store(world.database_url)
        self._faults = Faults(world, Ledger())
        self._games: dict[str, dict[str, Any]] = {}  # player: server

    async def run(self, names: list[str], target: Path) -> None:
        """What was seen of each, written after each."""
        assert self._studio.push(games.demo_zip(), BUILD)["status"] == "ready"
        for number in range(4):
            server = self._start(REGIONS[number % 2])
            ask(server, f"join player{number}")
            self._games[f"player{number}"] = server
        seen: dict[str, Any] = {}
        for name in names:
            seen[name] = await getattr(self, name)()
            seen[name]["games_untouched"] = self._untouched()
            target.write_text(json.dumps(seen, indent=1))

    def _start(self, region: str, **fields: Any) -> dict[str, Any]:
        return self._studio.start(BUILD, region=region, **fields)

    def _untouched(self) -> bool:
        """Every game still has its player, whom only the very same process knows."""
        return all(player in ask(server, "state") for player, server in self._games.items())

    async def _until(self, holds: Callable[[], Awaitable[bool]], limit_s: float) -> float | None:
        began = time.monotonic()
        while time.monotonic() - began < limit_s:
            if await holds():
                return round(time.monotonic() - began, 1)
            await asyncio.sleep(0.3)
        return None

    async def agents_hang(self) -> dict[str, Any]:
        """Every agent stands still, and nobody lets it go on."""
        hung = self._world.named(AGENT)
        for pid in hung:
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()

        async def works() -> bool:
            return await self._tried(REGION)

        took = await self._until(works, 180)
        games_on = self._untouched()

        async def all_new() -> bool:
            return len(set(self._world.named(AGENT)) - set(hung)) >= len(hung)

        await self._until(all_new, 120)
        replaced = round(time.monotonic() - began, 1)
        return {"starts_again_s": took, "games_on": games_on, "agents_replaced_s": replaced}

    async def _tried(self, region: str) -> bool:
        """One start, played and stopped, within 10 s or not at all; a client with less patience than ours."""
        body = {"name": "tried", "region": region, "compute_size": "micro", "version_tag": BUILD}
        async with self._client(10) as http:
            try:
                answer = await http.post("/servers/start", json=body, params={"wait_for": "running", "timeout": 8})
                if answer.status_code != 201:
                    return False
                name = answer.json()["instance_id"]
                await http.delete(f"/servers/{name}")
                return answer.json()["status"] == "running"
            except httpx.TransportError:
                return False

    def _client(self, timeout_s: float) -> httpx.AsyncClient:
        headers = {"api-key": self._access.server_key}
        base = self._access.url + "/api/v3"
        return httpx.AsyncClient(base_url=base, headers=headers, timeout=timeout_s, trust_env=False)

    async def engine_away(self) -> dict[str, Any]:
        """For a minute there is no engine, and the agents are killed meanwhile."""
        self._world.head.kill_engine()
        for pid in self._world.named(AGENT):
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(30)
        games_on = self._untouched()
        for pid in self._world.named(AGENT):
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(30)
        self._world.head.start_engine()

        async def works() -> bool:
            return await self._tried(REGION)

        took = await self._until(works, 180)
        server = self._start(REGION)
        run = [one for one in self._world.containers() if one["server"] == server["instance_id"]]
        rows = [await self._row(one["instance_id"]) for one in self._games.values()]
        self._studio.stop(server)
        return {
            "games_on": games_on,
            "starts_again_s": took,
            "in_a_container": [one["state"] for one in run] == ["running"],
            "plain_processes": len(self._plain()),
            "rows": sorted({row.status for row in rows}),
        }

    def _plain(self) -> list[str]:
        """Games that run outside of containers."""
        here = os.readlink("/proc/self/ns/pid")
        found: list[str] = []
        for name in os.listdir("/proc"):
            if name.isdigit() and games.EXECUTABLE in command_of(int(name)):
                try:
                    if os.readlink(f"/proc/{name}/ns/pid") == here:
                        found.append(command_of(int(name)))
                except OSError:
                    continue
        return found

    async def _row(self, instance_id: str) -> Server:
        async with self._store.read() as session:
            found = await session.get(Server, instance_id)
        assert found is not None
        return found

    async def database_locked(self) -> dict[str, Any]:
        """For a minute nobody may write, the managers are killed in it, and a ttl falls due. No command is sent."""
        server = self._start(REGION, ttl=60)
        await asyncio.sleep(25)
        _, undo = await self._faults.begin(Fault(0, 0, "database-locked", 0, 60, 0))
        for pid in self._world.named(MANAGER):
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(60)
        assert undo is not None
        await undo()

        async def ended() -> bool:
            return (await self._row(server["instance_id"])).step == "stopped"

        took = await self._until(ended, 180)
        return {"ttl_acts_s": took, "reason": (await self._row(server["instance_id"])).stop_reason}

    async def writes_meanwhile(self) -> dict[str, Any]:
        """While nobody may write: reads are answered, and once that is known writes are refused soon, with a word.

        What came before it was known waits, and is done in the end or refused; so one write of each kind goes ahead.
        """
        made = self._studio.http.post("/api/v3/lobbies/default", json={"name": "q"}, headers={"x-player-id": "q"})
        assert made.status_code == 201, made.text  # so its manager is up: one that comes up answers after 20 s
        _, undo = await self._faults.begin(Fault(0, 0, "database-locked", 0, 30, 0))
        assert undo is not None
        await asyncio.sleep(1)
        seen: dict[str, Any] = {"first": {}, "refusals": {}, "reads": []}
        async with self._client(90) as http:
            first = asyncio.ensure_future(self._writes(http, seen["first"]))
            for _ in range(9):
                began = time.monotonic()
                answer = await http.get("/servers")
                seen["reads"].append([answer.status_code, round(time.monotonic() - began, 2)])
                await asyncio.sleep(1)
            later = asyncio.ensure_future(self._writes(http, seen["refusals"]))
            await asyncio.sleep(20)
            await undo()
            await asyncio.gather(first, later)

        async def works() -> bool:
            return await self._tried(REGION)

        seen["starts_again_s"] = await self._until(works, 120)
        return seen

    async def _writes(self, http: httpx.AsyncClient, answers: dict[str, list[Any]]) -> None:
        """One write of each kind: its status, seconds and word."""
        victim = next(iter(self._games.values()))["instance_id"]

        async def write(name: str, path: str, body: dict[str, Any]) -> None:
            began = time.monotonic()
            try:
                answer = await http.post(path, json=body, headers={"x-player-id": "p"})
                status, said = answer.status_code, str(answer.json().get("detail", ""))
            except httpx.TransportError as error:
                status, said = 0, repr(error)
            answers[name] = [status, round(time.monotonic() - began, 1), said]

        await asyncio.gather(
            write("start", "/servers/start", {"name": "n", "region": REGION, "version_tag": BUILD}),
            write("update", f"/servers/{victim}/update", {"custom_data": {"a": 1}}),
            write("lobby", "/lobbies/default", {"name": "x"}),
        )


def main() -> None:
    if sandbox.INSIDE not in os.environ:
        sys.exit(sandbox.enter("tests.chaos.storm.outages", sys.argv[1:]))
    sandbox.become_first()
    folder = Path(os.environ[sandbox.INSIDE])
    target, *names = sys.argv[1:]
    machines = build_machines(folder, 1)
    world = start_world(folder / "disks" / "fleet", machines, "sqlite", "auto")
    try:
        asyncio.run(Outages(world).run(names, Path(target)))
    finally:
        for path in sorted((folder / "disks" / "fleet" / "head" / "logs").glob("*.log")):
            print(f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-15:], sep="\n")
        world.end()


if __name__ == "__main__":
    main()
