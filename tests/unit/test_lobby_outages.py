"""What the keeper does about single faults and outages, in virtual time: each test states the bound of its recovery."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fleet.errors import FleetError, Unavailable
from fleet.lobbies.calls import Answer, Command
from fleet.lobbies.core import LAG_S
from fleet.lobbies.healer import RETRY_MOST_S
from fleet.lobbies.match import Match
from fleet.lobbies.model import LobbyView, NewLobby
from fleet.lobbies.sweeper import REPAIR_S
from fleet.lobbies.world import ANNOUNCE_S
from tests.unit.lobby_faults import MATCHES, PROJECT, Faults, Home, VirtualLoop, in_virtual_time

SILENCE_S, QUEUE_S, CONFIRM_S = 100, 60, 10
ASKED = {"teams": 2, "playersPerTeam": 1, "matchConfirmation": {"enabled": True, "timeout": CONFIRM_S}}
MODES = {"duel": {"teams": 2, "playersPerTeam": 1, "timeout": QUEUE_S}, "asked": ASKED}
CONFIG: dict[str, Any] = {"name": "c", "maxPlayers": 3, "timeout": SILENCE_S, "matchmaking": {"modes": MODES}}
LOOK_S = 60.0


class House:
    """A keeper without faults but those that a test makes."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.faults = Faults(loop, 0, 0.0, 0.0)
        self.home = Home(self.faults, CONFIG)

    @property
    def core(self):
        assert self.home.core is not None
        return self.home.core

    async def do(self, method: str, player: str, *arguments: Any) -> Answer:
        (answer,) = await self.core.commands([Command(method, PROJECT, "c", player, arguments)])
        return answer

    async def status(self, player: str) -> str | None:
        lobby = self.core.books.of_player(PROJECT, "c", player)
        return lobby.status if lobby else None

    async def queue(self, *players: str, mode: str = "duel") -> None:
        for player in players:
            assert isinstance(await self.do("create", player, NewLobby("x"), f"l-{player}"), LobbyView)
            assert isinstance(await self.do("start_matchmaking", player, mode), LobbyView)

    async def playing(self) -> Match:
        """Two in a match whose server runs."""
        await self.queue("ann", "bob")
        await asyncio.sleep(15)
        (match,) = self.core.books.matches.values()
        assert (match.status, match.server_status) == ("active", "running")
        return match

    async def becomes(self, condition: Callable[[], bool], within_s: float) -> float:
        began = self.loop.now
        while not condition():
            assert self.loop.now - began <= within_s, "it did not happen in time"
            await asyncio.sleep(0.1)
        return self.loop.now - began


def house(work: Callable[[House], Coroutine[Any, Any, None]]) -> None:
    async def live(loop: VirtualLoop) -> None:
        one = House(loop)
        await one.home.begin()
        try:
            await work(one)
        finally:
            await one.home.kill()

    in_virtual_time(live)


# Single faults --------------------------------------------------------------------------------------------------------


def test_a_deadline_acts_although_its_work_fails() -> None:
    """A ticket's time in the queue ends: the read before it fails three times."""

    async def work(one: House) -> None:
        await one.queue("ann")
        await asyncio.sleep(QUEUE_S - 5)
        one.core.projects._read_at.clear()  # pyright: ignore[reportPrivateUsage]
        one.faults.next = [OSError("away for a moment")] * 3
        await asyncio.sleep(5)
        await one.becomes(lambda: one.core.books.lobbies["l-ann"].status == "waiting", 2 * RETRY_MOST_S)

    house(work)


def test_a_deadline_without_a_timer_gets_one() -> None:
    async def work(one: House) -> None:
        await one.queue("ann")
        await one.queue("bob", "cid", mode="asked")
        (match,) = one.core.books.matches
        for name in ("l-ann", match):
            one.core.healer._clear(name)  # pyright: ignore[reportPrivateUsage]
        await asyncio.sleep(CONFIRM_S)
        await one.becomes(lambda: match not in one.core.books.matches, REPAIR_S + 1)
        await asyncio.sleep(QUEUE_S - CONFIRM_S)
        await one.becomes(lambda: one.core.books.lobbies["l-ann"].status == "waiting", REPAIR_S + 1)

    house(work)


def test_a_match_ends_although_following_and_stopping_fail() -> None:
    """Its server stops while the database cannot be read; another's stop fails."""

    async def work(one: House) -> None:
        match = await one.playing()
        assert match.server_id is not None
        one.faults.next = [ConnectionError("server closed the connection")] * 4
        one.home.cloud.becomes(match.server_id, "stopped")
        await one.becomes(lambda: not one.core.books.matches, 15)
        assert one.home.database.rows[MATCHES][match.id]["status"] == "ended"
        assert await one.status("ann") == "waiting"

    house(work)


def test_a_server_whose_end_nobody_told_is_found_to_be_stopped() -> None:
    async def work(one: House) -> None:
        match = await one.playing()
        one.faults.share, one.faults.until_s = 1.0, float("inf")  # news get lost
        one.home.cloud.becomes(match.server_id or "", "stopped")
        one.faults.until_s = 0.0
        await one.becomes(lambda: not one.core.books.matches, LOOK_S + 5)

    house(work)


def test_a_match_without_its_task_gets_one() -> None:
    async def work(one: House) -> None:
        match = await one.playing()
        follow = one.core.stage._tasks["follow", match.id]  # pyright: ignore[reportPrivateUsage]
        follow.cancel()
        await asyncio.sleep(0)
        one.home.cloud.becomes(match.server_id or "", "stopped")
        await one.becomes(lambda: not one.core.books.matches, REPAIR_S + 1)

    house(work)


def test_a_region_that_hangs_keeps_no_other_from_hearing_of_the_queue() -> None:
    heard: list[tuple[str, float]] = []

    async def work(one: House) -> None:
        async def announce(region: str, *_: Any) -> None:
            if region == "us-east":
                await asyncio.Event().wait()
            heard.append((region, one.loop.now))

        one.home.cloud.announce = announce
        sweeper = one.core.sweeper
        sweeper._announced = {(region, PROJECT, "small", "b") for region in ("us-east", "eu-west")}  # pyright: ignore
        await sweeper.announce()
        assert {region for region, _ in heard} == {"eu-west"}
        assert {pool[0] for pool in sweeper._announced} == {"us-east"}, "it is told again"  # pyright: ignore
        assert one.loop.now <= ANNOUNCE_S + 1

    house(work)


def test_two_batches_at_once_share_the_read_of_a_project_and_both_are_served() -> None:
    async def work(one: House) -> None:
        read, count = one.core.projects._read, 0  # pyright: ignore[reportPrivateUsage]

        async def slow(project_id: str) -> None:
            nonlocal count
            count += 1
            await asyncio.sleep(0.01)
            await read(project_id)

        one.core.projects._read = slow  # pyright: ignore[reportPrivateUsage]
        both = await asyncio.gather(*(one.do("create", name, NewLobby("x"), name) for name in ("ann", "bob")))
        assert all(isinstance(answer, LobbyView) for answer in both), both
        assert count == 1
        one.core.projects._read_at.clear()  # pyright: ignore[reportPrivateUsage]
        one.faults.next = [OSError("away")]
        refused = await one.do("set_state", "ann", {"x": 1})
        assert isinstance(refused, Unavailable)
        assert isinstance(await one.do("set_state", "ann", {"x": 1}), LobbyView), "what failed is read again"

    house(work)


# Outages --------------------------------------------------------------------------------------------------------------


def test_while_the_database_is_away_writes_are_refused_and_what_is_on_disk_is_shown() -> None:
    async def work(one: House) -> None:
        await one.queue("ann")
        one.faults.away = True
        waiting = asyncio.ensure_future(one.do("set_state", "ann", {"late": True}))
        await asyncio.sleep(LAG_S + 1)
        began = one.loop.now
        for method, arguments in (("cancel_matchmaking", ()), ("create", (NewLobby("x"), "l")), ("leave", ())):
            answer = await one.do(method, "ann", *arguments)
            assert isinstance(answer, FleetError)
            assert answer.status == 503
        seen = await one.do("mine", "ann")
        assert isinstance(seen, LobbyView)
        assert (seen.status, seen.players[0].state) == ("in_queue", None)
        assert one.loop.now == began, "nobody waits"
        one.faults.away = False
        assert isinstance(await waiting, LobbyView)
        assert isinstance(await one.do("cancel_matchmaking", "ann"), LobbyView)

    house(work)


def test_after_ten_minutes_without_a_database_nobody_is_held_to_them_and_then_deadlines_act() -> None:
    """Silent players have their whole time again, a queue's deadline leaves 20 s, a confirmation all of its time."""

    async def work(one: House) -> None:
        await one.queue("ann")
        await one.queue("bob", "cid", mode="asked")
        one.faults.away = True
        await asyncio.sleep(600)
        one.faults.away = False
        await asyncio.sleep(5)
        assert await one.status("ann") == "in_queue"
        assert await one.status("bob") == "match_found"
        await one.becomes(lambda: not one.core.books.matches, CONFIRM_S + 2)
        await one.becomes(lambda: one.core.books.lobbies["l-ann"].status == "waiting", 20)
        assert len(one.core.books.lobbies) == 3
        await one.becomes(lambda: not one.core.books.lobbies, SILENCE_S)

    house(work)


def test_a_process_that_stood_still_does_not_take_its_players_for_silent() -> None:
    async def work(one: House) -> None:
        await one.do("create", "ann", NewLobby("x"), "l")
        await asyncio.sleep(10)
        one.loop.now += 3600  # SIGSTOP, SIGCONT
        await asyncio.sleep(5)
        assert await one.status("ann") == "waiting"
        await one.becomes(lambda: not one.core.books.lobbies, SILENCE_S + 5)

    house(work)


def test_after_a_restart_everybody_is_given_as_long_as_if_just_seen() -> None:
    async def work(one: House) -> None:
        await one.queue("ann")
        await one.home.kill()
        await asyncio.sleep(3600)
        await one.home.begin()
        assert await one.status("ann") == "in_queue"
        await one.becomes(lambda: one.core.books.lobbies["l-ann"].status == "waiting", 21)
        await one.becomes(lambda: not one.core.books.lobbies, SILENCE_S)

    house(work)
