"""All lobby operations in any order, against a model: what must hold between lobbies holds after every step."""

from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fleet.errors import FleetError
from fleet.lobbies.books import Books
from fleet.lobbies.config import LobbyConfig
from fleet.lobbies.desk import Caller, Desk
from fleet.lobbies.games import Games
from fleet.lobbies.healing import Terms, due
from fleet.lobbies.matches import Matches, MatchTerms
from fleet.lobbies.model import STATUSES, Lobby, LobbyChange, NewLobby, Standing
from fleet.lobbies.presence import Presence
from fleet.lobbies.queues import Queues
from fleet.lobbies.ratings import RatingBook
from fleet.lobbies.rows import lobby_of, lobby_values, match_of, match_values
from fleet.store.lobby_tables import Lobby as LobbyRow
from fleet.store.lobby_tables import Match as MatchRow

MODES = {
    "duel": {"teams": 2, "playersPerTeam": 1},
    "pairs": {
        "teams": 2,
        "playersPerTeam": 2,
        "minPlayersPerTeam": 1,
        "partialAfter": 0,
        "allowBackfill": True,
        "timeout": 60,
    },
    "asked": {"teams": 2, "playersPerTeam": 1, "matchConfirmation": {"enabled": True, "timeout": 10}},
}
CONFIGS = {
    "a": LobbyConfig.model_validate({"name": "a", "maxPlayers": 3, "matchmaking": {"modes": MODES}}),
    "b": LobbyConfig.model_validate(
        {"name": "b", "heartbeat": True, "onLeave": "backfill", "matchmaking": {"modes": MODES}}
    ),
}
PLAYERS = [f"p{n}" for n in range(5)]
PROJECT = "project"
TERMS = Terms(silence_ms=60_000, everywhere=False, host_grace_ms=5_000)

EVENTS = ["launching", "launching", "running", "stopped", "full", "broken", "settled"]

players = st.sampled_from(PLAYERS)
configs = st.sampled_from(sorted(CONFIGS))


def any_in(*statuses: str) -> Any:
    return precondition(lambda self: any(lobby.status in statuses for lobby in self.books.lobbies.values()))


class LobbyMachine(RuleBasedStateMachine):
    """The model is who is in which lobby, by what was answered; the rest is asked of the books."""

    @initialize(luck=st.integers(0, 2**32))
    def begin(self, luck: int) -> None:
        self.now = 1_000_000
        self.luck = luck
        self.count = 0
        self.books = Books(0)
        self.queues = Queues()
        ratings = RatingBook()
        self.matches = Matches(
            self.books, self.queues, ratings, lambda _, name: CONFIGS[name], self.new_id, MatchTerms()
        )
        self.games = Games(self.books, self.matches, self.queues, ratings)
        self.desk = Desk(self.books, self.matches, self.games, lambda _, name: CONFIGS[name], self.randbelow)
        self.presence = Presence(self.now)
        self.members: dict[tuple[str, str], str] = {}  # (config, player) -> lobby
        self.versions: dict[str, int] = {}

    def new_id(self, _now: int) -> str:
        self.count += 1
        return f"m{self.count}"

    def randbelow(self, below: int) -> int:
        """Chance that repeats itself often, so that codes collide."""
        self.luck = (self.luck * 1103515245 + 12345) % 2**31
        return (self.luck >> 16) % min(below, 3)

    def do(self, method: str, config: str, player: str, *arguments: Any) -> Lobby | FleetError | None:
        self.now += 1
        caller = Caller(PROJECT, config, player)
        try:
            answer = getattr(self.desk, method)(caller, self.now, *arguments)
        except FleetError as error:
            refusal = error
        else:
            refusal = None
        if refusal is not None:
            assert 400 <= refusal.status < 500, refusal.detail
            return refusal
        self.matches.try_fresh(self.now)
        if answer is not None and method not in ("leave", "delete"):
            self.presence.sign(answer.id, player, self.now)
        return answer

    def mine(self, config: str, player: str) -> Lobby | None:
        return self.books.of_player(PROJECT, config, player)

    # Players --------------------------------------------------------------------------------------------------------

    @rule(config=configs, player=players, size=st.integers(1, 4), late=st.booleans(), fresh=st.booleans())
    def create(self, config: str, player: str, size: int, late: bool, fresh: bool) -> None:
        before = self.mine(config, player)
        self.count += 1
        new = NewLobby("x", size, allow_late_join=late, force_fresh=fresh)
        answer = self.do("create", config, player, new, f"l{self.count}")
        if before is None or (fresh and before.host == player):
            assert isinstance(answer, Lobby)
            assert (answer.status, answer.host, len(answer.players)) == ("waiting", player, 1)
            self.members = {who: lobby for who, lobby in self.members.items() if before is None or lobby != before.id}
            self.members[config, player] = answer.id
        else:
            assert isinstance(answer, FleetError)
            assert (answer.status, answer.error) == (409, "Already in another lobby")

    @rule(config=configs, player=players, data=st.data(), by_code=st.booleans())
    def join(self, config: str, player: str, data: st.DataObject, by_code: bool) -> None:
        here = [lobby for lobby in self.books.lobbies.values() if lobby.config == config]
        if not here:
            return
        lobby = data.draw(st.sampled_from(sorted(here, key=lambda one: one.id)))
        arguments = (None, lobby.code.lower(), None) if by_code else (lobby.id, None, {"x": 1})
        answer = self.do("join", config, player, *arguments)
        open_to = lobby.status == "waiting" or (lobby.status == "in_game" and lobby.allow_late_join)
        if self.members.get((config, player)) is not None:
            assert isinstance(answer, FleetError)
            assert answer.status == 409
        elif not open_to or len(lobby.players) >= lobby.max_players:
            assert isinstance(answer, FleetError)
            assert answer.status == 400
        else:
            assert isinstance(answer, Lobby)
            self.members[config, player] = lobby.id

    @rule(config=configs, player=players)
    def leave(self, config: str, player: str) -> None:
        answer = self.do("leave", config, player)
        if self.members.pop((config, player), None) is None:
            assert isinstance(answer, FleetError)
            assert answer.status == 404
        elif answer is not None:
            assert isinstance(answer, Lobby)
            assert answer.player(player) is None

    @rule(config=configs, player=players, victim=players)
    def kick(self, config: str, player: str, victim: str) -> None:
        lobby = self.mine(config, player)
        answer = self.do("kick", config, player, victim)
        if isinstance(answer, Lobby):
            assert lobby is not None
            assert lobby.host == player != victim
            assert self.members.pop((config, victim)) == lobby.id

    @rule(config=configs, player=players, size=st.integers(1, 4))
    def change(self, config: str, player: str, size: int) -> None:
        self.do("change", config, player, LobbyChange(max_players=size, settings={"size": size}))

    @rule(config=configs, player=players, value=st.integers())
    def set_state(self, config: str, player: str, value: int) -> None:
        answer = self.do("set_state", config, player, {"value": value})
        storable = -(2**63) <= value < 2**64
        assert isinstance(answer, Lobby) == (storable and (config, player) in self.members)

    def hosted(self, data: st.DataObject, *statuses: str) -> tuple[str, str]:
        """Config and host of a lobby with one of the statuses."""
        found = sorted(lobby.id for lobby in self.books.lobbies.values() if lobby.status in statuses)
        lobby = self.books.lobbies[data.draw(st.sampled_from(found))]
        return lobby.config, lobby.host

    @any_in("waiting")
    @rule(data=st.data(), mode=st.sampled_from(["duel", "asked", "asked", "pairs"]))
    def start_matchmaking(self, data: st.DataObject, mode: str) -> None:
        config, host = self.hosted(data, "waiting")
        answer = self.do("start_matchmaking", config, host, mode)
        assert isinstance(answer, FleetError) or answer is not None
        if isinstance(answer, Lobby):
            assert answer.status == "in_queue"
        else:
            assert "Party too large" in answer.error

    @any_in("in_queue")
    @rule(data=st.data())
    def cancel_matchmaking(self, data: st.DataObject) -> None:
        answer = self.do("cancel_matchmaking", *self.hosted(data, "in_queue"))
        assert isinstance(answer, Lobby)
        assert answer.status == "waiting"

    @any_in("match_found")
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        answer = self.do("confirm", *self.hosted(data, "match_found"))
        assert isinstance(answer, Lobby)
        assert (answer.confirmed, answer.status) == (True, "match_found")

    @any_in("match_found")
    @rule(data=st.data())
    def decline(self, data: st.DataObject) -> None:
        config, host = self.hosted(data, "match_found")
        lobby = self.mine(config, host)
        assert lobby is not None
        late = self.books.matches[lobby.match_id or ""].status != "found"
        answer = self.do("decline", config, host)
        assert isinstance(answer, FleetError) if late else isinstance(answer, Lobby)
        assert answer is not None
        assert answer.status == (409 if late else "waiting")

    @any_in("waiting")
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        answer = self.do("start", *self.hosted(data, "waiting"), self.new_id(self.now))
        assert isinstance(answer, Lobby)
        assert answer.status == "starting"

    @any_in("in_game")
    @rule(data=st.data(), told=st.booleans())
    def end_match(self, data: st.DataObject, told: bool) -> None:
        config, host = self.hosted(data, "in_game")
        lobby = self.mine(config, host)
        assert lobby is not None
        match = self.books.matches[lobby.match_id or ""]
        ids = [player.id for one in self.matches.lobbies(match) for player in one.players]
        results = [Standing((one,), place) for place, one in enumerate(ids)] if told else None
        answer = self.do("end_match", config, host, results)
        assert isinstance(answer, Lobby)
        assert (answer.status, answer.server) == ("waiting", None)

    @rule(
        config=configs,
        player=players,
        what=st.sampled_from(["start_matchmaking", "cancel_matchmaking", "confirm", "decline", "start", "end_match"]),
    )
    def anybody(self, config: str, player: str, what: str) -> None:
        """Who is not the host may only confirm and decline; who is in no lobby, nothing."""
        lobby = self.mine(config, player)
        if lobby is not None and (lobby.host == player or what in ("confirm", "decline")):
            return
        arguments = {"start_matchmaking": ("duel",), "start": ("never",), "end_match": (None,)}.get(what, ())
        answer = self.do(what, config, player, *arguments)
        assert isinstance(answer, FleetError)
        assert answer.status == (404 if lobby is None else 409 if what in ("confirm", "decline") else 403)

    @rule(config=configs, player=players)
    def delete(self, config: str, player: str) -> None:
        lobby = self.mine(config, player)
        if lobby is not None:
            self.do("delete", config, "", lobby.id)
            self.members = {who: name for who, name in self.members.items() if name != lobby.id}

    # The world and time ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self.books.matches)
    @rule(
        data=st.data(),
        what=st.sampled_from(EVENTS),
    )
    def world(self, data: st.DataObject, what: str) -> None:
        match = self.books.matches[data.draw(st.sampled_from(sorted(self.books.matches)))]
        server = {"instance_id": f"s-{match.id}", "status": what, "region": match.region}
        self.now += 1
        match what:
            case "launching" | "running" if match.status == "starting":
                self.games.started(match.id, server, self.now)
            case "running":
                self.games.server_changed(match.id, server, self.now)
            case "stopped":
                self.games.server_stopped(match.id, "crashed", self.now)
            case "full" | "broken":
                self.games.failed(match.id, what, self.now, again=what == "full", hold_ms=100)
            case _:
                self.games.settled(match.id, self.now)
        self.matches.try_fresh(self.now)

    @rule(seconds=st.sampled_from([0.2, 3, 11, 61, 400]))
    def time_passes(self, seconds: float) -> None:
        self.now += int(seconds * 1000)
        for match in list(self.books.matches.values()):
            if match.status == "found" and (match.confirm_until or 0) <= self.now:
                self.matches.unconfirmed(match, self.now)
        for lobby_id in sorted(self.books.lobbies):
            self.heal(lobby_id)
        self.matches.try_fresh(self.now)

    def heal(self, lobby_id: str) -> None:
        """As the keeper's timers do."""
        lobby = self.books.lobbies.get(lobby_id)
        if lobby is None:
            return
        found = due(lobby, self.presence, replace(TERMS, everywhere=CONFIGS[lobby.config].heartbeat), self.now)
        for player in found.silent:
            if (lobby := self.books.lobbies.get(lobby_id)) is not None:
                self.desk.take_out(lobby, player, self.now, "gave no sign of life")
                self.members.pop((lobby.config, player), None)
        if (lobby := self.books.lobbies.get(lobby_id)) is not None and found.gave_up and lobby.status == "in_queue":
            self.matches.give_up(lobby, self.now, "no match in time")

    @rule()
    def restart(self) -> None:
        """What is on disk is enough for a successor."""
        self.books.take()
        for lobby in self.books.lobbies.values():
            assert lobby_of(LobbyRow(**lobby_values(lobby, 0))) == lobby
        for match in self.books.matches.values():
            assert match_of(MatchRow(**match_values(match, 0))) == match

    # What always holds ----------------------------------------------------------------------------------------------

    @invariant()
    def members_are_as_answered(self) -> None:
        found = {
            (lobby.config, player.id): lobby.id for lobby in self.books.lobbies.values() for player in lobby.players
        }
        assert found == self.members
        seats = Counter((lobby.config, p.id) for lobby in self.books.lobbies.values() for p in lobby.players)
        assert not seats or max(seats.values()) == 1

    @invariant()
    def lobbies_are_sane(self) -> None:
        codes = Counter((lobby.config, lobby.code) for lobby in self.books.lobbies.values())
        assert not codes or max(codes.values()) == 1
        for lobby in self.books.lobbies.values():
            assert 1 <= len(lobby.players) <= lobby.max_players
            assert lobby.player(lobby.host) is not None
            assert lobby.status in STATUSES
            assert self.books.of_code(PROJECT, lobby.config, lobby.code) is lobby
            assert lobby.version >= self.versions.get(lobby.id, 1)
            self.versions[lobby.id] = lobby.version
            event(lobby.status)

    @invariant()
    def nobody_is_stuck(self) -> None:
        """Every status has somebody who will end it: a match under way, a place in a queue, or the players."""
        for lobby in self.books.lobbies.values():
            match = self.books.matches.get(lobby.match_id or "")
            assert (lobby.status in ("waiting", "in_queue")) == (lobby.match_id is None)
            assert (lobby.status == "in_queue") == self.queues.has(lobby)
            assert (lobby.server is not None) == (lobby.status == "in_game")
            if lobby.match_id is not None:
                assert match is not None
                assert lobby.id in match.lobbies
                expected = {
                    "found": {"match_found"},
                    "starting": {"match_found", "matched", "starting"},
                    "active": {"in_game"},
                }[match.status]
                assert lobby.status in expected
        for match in self.books.matches.values():
            event(f"match {match.status}")
            if match.status != "ending":
                assert self.matches.lobbies(match), "a match without lobbies holds a server"

    @invariant()
    def queues_count_right(self) -> None:
        waiting = [lobby for lobby in self.books.lobbies.values() if lobby.status == "in_queue"]
        queues = [self.queues[key] for key in self.queues.all()]
        assert sum(len(queue.waiting) for queue in queues) == len(waiting)
        assert sum(queue.players for queue in queues) == sum(len(lobby.players) for lobby in waiting)
        assert sum(len(queue.loop) for queue in queues) == len(waiting)


LobbyMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestLobbies = LobbyMachine.TestCase
