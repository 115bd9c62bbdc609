"""The commands of players and studios, over the books. No I/O and no clock: `now` is passed in. The keeper commits the
books before it answers.
"""

from collections.abc import Callable
from dataclasses import dataclass

from fleet.errors import BadRequest, Forbidden, NotFound
from fleet.lobbies import rules
from fleet.lobbies.books import Books, in_another
from fleet.lobbies.codes import RandBelow, new_code, typed
from fleet.lobbies.config import LobbyConfig
from fleet.lobbies.games import Games
from fleet.lobbies.matches import Matches
from fleet.lobbies.model import Lobby, LobbyChange, NewLobby, Standing, State

ConfigOf = Callable[[str, str], LobbyConfig]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who acts in which config. `again`: the call may have had its effect before the keeper was killed."""

    project_id: str
    config: str
    player_id: str
    again: bool = False


class Desk:
    """Each command gives the lobby as it is then; None: it is gone."""

    def __init__(self, books: Books, matches: Matches, games: Games, config: ConfigOf, randbelow: RandBelow) -> None:
        self._books = books
        self._matches = matches
        self._games = games
        self._config = config
        self._randbelow = randbelow

    # Coming and going -----------------------------------------------------------------------------------------------

    def create(self, caller: Caller, now: int, new: NewLobby, lobby_id: str) -> Lobby:
        config = self._open_config(caller)
        mine = self._books.of_player(caller.project_id, caller.config, caller.player_id)
        if mine is not None:
            if mine.id == lobby_id:
                return mine  # asked again
            if new.force_fresh and mine.host == caller.player_id:
                self.end(mine, now, "replaced")
        taken = self._books.codes(caller.project_id, caller.config)
        lobby = rules.created(
            new,
            lobby_id=lobby_id,
            project_id=caller.project_id,
            config=caller.config,
            code=new_code(config.codes, taken, self._randbelow),
            player_id=caller.player_id,
            max_players=config.max_players,
            now=now,
        )
        self._books.add(lobby)
        self._books.note(lobby.project_id, lobby.id, "created", now, config=lobby.config, host=lobby.host)
        return lobby

    def join(self, caller: Caller, now: int, lobby_id: str | None, code: str | None, state: State | None) -> Lobby:
        self._open_config(caller)
        lobby = self._wanted(caller, lobby_id, code)
        mine = self._books.of_player(caller.project_id, caller.config, caller.player_id)
        if mine is not None and mine.id == lobby.id and caller.again:
            return mine
        if mine is not None:
            raise in_another(caller.config, caller.player_id)
        return self._books.put(rules.joined(lobby, caller.player_id, state, now))

    def _open_config(self, caller: Caller) -> LobbyConfig:
        config = self._config(caller.project_id, caller.config)
        if not config.enabled:
            raise Forbidden(f"Lobby config '{caller.config[:64]}' is switched off.", error="Lobby config disabled")
        return config

    def _wanted(self, caller: Caller, lobby_id: str | None, code: str | None) -> Lobby:
        if (lobby_id is None) == (code is None):
            raise BadRequest("Give either lobbyId or code.")
        if lobby_id is not None:
            return self.get(caller.project_id, caller.config, lobby_id)
        lobby = self._books.of_code(caller.project_id, caller.config, typed(code or ""))
        if lobby is None:
            raise NotFound(
                f"No lobby of '{caller.config[:64]}' has the code '{(code or '')[:64]}'.", error="Lobby not found"
            )
        return lobby

    def leave(self, caller: Caller, now: int) -> Lobby | None:
        lobby = self._books.of_player(caller.project_id, caller.config, caller.player_id)
        if lobby is None and caller.again:
            return None
        return self.take_out(lobby or self._mine(caller), caller.player_id, now, "left")

    def kick(self, caller: Caller, now: int, victim: str) -> Lobby:
        lobby = self._mine(caller)
        if caller.again and lobby.host == caller.player_id and lobby.player(victim) is None:
            return lobby
        rules.check_kick(lobby, caller.player_id, victim)
        found = self.take_out(lobby, victim, now, "kicked")
        assert found is not None, "the host is still there"
        return found

    def take_out(self, lobby: Lobby, player_id: str, now: int, why: str) -> Lobby | None:
        """The player is gone from its lobby, and from what the lobby waits for. None: the lobby is gone with it."""
        if len(lobby.players) == 1:
            self.end(lobby, now, f"the last player {why}")
            return None
        rest = rules.left(self._matches.member_goes(lobby, now, f"player {player_id[:64]} {why}"), player_id, now)
        assert rest is not None, "others are still there"
        if why not in ("left", "kicked"):
            self._books.note(lobby.project_id, lobby.id, "player_removed", now, player=player_id, why=why)
        if rest.host != lobby.host:
            self._books.note(lobby.project_id, lobby.id, "host_changed", now, host=rest.host, why=f"the host {why}")
        rest = self._books.put(rest)
        self._matches.reopen_of(rest)
        return rest

    def end(self, lobby: Lobby, now: int, why: str) -> None:
        """The lobby is no more; its match goes on without it, or ends."""
        self._matches.lobby_goes(lobby, now, why)
        self._books.remove(lobby)
        self._books.note(lobby.project_id, lobby.id, "deleted", now, config=lobby.config, why=why)

    def delete(self, caller: Caller, now: int, lobby_id: str) -> None:
        try:
            lobby = self.get(caller.project_id, caller.config, lobby_id)
        except NotFound:
            if caller.again:
                return
            raise
        self.end(lobby, now, "deleted by the project")

    # In the lobby ---------------------------------------------------------------------------------------------------

    def get(self, project_id: str, config: str, lobby_id: str) -> Lobby:
        lobby = self._books.lobbies.get(lobby_id)
        if lobby is None or (lobby.project_id, lobby.config) != (project_id, config):
            raise NotFound(f"There is no lobby '{lobby_id[:64]}' in '{config[:64]}'.", error="Lobby not found")
        return lobby

    def _mine(self, caller: Caller) -> Lobby:
        lobby = self._books.of_player(caller.project_id, caller.config, caller.player_id)
        if lobby is None:
            raise NotFound(
                f"Player '{caller.player_id[:64]}' is in no lobby of '{caller.config[:64]}'.", error="Lobby not found"
            )
        return lobby

    def mine(self, caller: Caller, now: int) -> Lobby:
        return self._mine(caller)

    def set_state(self, caller: Caller, now: int, state: State) -> Lobby:
        return self._books.put(rules.with_state(self._mine(caller), caller.player_id, state, now))

    def change(self, caller: Caller, now: int, change: LobbyChange) -> Lobby:
        return self._books.put(rules.changed(self._mine(caller), caller.player_id, change, now))

    def new_host(self, lobby: Lobby, host: str, now: int, why: str) -> Lobby:
        self._books.note(lobby.project_id, lobby.id, "host_changed", now, host=host, why=why)
        return self._books.put(rules.hosted_by(lobby, host, now))

    # Playing --------------------------------------------------------------------------------------------------------

    def start_matchmaking(self, caller: Caller, now: int, mode: str) -> Lobby:
        """Queued; the match may be made at once, which then comes after what is answered here."""
        lobby = self._mine(caller)
        if caller.again and lobby.queued is not None and lobby.queued.mode == mode:
            return lobby
        return self._matches.enter(lobby, caller.player_id, mode, now)

    def cancel_matchmaking(self, caller: Caller, now: int) -> Lobby:
        lobby = self._mine(caller)
        if caller.again and lobby.status == "waiting":
            return lobby
        rules.check_cancel(lobby, caller.player_id)
        return self._matches.leave_queue(lobby, now)

    def confirm(self, caller: Caller, now: int) -> Lobby:
        lobby = self._mine(caller)
        if caller.again and lobby.match_id is not None and lobby.status != "match_found":
            return lobby
        rules.check_found(lobby)
        return self._matches.confirm(lobby, now)

    def decline(self, caller: Caller, now: int) -> Lobby:
        lobby = self._mine(caller)
        if caller.again and lobby.status == "waiting":
            return lobby
        rules.check_found(lobby)
        return self._matches.decline(lobby, now, f"player {caller.player_id[:64]} declined")

    def start(self, caller: Caller, now: int, match_id: str) -> Lobby:
        lobby = self._mine(caller)
        if caller.again and lobby.match_id == match_id:
            return lobby
        rules.check_start(lobby, caller.player_id)
        return self._matches.host_start(lobby, match_id, now)

    def end_match(self, caller: Caller, now: int, results: list[Standing] | None) -> Lobby:
        lobby = self._mine(caller)
        if caller.again and lobby.status == "waiting":
            return lobby
        rules.check_end(lobby, caller.player_id)
        return self._games.end(lobby, results, now)
