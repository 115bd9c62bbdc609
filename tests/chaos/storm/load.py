"""Studios' back ends and players, a steady few of them, as they really call: they try again with the same key.

While the storm looks whether the fleet comes back by itself the gate is shut: nobody sends anything, and what was under
way is broken off, to be sent again with its key when the gate opens.
"""

import asyncio
import itertools
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

import httpx

from tests import games
from tests.chaos.storm.ledger import Ledger, Started
from tests.chaos.storm.world import REGIONS, World

BUILD = "storm-game"
SIZE = "micro"
POOL = 2  # warm servers per region
LOBBY = "storm"
TRY_S = 15.0  # a client's own patience for one try
TTL_S = 60
GIVE_UP_S = 120.0
SETTINGS = {
    "pool_config": {
        "enabled": True,
        "policy": {"mode": "fixed"},
        "regions": {region: {SIZE: {"build": BUILD, "count": POOL}} for region in REGIONS},
    },
    "lobby_configs": [
        {
            "name": LOBBY,
            "maxPlayers": 2,
            "serverSettings": {"serverSize": SIZE, "gameBuild": BUILD},
            "matchmaking": {"modes": {"duel": {"teams": 2, "playersPerTeam": 1, "timeout": 600}}},
        }
    ],
}


class Refused(Exception):
    """An answer that is no use to try again."""


async def _all(*works: Coroutine[Any, Any, Any]) -> list[Any]:
    """Their results once all have ended; then the first error. None goes on behind the back of what comes next."""
    found = await asyncio.gather(*works, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return found


def _seen(attempt: "asyncio.Task[httpx.Response]") -> None:
    """Its failure is nobody's surprise, also when nobody waits for it any more."""
    if not attempt.cancelled():
        attempt.exception()


class Load:
    """`open` and `shut` are the gate. Workers run from `begin` to `end`."""

    def __init__(self, world: World, ledger: Ledger, seed: int) -> None:
        access = world.access
        self._world, self._ledger = world, ledger
        self._rng = random.Random(seed)
        self._http = httpx.AsyncClient(
            base_url=access.url + "/api/v3", headers={"api-key": access.server_key}, timeout=TRY_S, trust_env=False
        )
        self._gate, self._closed = asyncio.Event(), asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []
        self._numbers = itertools.count()
        self.broken: list[str] = []

    # The gate --------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        self._closed.clear()
        self._gate.set()

    def shut(self) -> None:
        self._gate.clear()
        self._closed.set()

    async def send(self, method: str, path: str, key: str | None = None, **said: Any) -> Any:
        """The answer, however often it takes. Refused for answers that more tries do not change."""
        headers = {"idempotency-key": key} if key else {}
        headers |= said.pop("headers", {})
        while True:
            await self._gate.wait()
            answer = await self._once(method, path, headers=headers, **said)
            if answer is not None:
                if answer.status_code < 400:
                    return answer.json()
                self._ledger.refused[f"{method} {answer.status_code}"] += 1
                if answer.status_code not in (409, 425, 429) and answer.status_code < 500:
                    raise Refused(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
                later = ("under way", "Capacity limit reached")  # the second while a node is away
                if answer.status_code == 409 and not any(word in answer.text for word in later):
                    raise Refused(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
            await asyncio.sleep(0.3)

    async def _once(self, method: str, path: str, **said: Any) -> httpx.Response | None:
        attempt = asyncio.ensure_future(self._http.request(method, path, **said))
        attempt.add_done_callback(_seen)
        shut = asyncio.ensure_future(self._closed.wait())
        await asyncio.wait({attempt, shut}, return_when=asyncio.FIRST_COMPLETED)
        shut.cancel()
        if not attempt.done():
            attempt.cancel()
        try:
            return await attempt
        except (httpx.TransportError, asyncio.CancelledError):
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return None

    # Workers ---------------------------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """The build, the pools, the lobby config, and the games that are to outlive everything."""
        self.open()
        await self._push(BUILD)
        await self.send("POST", "/projects/settings", json=SETTINGS)
        for region in REGIONS:
            for number in range(2):
                fields = {"auto_restart": True} if number else {}
                await self._play(await self._start(region, "anchor", **fields))

    def begin(self) -> None:
        jobs: list[Callable[[], Awaitable[None]]] = [
            self._cold,
            self._cold,
            self._cold,
            self._auto,
            self._ttl,
            self._builds,
        ]
        jobs += [partial(self._claims, region) for region in REGIONS]
        jobs += [partial(self._duel, number) for number in range(3)]
        self._workers = [asyncio.ensure_future(self._kept(job)) for job in jobs]

    async def _kept(self, job: Callable[[], Awaitable[None]]) -> None:
        """An answer that no client could make sense of is a fault of the fleet's; the load goes on."""
        while True:
            try:
                await job()
            except Exception as error:
                self.broken.append(repr(error)[:300])
                await asyncio.sleep(1)

    async def end(self) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        await self._http.aclose()

    def _pause(self, low: float, high: float) -> Any:
        return asyncio.sleep(self._rng.uniform(low, high))

    async def _push(self, name: str) -> str:
        link = await self.send("POST", "/builds/upload-url", uuid.uuid4().hex, params={"name": name})
        while True:
            await self._gate.wait()
            with suppress(httpx.TransportError):
                async with httpx.AsyncClient(trust_env=False, timeout=TRY_S) as http:
                    answer = await http.put(link["upload_url"], content=games.demo_zip())
                    if answer.status_code < 400 or answer.status_code == 409:  # it has it already
                        break
                    if answer.status_code < 500:
                        raise Refused(f"PUT of {name}: {answer.status_code} {answer.text[:300]}")
            await asyncio.sleep(0.5)
        end = time.monotonic() + GIVE_UP_S
        while (seen := await self.send("GET", f"/builds/{link['build_id']}"))["status"] not in ("ready", "failed"):
            if time.monotonic() > end:
                break
            await asyncio.sleep(0.5)
        if seen["status"] != "ready":
            raise Refused(f"the build {name} is {seen}")
        self._ledger.acknowledged["build"] += 1
        return link["build_id"]

    async def _start(self, region: str, how: str, *, build: str = BUILD, **fields: Any) -> Started:
        """Acknowledged, and in the ledger. A cold start has an argument, with which no warm server may be given."""
        key = f"{how}-{next(self._numbers)}-{uuid.uuid4().hex[:8]}"
        if how != "claim":
            fields = {"startup_args": "--boot 0", **fields}
        body = {"name": key, "region": region, "compute_size": SIZE, "version_tag": build, **fields}
        server = await self.send("POST", "/servers/start", key, json=body)
        return self._ledger.start(key, server, how, fields.get("ttl"))

    async def _play(self, one: Started) -> bool:
        """Wait until it runs and join it; False if it has ended (the audit says whether that was right)."""
        while True:
            server = await self.send("GET", f"/servers/{one.instance_id}")
            if server["status"] == "stopped":
                return False
            if server["status"] == "running":
                break
            await asyncio.sleep(0.4)
        one.running_at = one.running_at or time.monotonic()
        port = server["network_ports"][0]
        one.host = port["host"]
        name = f"p{next(self._numbers)}"
        with suppress(OSError, TimeoutError):
            said = await asyncio.to_thread(
                games.udp_ask, port["host"], port["external_port"], f"join {name}".encode(), 3.0, 6
            )
            if said.startswith(b"welcome") and name.encode() in said:
                one.player = name
                return True
        return False

    async def _stop(self, one: Started) -> None:
        one.stop = "asked"
        await self.send("DELETE", f"/servers/{one.instance_id}", f"stop-{one.key}")
        one.stop = "acknowledged"
        self._ledger.acknowledged["stop"] += 1

    async def _update(self, one: Started) -> None:
        data = {"n": next(self._numbers)}
        one.maybe.append(data)
        with suppress(Refused):  # it may have ended meanwhile
            await self.send(
                "POST", f"/servers/{one.instance_id}/update", f"up-{one.key}-{data['n']}", json={"custom_data": data}
            )
            one.data, one.maybe = data, []
            self._ledger.acknowledged["update"] += 1

    async def _cold(self) -> None:
        while True:
            one = await self._start(self._rng.choice(REGIONS), "cold")
            if await self._play(one):
                for _ in range(self._rng.randrange(3)):
                    await self._pause(1, 4)
                    await self._update(one)
                await self._pause(2, 8)
            await self._stop(one)
            await self._pause(0.5, 3)

    async def _claims(self, region: str) -> None:
        while True:
            one = await self._start(region, "claim", custom_data={"for": next(self._numbers)})
            if await self._play(one):
                await self._update(one)
                await self._pause(1, 6)
            await self._stop(one)
            await self._pause(0.5, 1)

    async def _auto(self) -> None:
        while True:
            one = await self._start(self._rng.choice(REGIONS), "auto", auto_restart=True)
            await self._play(one)
            await self._pause(20, 60)
            await self._stop(one)

    async def _ttl(self) -> None:
        while True:
            one = await self._start(self._rng.choice(REGIONS), "ttl", ttl=TTL_S)
            await self._play(one)
            await self._pause(20, 40)

    async def _builds(self) -> None:
        while True:
            name = f"storm-{next(self._numbers)}"
            build_id = await self._push(name)
            one = await self._start(self._rng.choice(REGIONS), "cold", build=name)
            await self._play(one)
            await self._stop(one)
            with suppress(Refused):
                await self.send("DELETE", f"/builds/{build_id}", f"delete-{build_id}")
            await self._pause(20, 40)

    async def _duel(self, number: int) -> None:
        """Two players, each with a lobby, who meet in a match, play, end it and leave."""
        while True:
            match = next(self._numbers)
            region = self._rng.choice(REGIONS)
            players = [f"duel{number}-{match}-{side}" for side in "ab"]
            try:
                await _all(*(self._queue(player, region) for player in players))
                views = await _all(*(self._in_game(player) for player in players))
                await self._pause(1, 5)
                if all(views):
                    await self.lobby("POST", "/me/end-match", players[0], json={})
                    self._ledger.acknowledged["match ended"] += 1
            except Refused as refused:
                self._ledger.refused[str(refused)[:80]] += 1
            finally:
                for player in players:
                    self._ledger.lobbies.pop(player, None)
            for player in players:
                with suppress(Refused):
                    await self.lobby("DELETE", "/me", player)
            await self._pause(1, 3)

    async def lobby(self, method: str, path: str, player: str, **said: Any) -> Any:
        headers = {"x-player-id": player}
        key = f"{player}-{uuid.uuid4().hex[:8]}" if method != "GET" else None
        return await self.send(method, f"/lobbies/{LOBBY}{path}", key, headers=headers, **said)

    async def _queue(self, player: str, region: str) -> None:
        body = {"name": player, "maxPlayers": 2, "region": region, "isPrivate": True}
        made = await self.lobby("POST", "", player, json=body)
        self._ledger.acknowledged["lobby"] += 1
        await self.lobby("PATCH", "/me", player, json={"state": {"mark": player}})
        self._ledger.lobbies[player] = {"id": made["id"], "mark": player}
        self._ledger.acknowledged["lobby state"] += 1
        await self.lobby("POST", "/me/matchmaking", player, json={"mode": "duel"})
        self._ledger.acknowledged["ticket"] += 1

    async def _in_game(self, player: str) -> dict[str, Any] | None:
        """The lobby once its match has a running server; None if there was none (it is in a queue again, or late)."""
        end = time.monotonic() + GIVE_UP_S
        while time.monotonic() < end:
            seen = await self.lobby("GET", "/me", player)
            if seen["status"] == "in_game" and (seen["server"] or {}).get("status") == "running":
                return seen
            await asyncio.sleep(0.5)
        return None

    # The proof that all works again ----------------------------------------------------------------------------------

    async def canary(self, region: str) -> None:
        """A start that is played and stopped."""
        while True:
            one = await self._start(region, "canary")
            played = await self._play(one)
            await self._stop(one)
            if played:
                return
