"""Whatever fails, hangs or is killed: after the last fault every deadline acts and every match ends or runs.

Virtual time, faults by seed at every read, commit and call of a region, keepers killed at any moment. The bounds are
those of docs/timeouts.md.
"""

import asyncio
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from fleet.errors import Fenced, FleetError
from fleet.lobbies.calls import Answer, Command
from fleet.lobbies.match import OVER
from fleet.lobbies.model import NewLobby
from fleet.lobbies.rows import lobby_values, match_values
from fleet.times import now_ms
from tests.unit.lobby_faults import BEGIN_S, LOBBIES, MATCHES, PROJECT, Faults, Home, VirtualLoop, in_virtual_time

SILENCE_S = 120
QUEUE_S = 60
MODES = {
    "duel": {"teams": 2, "playersPerTeam": 1, "timeout": QUEUE_S},
    "asked": {
        "teams": 2, "playersPerTeam": 1, "timeout": QUEUE_S, "matchConfirmation": {"enabled": True, "timeout": 10},
    },
    "rare": {"teams": 2, "playersPerTeam": 4, "timeout": QUEUE_S},
    "open": {
        "teams": 2, "playersPerTeam": 2, "minPlayersPerTeam": 1, "partialAfter": 0, "allowBackfill": True,
        "timeout": QUEUE_S,
    },
}  # fmt: skip
CONFIG: dict[str, Any] = {"name": "c", "maxPlayers": 3, "timeout": SILENCE_S, "matchmaking": {"modes": MODES}}
PLAYERS = [f"p{number}" for number in range(14)]
FAULTS_S = 240.0
DEADLINE_S = 40.0  # a deadline acts within this after the last fault, or after it falls due
MATCH_S = 240.0  # a match is started, or its server stopped, within this


class Players:
    """They press every button, until they all fall silent with the last fault."""

    def __init__(self, home: Home, loop: VirtualLoop) -> None:
        self.home = home
        self.loop = loop
        self.chance = home.faults.chance
        self.made = 0

    async def play(self) -> None:
        await asyncio.gather(*(self._one(player) for player in PLAYERS), self._games())

    async def _one(self, player: str) -> None:
        while self.loop.now < FAULTS_S:
            await asyncio.sleep(self.chance.uniform(0.2, 10))
            method, *arguments = self._press(player)
            try:
                async with asyncio.timeout(30):
                    await self.do(method, player, *arguments)
            except (TimeoutError, Fenced):  # a keeper that was killed, or ends since another has come
                continue

    def _press(self, player: str) -> list[Any]:
        """Mostly what makes sense."""
        self.made += 1
        books = self.home.core.books if self.home.core else None
        mine = books.of_player(PROJECT, "c", player) if books else None
        lobbies = sorted(books.lobbies) if books else []
        create = ["create", NewLobby("x", 3), f"l{self.made}"]
        join = ["join", self.chance.choice(lobbies), None, None] if lobbies else create
        queue = ["start_matchmaking", self.chance.choice(list(MODES))]
        sensible: dict[str | None, list[Any]] = {
            None: [create, create, join],
            "waiting": [queue, queue, queue, ["start", f"own{self.made}"], ["leave"]],
            "match_found": [["confirm"], ["confirm"], ["confirm"], ["decline"]],
            "in_game": [["mine"], ["mine"], ["mine"], ["end_match", None], ["leave"]],
            "in_queue": [["mine"], ["mine"], ["cancel_matchmaking"], ["leave"]],
        }
        anything = [create, join, queue, ["leave"], ["end_match", None], ["decline"], ["cancel_matchmaking"]]
        if self.chance.random() < 0.1:
            return self.chance.choice(anything)
        return self.chance.choice(sensible.get(mine.status if mine else None, [["mine"]]))

    async def do(self, method: str, player: str, *arguments: Any) -> Answer:
        core = self.home.core
        if core is None:
            return None
        (answer,) = await core.commands([Command(method, PROJECT, "c", player, arguments)])
        assert not isinstance(answer, FleetError) or answer.status in (400, 404, 409, 403, 503), answer
        return answer

    async def _games(self) -> None:
        """Servers end by themselves, some of them long after the last fault."""
        while True:
            await asyncio.sleep(self.chance.uniform(1, 20))
            running = [name for name, one in self.home.database.servers.items() if one.status == "running"]
            if running:
                self.home.cloud.becomes(self.chance.choice(sorted(running)), "stopped")


async def kills(home: Home, loop: VirtualLoop, count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(home.faults.chance.uniform(5, FAULTS_S / count))
        await home.kill()
        await home.begin()


def late(home: Home, seconds: float) -> list[str]:
    """Deadlines that have been due for so long."""
    assert home.core is not None
    books, now = home.core.books, now_ms()
    queued = [
        f"{one.id} queues" for one in books.lobbies.values() if one.queued and one.status == "in_queue"
        and one.queued.until + seconds * 1000 < now
    ]  # fmt: skip
    asked = [
        f"{one.id} is not confirmed" for one in books.matches.values() if one.status == "found"
        and (one.confirm_until or 0) + seconds * 1000 < now
    ]  # fmt: skip
    ended = [
        f"{one.id} has a server that stopped" for one in books.matches.values() if one.status == "active"
        and (server := home.database.servers.get(one.server_id or "")) is not None
        and server.status == "stopped" and server.updated_at + (MATCH_S * 1000) < now
    ]  # fmt: skip
    return queued + asked + ended


def unsettled(home: Home) -> list[str]:
    """What should be over by now: with the bound for matches past, and everybody silent for longer than allowed."""
    assert home.core is not None
    books, servers = home.core.books, home.database.servers
    found = [f"match {one.id} is {one.status}" for one in books.matches.values() if one.status != "active"]
    for one in books.matches.values():
        server = servers.get(one.server_id or "")
        if one.status == "active" and (server is None or server.status != "running"):
            found.append(f"match {one.id} plays on {server and server.status}")
    mine = {one.server_id for one in books.matches.values()}
    alive = [name for name, one in servers.items() if one.status != "stopped"]
    found += [f"server {name} is nobody's" for name in alive if name not in mine]
    found += [f"{one.id} is {one.status}" for one in books.lobbies.values() if one.status != "in_game"]
    stored = home.database.rows
    if stored[LOBBIES] != {one.id: lobby_values(one, 0) for one in books.lobbies.values()}:
        found.append("lobbies on disk differ")
    under_way = {name: row for name, row in stored[MATCHES].items() if row["status"] not in OVER}
    if under_way != {one.id: match_values(one, 0) for one in books.matches.values()}:
        found.append("matches on disk differ")
    return found


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.02, 0.05, 0.15]), restarts=st.sampled_from([0, 1, 4]))
@example(seed=1, share=0.15, restarts=0)
@example(seed=2, share=0.05, restarts=4)
def test_after_the_last_fault_everything_ends_within_its_bound(seed: int, share: float, restarts: int) -> None:
    async def life(loop: VirtualLoop) -> None:
        home = Home(Faults(loop, seed, FAULTS_S, share), CONFIG)
        await home.begin()
        players = Players(home, loop)
        async with asyncio.TaskGroup() as group:
            playing = group.create_task(players.play())
            if restarts:
                group.create_task(kills(home, loop, restarts))
            await asyncio.sleep(max(0.0, FAULTS_S + DEADLINE_S - loop.now))
            while home.core is None:  # noqa: ASYNC110
                await asyncio.sleep(1)
            for _ in range(int(MATCH_S + SILENCE_S + DEADLINE_S)):
                assert not late(home, DEADLINE_S), (loop.now, late(home, DEADLINE_S))
                await asyncio.sleep(1)
            playing.cancel()  # no game ends from now on
            for _ in range(int(MATCH_S + SILENCE_S + DEADLINE_S)):
                await asyncio.sleep(1)
            assert not unsettled(home), (loop.now, unsettled(home))
        await home.kill()

    in_virtual_time(life)


def test_virtual_time_passes_at_once() -> None:
    async def sleeps(loop: VirtualLoop) -> None:
        before = now_ms()
        await asyncio.sleep(3600)
        assert now_ms() - before == 3_600_000
        assert loop.now + BEGIN_S == now_ms() / 1000

    in_virtual_time(sleeps)
