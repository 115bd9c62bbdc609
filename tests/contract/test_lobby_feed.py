"""Live lobbies: every change once and in order, whoever restarts; and what time does to lobbies that nobody tends."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from fleet.errors import NotFound
from fleet.lobbies.calls import Poll, Polled
from fleet.lobbies.healing import Due, Terms, due
from fleet.lobbies.model import Lobby, LobbyEvent, Player, Queued, QueueStats
from fleet.lobbies.presence import Presence
from fleet.lobbies.watch import QUEUE, Place, ShardWatch, parse_event_id
from fleet.store.tables import Project
from fleet.times import now_ms
from tests.unit.api_kit import Api
from tests.unit.club import CONFIG, Club, eventually


@pytest.fixture
async def club(api: Api) -> Club:
    quick = {**CONFIG, "heartbeat": True, "heartbeatTimeout": 1}
    configs = [CONFIG, {**quick, "name": "quick"}]
    await api.app.state.context.projects.change_settings(api.project.project_id, {"lobby_configs": configs})
    return Club(api)


class Reader:
    """A stream, and what it has given."""

    def __init__(self, events: AsyncGenerator[LobbyEvent]) -> None:
        self._events = events

    async def next(self, *kinds: str) -> LobbyEvent:
        async with asyncio.timeout(10):
            while (event := await anext(self._events)).type not in (kinds or (event.type,)):
                pass
            return event

    async def ended(self) -> list[LobbyEvent]:
        async with asyncio.timeout(10):
            return [event async for event in self._events]


@asynccontextmanager
async def stream(club: Club, player: str, last: str | None = None) -> AsyncGenerator[Reader]:
    async with aclosing(club.follow(player, last)) as events:
        yield Reader(events)


async def test_each_change_is_told_once_and_in_order(club: Club) -> None:
    made = await club.lobby("ann")
    async with stream(club, "ann") as reader:
        first = await reader.next()
        assert (first.type, first.lobby, first.id) == ("connected", made, f"{made.id}:1")
        for number in range(20):
            await club.do("set_state", "ann", {"n": number})
        seen = [await reader.next() for _ in range(20)]
        assert [(e.lobby.version, e.lobby.players[0].state) for e in seen if e.lobby] == [
            (number + 2, {"n": number}) for number in range(20)
        ]
        await club.do("leave", "ann")
        assert [(e.type, e.lobby_id) for e in await reader.ended()] == [("lobby_deleted", made.id)]
    with pytest.raises(NotFound):
        await anext(club.follow("ann"))


async def test_a_reader_that_comes_again_misses_nothing(club: Club) -> None:
    await club.lobby("ann")
    async with stream(club, "ann") as reader:
        await reader.next()
        await club.do("set_state", "ann", {"n": 1})
        last = (await reader.next()).id
    for number in (2, 3):
        await club.do("set_state", "ann", {"n": number})
    async with stream(club, "ann", last) as reader:
        seen = [await reader.next() for _ in range(3)]
    assert [event.type for event in seen] == ["connected", "lobby_updated", "lobby_updated"]
    assert [e.lobby.players[0].state for e in seen if e.lobby] == [{"n": 1}, {"n": 2}, {"n": 3}]
    for number in range(50):  # more than is kept: then the lobby as it is
        await club.do("set_state", "ann", {"n": number})
    async with stream(club, "ann", last) as reader:
        event = await reader.next()
        assert event.lobby is not None
        assert event.lobby.players[0].state == {"n": 49}
    for unknown in ("nonsense", "other:3", "x" * 300, "a:99999999999999999999"):
        async with stream(club, "ann", unknown) as reader:
            assert (await reader.next()).type == "connected"


async def test_a_kicked_players_stream_ends_and_the_others_go_on(club: Club) -> None:
    await club.lobby("ann", "bob")
    async with stream(club, "bob") as kicked, stream(club, "ann") as host:
        await kicked.next()
        await host.next()
        await club.do("kick", "ann", "bob")
        assert await kicked.ended() == []
        event = await host.next("lobby_updated")
        assert event.lobby is not None
        assert not event.lobby.has("bob")


async def test_a_new_keeper_is_followed_without_a_gap(club: Club) -> None:
    await club.lobby("ann")
    async with stream(club, "ann") as reader:
        await reader.next()
        await club.do("set_state", "ann", {"n": 1})
        await club.api.keepers.restart()
        await club.do("set_state", "ann", {"n": 2})
        seen = [await reader.next()]
        while seen[-1].lobby is not None and seen[-1].lobby.version < 3:
            seen.append(await reader.next())
        assert seen[-1].lobby is not None
        assert seen[-1].lobby.players[0].state == {"n": 2}
        versions = [event.lobby.version for event in seen if event.lobby]
        assert versions == sorted(set(versions))


async def test_who_waits_hears_of_the_queue(club: Club) -> None:
    await club.lobby("ann")
    async with stream(club, "ann") as reader:
        await club.queue("ann")
        event = await reader.next("queue_stats")
        assert event.stats is not None
        assert (event.stats.players_searching, event.stats.lobbies_in_queue) == (1, 1)


async def test_a_storm_of_streams_comes_back_whole(club: Club) -> None:
    """Two hundred streams of a hundred lobbies drop at once and resume; each sees every change once."""
    names = [f"p{n}" for n in range(100)]
    made = await asyncio.gather(*(club.lobby(name) for name in names))
    await asyncio.gather(*(club.do("join", f"{v.host}-x", lobby_id=v.id) for v in made))

    async def watch(player: str, last: str | None, until: int) -> tuple[list[int], str | None]:
        versions: list[int] = []
        async with asyncio.timeout(30), aclosing(club.follow(player, last)) as events:
            async for event in events:
                if event.lobby is not None:
                    versions.append(event.lobby.version)
                    last = event.id
                    if event.lobby.version >= until:
                        return versions, last
        raise AssertionError(f"{player}'s stream ended")

    everybody = [*names, *(f"{name}-x" for name in names)]
    watching = [asyncio.create_task(watch(player, None, 3)) for player in everybody]
    await asyncio.gather(*(club.do("set_state", name, {"a": 1}) for name in names))
    lasts = [last for _, last in await asyncio.gather(*watching)]
    await asyncio.gather(*(club.do("set_state", name, {"a": 2}) for name in names))
    again = await asyncio.gather(*(watch(p, last, 4) for p, last in zip(everybody, lasts, strict=True)))
    assert {tuple(versions) for versions, _ in again} == {(3, 4)}


async def test_two_questions_answered_in_one_turn_are_followed_by_another() -> None:
    asked: list[tuple[Poll, asyncio.Future[Polled]]] = []

    async def ask(poll: Poll) -> Polled:
        asked.append((poll, asyncio.get_running_loop().create_future()))
        return await asked[-1][1]

    async def until(count: int) -> None:
        await eventually(lambda: asyncio.sleep(0, len(asked) >= count))

    watch = ShardWatch(ask)
    watch.join(Place("l", "ann", 1))
    await until(1)
    watch.join(Place("m", "bob", 1))
    await until(2)
    for _, answer in asked[:2]:
        answer.set_result(Polled(known=True))
    await until(3)
    await watch.close()


async def test_a_slow_reader_is_let_go_and_holds_nobody_up() -> None:
    place = Place("l", "ann", 1)
    for _ in range(QUEUE + 1):
        place.offer(_stats())
    assert place.full
    assert await place.take() is None


def _stats() -> Any:
    return QueueStats()


# What time does -----------------------------------------------------------------------------------------------------


async def test_silent_players_go_and_at_last_their_lobby(club: Club) -> None:
    quick = Club(club.api, "quick")
    made = await quick.lobby("ann", "bob")
    async with stream(quick, "bob"):
        host = await quick.sees("bob", "waiting")
        assert host.host == "ann"
        await eventually(lambda: _is_alone(quick, "bob"))  # ann said nothing; bob's stream is his sign of life
    await eventually(lambda: _is_gone(quick, made.id))
    (gone,) = await eventually(lambda: quick.told("deleted"))
    assert (gone.data or {})["why"] == "the last player gave no sign of life"
    assert {(event.data or {})["player"] for event in await quick.told("player_removed")} == {"ann"}


async def _is_alone(club: Club, player: str) -> bool:
    view = await club.do("mine", player)
    return view.current_players == 1 and view.host == player


async def _is_present(club: Club, lobby_id: str, player: str) -> bool:
    return (await club.api.keepers.core()).presence.has_stream(lobby_id, player)


async def _is_away(club: Club, lobby_id: str, player: str) -> bool:
    return not await _is_present(club, lobby_id, player)


async def _is_gone(club: Club, lobby_id: str) -> bool:
    core = await club.api.keepers.core()
    return lobby_id not in core.books.lobbies


async def test_a_host_whose_connection_breaks_hands_over_to_who_is_there(club: Club) -> None:
    made = await club.lobby("ann", "bob", "cat")
    async with stream(club, "cat") as reader:
        await reader.next()
        async with stream(club, "ann") as host:
            await host.next()
            await eventually(lambda: _is_present(club, made.id, "ann"))
        event = await reader.next("lobby_updated")
        assert event.lobby is not None
        assert (event.lobby.host, event.lobby.current_players) == ("cat", 3)
    (told,) = await club.told("host_changed")
    assert (told.data or {})["why"] == "the host's connection broke"


async def test_a_host_who_is_back_in_time_keeps_the_role(club: Club) -> None:
    made = await club.lobby("ann", "bob")
    async with stream(club, "bob") as reader:
        await reader.next()
        async with stream(club, "ann") as host:
            await host.next()
            await eventually(lambda: _is_present(club, made.id, "ann"))
        await eventually(lambda: _is_away(club, made.id, "ann"))
        await club.do("heartbeat", "ann")
        await asyncio.sleep(0.6)  # twice the grace
        assert (await club.do("mine", "bob")).host == "ann"


async def test_when_all_players_are_gone_the_server_is_stopped(club: Club) -> None:
    quick = Club(club.api, "quick")
    await quick.lobby("ann")
    async with stream(quick, "ann"):  # a sign of life, however long the start takes
        await quick.do("start", "ann")
        await eventually(lambda: _has_servers(quick))
    (server,) = await quick.servers()
    await eventually(lambda: _stopped(quick))
    assert (await quick.servers())[0].instance_id == server.instance_id
    assert "gave no sign of life" in ((await quick.told("match_ended"))[0].data or {})["why"]


async def _has_servers(club: Club) -> bool:
    return bool(await club.servers())


async def _stopped(club: Club) -> bool:
    return all(server.status == "stopped" for server in await club.servers())


def lobby(**values: Any) -> Lobby:
    base: dict[str, Any] = {
        "id": "l",
        "project_id": "p",
        "config": "c",
        "code": "MEOW-42",
        "name": "x",
        "status": "waiting",
        "region": "us-east",
        "host": "ann",
        "is_private": False,
        "allow_late_join": True,
        "max_players": 4,
        "players": (Player("ann", None, 1000), Player("bob", None, 1000)),
        "settings": {},
        "created_at": 1000,
        "updated_at": 1000,
    }
    return Lobby(**{**base, **values})


TERMS = Terms(silence_ms=10_000, everywhere=False, host_grace_ms=2_000)


def test_what_is_due_when() -> None:
    signs = Presence(0)
    assert due(lobby(), signs, TERMS, 5_000) == Due(next_at=11_000)
    assert due(lobby(), signs, TERMS, 11_000).silent == ("ann", "bob")
    signs.opened("l", "bob")
    signs.sign("l", "ann", 9_000)
    assert due(lobby(), signs, TERMS, 11_000) == Due(next_at=19_000)
    assert due(lobby(), signs, TERMS, 19_000) == Due(silent=("ann",))
    playing = lobby(status="in_game")
    assert due(playing, signs, TERMS, 99_000) == Due()
    assert due(playing, signs, Terms(10_000, True, 2_000), 99_000).silent == ("ann",)
    queued = lobby(status="in_queue", queued=Queued("m", 1_000, 15_000))
    assert due(queued, signs, TERMS, 12_000).next_at == 15_000
    assert due(queued, signs, TERMS, 15_000).gave_up
    signs.opened("l", "ann")
    assert signs.closed("l", "ann", 20_000)
    assert due(lobby(), signs, TERMS, 21_000) == Due(next_at=22_000)
    assert due(lobby(), signs, TERMS, 22_000).host == "bob"
    signs.closed("l", "bob", 22_000)
    assert due(lobby(), signs, TERMS, 22_500).host is None  # nobody is there to take over


def test_event_ids() -> None:
    assert parse_event_id("a-b:12") == ("a-b", 12)
    assert parse_event_id("a-b:x") is None
    assert parse_event_id(None) is None


async def test_a_lobby_of_a_project_that_is_deleted_goes(club: Club) -> None:
    made = await club.lobby("ann")
    async with club.api.store.write() as session:
        project = await session.get_one(Project, club.project)
        project.deleted_at = project.updated_at = now_ms()
    core = await club.api.keepers.core()
    await eventually(lambda: _tidied(club, made.id))
    assert made.id not in core.books.lobbies


async def _tidied(club: Club, lobby_id: str) -> bool:
    core = await club.api.keepers.core()
    await core.sweeper.tidy()
    return lobby_id not in core.books.lobbies
