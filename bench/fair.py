"""Two tenants of one fleet: what one at 20 times its limits costs the other: `python -m bench.fair [--quick]`.

The quiet one starts, claims, changes a lobby and makes matches, at a steady pace within its limits: alone, and then
together with a neighbour that asks for 20 times what its plan allows, of everything at once: reads, starts, claims,
lobby calls, streams of logs and events, waits, uploads, builds, a pool that boots, webhooks to a receiver that is slow.
Rounds take turns. Goal: p99 together at most 1.5 times p99 alone.

The neighbour's limits are small (`PLAN`), so that 20 times them is not more than one machine can send while it also
runs the fleet: what is measured is the fleet's fairness, not how the machine's processors are shared.
"""

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web
from rich.console import Console
from rich.table import Table
from sqlalchemy import update
from sqlmodel import col

from bench.own_fleet import OwnFleet, own_fleet
from fleet.projects.model import NewProject
from fleet.projects.service import create_project
from fleet.settings import FleetSettings
from fleet.store.engine import Store
from fleet.store.tables import Project

ROOT = Path(__file__).parent.parent
TIMES = 20
REGION = "eu-west"
PLAN: dict[str, Any] = {
    "max_servers": 10,
    "reads_per_s": 20,
    "writes_per_s": 5,
    "lobby_reads_per_s": 10,
    "lobby_writes_per_s": 10,
    "shares": {
        "log_streams": 20, "log_streams_per_key": 20, "log_reads": 4, "event_streams": 10, "event_streams_per_key": 10,
        "waits": 20, "uploads": 2, "builds": 5,
    },
}  # fmt: skip
SHARES: dict[str, int] = PLAN["shares"]
OPS = ("start", "claim", "lobby call", "match")
GOAL = 1.5
CALL_S = 20.0
OPEN = 300
AGAIN_S = 5.0  # between two tries of one that wants a stream, a wait, an upload
SLOW_S = 5.0  # the neighbour's receiver of webhooks


class Client:
    """Calls with one key. `seen`: how they were answered."""

    def __init__(self, http: aiohttp.ClientSession, url: str, key: str) -> None:
        self._http, self._url, self._key = http, url, key
        self.seen = Counter[str]()

    async def call(self, method: str, path: str, body: Any = None, player: str | None = None) -> tuple[int, Any]:
        """Status and JSON; status 0 if there is no answer within `CALL_S`."""
        headers = {"api-key": self._key} | ({"x-player-id": player} if player else {})
        try:
            async with self._http.request(method, f"{self._url}/api/v3{path}", json=body, headers=headers) as answer:
                text = await answer.read()
        except (aiohttp.ClientError, TimeoutError):
            self.seen["none"] += 1
            return 0, None
        self.seen[str(answer.status)] += 1
        return answer.status, json.loads(text) if text else None

    async def hold(self, path: str, most_s: float) -> None:
        """A stream that is read until it ends."""
        lasts = aiohttp.ClientTimeout(total=None, sock_connect=CALL_S)
        headers = {"api-key": self._key}
        async with self._http.get(f"{self._url}/api/v3{path}", headers=headers, timeout=lasts) as answer:
            self.seen[str(answer.status)] += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(most_s):
                    await answer.read()


def session() -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=CALL_S))


async def paced(per_s: float, until: float, work: Callable[[int], Awaitable[object]]) -> None:
    """Open loop: begun when it is due, whether or not what came before has been answered; but `OPEN` at once."""
    tasks, number, due = set[asyncio.Task[object]](), 0, time.perf_counter()
    while due < until:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        if len(tasks) < OPEN:
            task = asyncio.ensure_future(work(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        number, due = number + 1, due + 1 / per_s
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=CALL_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


# The quiet one ----------------------------------------------------------------------------------------------------


class Quiet:
    def __init__(self, client: Client) -> None:
        self._client = client
        self.ms: defaultdict[str, list[float]] = defaultdict(list)
        self.failed = Counter[str]()

    async def run(self, seconds: float) -> None:
        until = time.perf_counter() + seconds
        await self._lobby("POST", "", "idle", {"name": "idle", "region": REGION})
        await asyncio.gather(
            paced(1.5, until, self._start),
            paced(1.0, until, self._claim),
            paced(5.0, until, self._change),
            *(self._duels(until, f"d{number}") for number in range(2)),
        )
        await self._lobby("DELETE", "/me", "idle")

    async def _timed(self, what: str, wanted: int, call: Awaitable[tuple[int, Any]]) -> Any:
        began = time.perf_counter()
        status, answer = await call
        if status == wanted:
            self.ms[what].append((time.perf_counter() - began) * 1000)
            return answer
        self.failed[f"{what}: {status}"] += 1
        return None

    async def _start(self, _number: int) -> None:
        body = {"name": "cold", "region": REGION, "compute_size": "small", "startup_args": "-cold"}
        made = await self._timed("start", 201, self._client.call("POST", "/servers/start", body))
        await self._stop(made)

    async def _claim(self, _number: int) -> None:
        body = {"name": "warm", "region": REGION, "compute_size": "small"}
        await self._stop(await self._timed("claim", 200, self._client.call("POST", "/servers/claim", body)))

    async def _stop(self, server: Any) -> None:
        if server:
            await self._client.call("DELETE", f"/servers/{server['instance_id']}")

    async def _change(self, number: int) -> None:
        await self._timed("lobby call", 200, self._lobby("PATCH", "/me", "idle", {"state": {"n": number}}))

    def _lobby(self, method: str, path: str, player: str, body: Any = None) -> Awaitable[tuple[int, Any]]:
        return self._client.call(method, f"/lobbies/duels{path}", body, player)

    async def _duels(self, until: float, name: str) -> None:
        """One match after another of the same two; from the second's call until it is made."""
        players = [f"{name}-ann", f"{name}-bob"]
        while time.perf_counter() < until:
            for player in players:
                await self._lobby("POST", "", player, {"name": name, "region": REGION})
            for player in players:
                await self._lobby("POST", "/me/matchmaking", player, {"mode": "duel"})
            began, end = time.perf_counter(), time.perf_counter() + 20
            while time.perf_counter() < end:
                status, lobby = await self._lobby("GET", "/me", players[1])
                if status == 200 and lobby["status"] not in ("waiting", "in_queue"):
                    self.ms["match"].append((time.perf_counter() - began) * 1000)
                    break
                await asyncio.sleep(0.03)
            else:
                self.failed["match: none"] += 1
            for player in players:
                await self._lobby("DELETE", "/me", player)
            await asyncio.sleep(0.5)


# The neighbour: a process of its own ------------------------------------------------------------------------------


class Noise:
    def __init__(self, client: Client, http: aiohttp.ClientSession, seconds: float) -> None:
        self._client, self._http = client, http
        self._until = time.perf_counter() + seconds
        self._server = "unknown"

    async def run(self) -> dict[str, dict[str, int]]:
        _, made = await self._client.call("POST", "/servers/start", {"name": "n", "region": REGION})
        self._server = (made or {}).get("instance_id", "unknown")
        told: dict[str, dict[str, int]] = {}
        parts: dict[str, Awaitable[None]] = {
            "reads": self._flood("reads", PLAN["reads_per_s"], self._read),
            "starts and claims": self._flood("writes", PLAN["writes_per_s"], self._begin),
            "lobby writes": self._flood("lobby", PLAN["lobby_writes_per_s"], self._lobby),
            "log streams": self._many(SHARES["log_streams"], f"/servers/{self._server}/logs?follow=true"),
            "event streams": self._many(SHARES["event_streams"], "/events"),
            "waits": self._many(SHARES["waits"], f"/servers/{self._server}?wait_for=stopped&timeout=30"),
            "uploads and builds": self._uploads(),
        }
        await asyncio.gather(*parts.values())
        told["answers"] = dict(sorted(self._client.seen.items()))
        return told

    async def _flood(self, _what: str, limit: int, work: Callable[[int], Awaitable[object]]) -> None:
        await paced(limit * TIMES, self._until, work)

    async def _read(self, _number: int) -> None:
        await self._client.call("GET", "/servers?include_launching=true")

    async def _begin(self, number: int) -> None:
        path = "/servers/claim" if number % 2 else "/servers/start"
        await self._client.call("POST", path, {"name": f"n{number}", "region": REGION})

    async def _lobby(self, number: int) -> None:
        player = f"p{number % 40}"
        kinds: list[tuple[str, str, Any]] = [
            ("POST", "", {"name": "n", "region": REGION}),
            ("POST", "/me/matchmaking", {"mode": "duel"}),
            ("PATCH", "/me", {"state": {"n": number}}),
        ]
        method, path, body = kinds[number // 40 % 3]
        await self._client.call(method, f"/lobbies/duels{path}", body, player)

    async def _many(self, limit: int, path: str) -> None:
        """So many at once, each opened again some seconds after it was refused or ended."""

        async def one() -> None:
            while (left := self._until - time.perf_counter()) > 0:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    await self._client.hold(path, left)
                await asyncio.sleep(AGAIN_S)

        await asyncio.gather(*(one() for _ in range(limit * TIMES)))

    async def _uploads(self) -> None:
        async def slow() -> Any:
            while time.perf_counter() < self._until:
                yield bytes(1024)
                await asyncio.sleep(1.0)

        async def one() -> None:
            while time.perf_counter() < self._until:
                status, link = await self._client.call("POST", "/builds/upload-url?name=noise")
                if status == 201:
                    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                        async with self._http.put(link["upload_url"], data=slow()) as answer:
                            self._client.seen[str(answer.status)] += 1
                await asyncio.sleep(AGAIN_S)

        await asyncio.gather(*(one() for _ in range(SHARES["uploads"] * TIMES)))


async def make_noise(url: str, key: str, seconds: float) -> None:
    async with session() as http:
        print(json.dumps(await Noise(Client(http, url, key), http, seconds).run()), flush=True)


# Both ------------------------------------------------------------------------------------------------------------


def settings_of(count: int, build: str) -> dict[str, Any]:
    pool = {"enabled": True, "regions": {REGION: {"small": count}}, "build": build, "policy": {"mode": "fixed"}}
    mode = {"teams": 2, "playersPerTeam": 1, "timeout": 60}
    server = {"serverSize": "small", "gameBuild": build}
    duels = {"name": "duels", "serverSettings": server, "matchmaking": {"modes": {"duel": mode}}}
    return {"pool_config": pool, "lobby_configs": [duels]}


async def neighbour(database: str) -> NewProject:
    store = Store(database)
    made = await create_project(store, "neighbour")
    async with store.write() as db:
        await db.exec(update(Project).where(col(Project.id) == made.project_id).values(plan="noisy"))
    await store.close()
    return made


async def receiver() -> tuple[web.AppRunner, str]:
    async def slow(_request: web.Request) -> web.Response:
        await asyncio.sleep(SLOW_S)
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post("/hook", slow)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}/hook"


async def measure(fleet: OwnFleet, noisy: str, seconds: float, rounds: int) -> tuple[dict[str, Quiet], list[Any]]:
    told: list[Any] = []
    runner, hook = await receiver()
    async with session() as http:
        loud = Client(http, fleet.url, noisy)
        for _ in range(20):
            status, _answer = await loud.call("POST", "/webhooks", {"url": hook})
            await asyncio.sleep(0.3)  # within its limit
            if status not in (201, 409):
                raise RuntimeError(f"webhook: {status}")
        sides = {name: Quiet(Client(http, fleet.url, fleet.key)) for name in ("alone", "together")}
        await Quiet(Client(http, fleet.url, fleet.key)).run(min(5.0, seconds))  # warms up
        for _ in range(rounds):
            await sides["alone"].run(seconds)
            command = [sys.executable, "-m", "bench.fair", "--noise", fleet.url, noisy, str(seconds + 6)]
            noise = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=subprocess.PIPE)
            await asyncio.sleep(5.0)  # until it has opened what it may
            await sides["together"].run(seconds)
            try:
                out, _ = await asyncio.wait_for(noise.communicate(), 45)
                told.append(json.loads(out))
            except TimeoutError:
                noise.kill()
                await noise.wait()
            await asyncio.sleep(5.0)
    await runner.cleanup()
    return sides, told


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def main(options: argparse.Namespace) -> None:
    seconds, rounds = (12.0, 2) if options.quick else (20.0, 3)
    with tempfile.TemporaryDirectory(prefix="fleet-bench-fair-") as folder:
        plans = Path(folder) / "plans.yaml"
        plans.write_text(yaml.safe_dump({"plans": {"pro": {}, "free": {}, "noisy": PLAN}}))
        room = {"memory_mb": 1_000_000, "cores": 512}  # what is not there must not be what they quarrel about
        nodes: dict[str, Any] = {"regions": [REGION], "node": room, "simulated": {"nodes_per_process": 1}}
        usual = {"LIMITS__READS_PER_S": "100", "LIMITS__WRITES_PER_S": "10", "PLANS_CONFIG": str(plans)}
        hooks = {"WEBHOOKS__ALLOW_HTTP": "true", "WEBHOOKS__ALLOWED_NETWORKS": '["127.0.0.0/8"]'}
        with own_fleet(nodes, **usual, **hooks) as fleet:
            fleet.push_demo()
            made = asyncio.run(neighbour(FleetSettings(home=fleet.home).database))
            loud = OwnFleet(fleet.url, made.server_key, fleet.home, fleet.env, fleet.http)
            fleet.http.headers["api-key"] = made.server_key
            loud.push_demo()
            loud.call("POST", "/projects/settings", json=settings_of(8, "default"))
            fleet.http.headers["api-key"] = fleet.key
            fleet.call("POST", "/projects/settings", json=settings_of(8, "default"))
            fleet.until_warm({(REGION, "small"): 8})
            load = os.getloadavg()
            sides, told = asyncio.run(measure(fleet, made.server_key, seconds, rounds))
    table = Table(
        "of the quiet one", "number", "p50 alone", "p50 together", "p99 alone", "p99 together", "ratio", "met"
    )
    results: list[dict[str, Any]] = []
    for what in OPS:
        alone, together = (sides[side].ms[what] for side in ("alone", "together"))
        figures = [percentile(values, share) for share in (0.5, 0.99) for values in (alone, together)]
        ratio = figures[3] / figures[2]
        results.append({"what": what, "number": [len(alone), len(together)], "ms": figures, "ratio": ratio})
        shown = [f"{figure:.1f} ms" for figure in figures]
        table.add_row(what, f"{len(alone)}, {len(together)}", *shown, f"{ratio:.2f}", "yes" if ratio <= GOAL else "NO")
    console = Console(width=140)
    console.print(table)
    console.print(f"{os.cpu_count()} cores; load before {load[0]:.1f}, after {os.getloadavg()[0]:.1f}")
    console.print(
        f"not answered as wanted: alone {dict(sides['alone'].failed)}, together {dict(sides['together'].failed)}"
    )
    print(json.dumps({"results": results, "neighbour": told}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--noise", nargs=3, metavar=("URL", "KEY", "SECONDS"), help="be the neighbour")
    given = parser.parse_args()
    if given.noise:
        asyncio.run(make_noise(given.noise[0], given.noise[1], float(given.noise[2])))
    else:
        main(given)
