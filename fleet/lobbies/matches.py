"""Matches over the books: found, confirmed, brought to a server, ended; and what each of these does to their lobbies.

No I/O and no clock. What is to be done in the world is left in `effects`, for after the commit.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from fleet.catalog import load_catalog
from fleet.errors import BadRequest, Conflict, NotFound
from fleet.lobbies import match as of
from fleet.lobbies import rules
from fleet.lobbies.books import Books
from fleet.lobbies.config import LobbyConfig
from fleet.lobbies.effects import Effect
from fleet.lobbies.match import Match, Side
from fleet.lobbies.model import Lobby, Queued
from fleet.lobbies.queues import QueueKey, Queues, ticket
from fleet.lobbies.ratings import RatingBook
from fleet.matchmaking.config import ModeConfig
from fleet.matchmaking.model import Found, OpenMatch

ConfigOf = Callable[[str, str], LobbyConfig]


@dataclass(frozen=True, slots=True)
class MatchTerms:
    """Milliseconds. `start_ms`: how long a server is asked for; `again_ms`: what a lobby that is handed back to its
    queue has left at least; `hold_ms`: how long no match is made in a queue whose matches find no server."""

    start_ms: int = 60_000
    again_ms: int = 20_000
    hold_ms: int = 3_000


class Matches:
    def __init__(
        self,
        books: Books,
        queues: Queues,
        ratings: RatingBook,
        config: ConfigOf,
        new_id: Callable[[int], str],
        terms: MatchTerms,
    ) -> None:
        self._books = books
        self._queues = queues
        self._ratings = ratings
        self._config = config
        self._new_id = new_id
        self._terms = terms
        self.effects: list[Effect] = []

    # The queue ------------------------------------------------------------------------------------------------------

    def enter(self, lobby: Lobby, player_id: str, mode: str, now: int) -> Lobby:
        found = self._mode(lobby, mode)
        rules.check_queue(lobby, player_id, mode, found.party_limit)
        return self._enqueue(lobby, found, Queued(mode, now, now + int(found.timeout * 1000)), now)

    def _mode(self, lobby: Lobby, mode: str) -> ModeConfig:
        modes = self._config(lobby.project_id, lobby.config).modes
        if not modes:
            raise BadRequest(
                f"Lobby config '{lobby.config[:64]}' has no matchmaking modes. Add them to lobby_configs in the "
                "project's settings.",
                error="No matchmaking modes configured",
            )
        if mode not in modes:
            known = ", ".join(name[:64] for name in list(modes)[:20])
            raise NotFound(f"There is no mode '{mode[:64]}'; known are {known}.", error="Matchmaking mode not found")
        return modes[mode]

    def _enqueue(self, lobby: Lobby, mode: ModeConfig, place: Queued, now: int) -> Lobby:
        """BadRequest if the players' states do not fit the mode."""
        queued = rules.queued(lobby, place, now)
        self._queues.add(queued, mode, self._ratings)
        return self._books.put(queued)

    def requeue(self, lobby: Lobby) -> None:
        """After a restart: the lobby is in the queue, and its place is what its row says."""
        assert lobby.queued is not None, "it is in the queue"
        self._queues.add(lobby, self._mode(lobby, lobby.queued.mode), self._ratings)

    def excuse(self, now: int) -> None:
        """Nobody could act for a while: what would end now, or has ended meanwhile, gets some time again."""
        for lobby in list(self._books.lobbies.values()):
            if lobby.status == "in_queue" and lobby.queued and lobby.queued.until < now + self._terms.again_ms:
                self._books.put(replace(lobby, queued=replace(lobby.queued, until=now + self._terms.again_ms)))
        for match in list(self._books.matches.values()):
            if match.status == "found" and match.confirm_until is not None:
                self._ask_again(match, now)
            elif match.status == "starting":
                self._books.put_match(replace(match, start_until=now + self._terms.start_ms))

    def _ask_again(self, match: Match, now: int) -> None:
        """The whole time to confirm, as if just found."""
        mode = self._config(match.project_id, match.config).modes.get(match.mode)
        if mode is None or not mode.match_confirmation.enabled:
            return
        until = now + int(mode.match_confirmation.timeout * 1000)
        self._books.put_match(replace(match, confirm_until=until))
        for lobby in self.lobbies(match):
            self._books.put(replace(lobby, confirm_until=until))

    def leave_queue(self, lobby: Lobby, now: int) -> Lobby:
        self._queues.remove(lobby)
        return self._books.put(rules.free(lobby, now))

    def give_up(self, lobby: Lobby, now: int, why: str) -> Lobby:
        """The queue could not help this lobby."""
        mode = lobby.queued.mode if lobby.queued else ""
        self._books.note(lobby.project_id, lobby.id, "queue_left", now, mode=mode, why=why)
        return self.leave_queue(lobby, now)

    def try_fresh(self, now: int) -> None:
        """Matches that the newest tickets complete are made now."""
        for key, found in self._queues.attempts(now):
            self.form(key, found, now)

    # A match is made ------------------------------------------------------------------------------------------------

    def form(self, key: QueueKey, found: Found, now: int) -> None:
        """What the matcher found, unless one of the lobbies is not in this queue any more."""
        lobbies = [self._books.lobbies.get(name) for name in found.ticket_ids]
        present = [lobby for lobby in lobbies if lobby is not None and self._queues.has(lobby, key)]
        if len(present) < len(lobbies):
            return
        for lobby in present:
            self._queues.take(lobby, now)
        sides = tuple(Side(team.name, tuple(team.tickets), dict(team.roles)) for team in found.teams)
        if found.backfill is not None:
            self._fill(found.backfill, sides, present, now)
            return
        project_id, config, mode = key
        confirmation = self._config(project_id, config).modes[mode].match_confirmation
        until = now + int(confirmation.timeout * 1000) if confirmation.enabled else None
        match = Match(
            id=self._new_id(now),
            project_id=project_id,
            config=config,
            mode=mode,
            status="found",
            sides=sides,
            regions=_regions(found.regions, present),
            created_at=now,
            updated_at=now,
            confirm_until=until,
        )
        status = "match_found" if until else "matched"
        for lobby in present:
            self._books.put(rules.in_match(replace(lobby, confirmed=False), status, match.id, now, confirm_until=until))
        self._books.note(project_id, match.id, "match_found", now, mode=mode, lobbies=list(match.lobbies))
        self._books.put_match(match)
        if until is None:
            self._begin(match, now)

    def host_start(self, lobby: Lobby, match_id: str, now: int) -> Lobby:
        match = Match(
            id=match_id,
            project_id=lobby.project_id,
            config=lobby.config,
            mode="",
            status="found",
            sides=(Side("team-1", (lobby.id,)),),
            regions=_regions((), [lobby]),
            created_at=now,
            updated_at=now,
        )
        lobby = self._books.put(rules.in_match(lobby, "starting", match.id, now))
        self._begin(match, now)
        return lobby

    def _begin(self, match: Match, now: int) -> None:
        self._books.put_match(of.starting(match, now, now + self._terms.start_ms))
        self.effects.append(Effect("start", match.id))

    def _fill(self, match_id: str, sides: tuple[Side, ...], lobbies: list[Lobby], now: int) -> None:
        """More lobbies for a match that runs; if it has ended meanwhile they are as they were."""
        match = self._books.matches.get(match_id)
        server = next((lobby.server for lobby in self.lobbies(match) if lobby.server), None) if match else None
        if match is None or match.status != "active" or server is None:
            self._hand_back(lobbies, now)
            return
        match = self._books.put_match(of.with_more(match, sides, now))
        for lobby in lobbies:
            self._books.put(rules.in_game(lobby, match.id, server, now))
        self.reopen(match)
        names = [lobby.id for lobby in lobbies]
        self._books.note(match.project_id, match.id, "match_filled", now, lobbies=names)
        self.effects.append(Effect("tell", match.id))

    # Confirmation ---------------------------------------------------------------------------------------------------

    def confirm(self, lobby: Lobby, now: int) -> Lobby:
        match = self._found(lobby)
        if match.status != "found" or lobby.confirmed:
            return lobby
        match = self._books.put_match(of.confirmed_by(match, lobby.id, now))
        lobby = self._books.put(rules.confirmed(lobby, now))
        if set(match.lobbies) <= match.confirmed:
            self._begin(match, now)
        return lobby

    def decline(self, lobby: Lobby, now: int, why: str) -> Lobby:
        match = self._found(lobby)
        if match.status != "found":
            raise Conflict("Every lobby has confirmed and the server is on its way.", error="Match is confirmed")
        self.off(match, now, why, waiting={lobby.id} if self._requeues(match) else match.lobbies)
        return self._books.lobbies[lobby.id]

    def _found(self, lobby: Lobby) -> Match:
        match = self._books.matches.get(lobby.match_id or "")
        assert match is not None, f"lobby {lobby.id} is in a match that is not there"
        return match

    def unconfirmed(self, match: Match, now: int) -> None:
        """The time to confirm has passed: who did not waits, who did is queued again."""
        missing = set(match.lobbies) - match.confirmed
        why = f"{len(missing)} of {len(match.lobbies)} lobbies did not confirm"
        self.off(match, now, why, waiting=missing if self._requeues(match) else match.lobbies)

    def _requeues(self, match: Match) -> bool:
        mode = self._config(match.project_id, match.config).modes.get(match.mode)
        return mode is None or mode.match_confirmation.requeue

    # Somebody goes --------------------------------------------------------------------------------------------------

    def member_goes(self, lobby: Lobby, now: int, why: str) -> Lobby:
        """The lobby when one of several players goes. Not put into the books yet: the caller changes more."""
        if lobby.status == "in_queue":
            self._queues.remove(lobby)
            return rules.free(lobby, now)
        match = self._books.matches.get(lobby.match_id or "")
        if match is None or not match.matchmade or not self._calls_off(match):
            return lobby
        self.off(match, now, why, leaver=lobby.id)
        return rules.free(lobby, now)

    def lobby_goes(self, lobby: Lobby, now: int, why: str) -> None:
        """The lobby is about to be removed."""
        if lobby.status == "in_queue":
            self._queues.remove(lobby)
        match = self._books.matches.get(lobby.match_id or "")
        if match is None:
            return
        if match.matchmade and self._calls_off(match):
            self.off(match, now, why, leaver=lobby.id)
        else:
            self.leave(match, lobby, now, why)

    def _calls_off(self, match: Match) -> bool:
        """Whether the match cannot go on without who leaves."""
        if match.status == "found":
            return True
        return of.before_play(match) and self._config(match.project_id, match.config).on_leave == "cancel"

    def leave(self, match: Match, lobby: Lobby, now: int, why: str) -> None:
        """The others play on; without others, the server is not needed any more."""
        rest = of.without(match, lobby.id, now)
        if rest.lobbies:
            self._books.put_match(rest)
            self.reopen(rest)
        else:
            self.over(rest, now, why)

    def off(self, match: Match, now: int, why: str, *, waiting: Iterable[str] = (), leaver: str | None = None) -> None:
        """The match is called off. Those in `waiting` wait; the others are handed back to the queue, as they were; the
        leaver is left to the caller."""
        lobbies = [lobby for lobby in self.lobbies(match) if lobby.id != leaver]
        self.over(match, now, why)
        told = set(waiting)
        for lobby in lobbies:
            if lobby.id in told:
                self._books.put(rules.free(lobby, now))
        self._hand_back([lobby for lobby in lobbies if lobby.id not in told], now)

    def _hand_back(self, lobbies: list[Lobby], now: int) -> None:
        """To the queue, at their old places; to waiting where there is no such queue any more."""
        for lobby in lobbies:
            place = lobby.queued
            mode = self._config(lobby.project_id, lobby.config).modes.get(place.mode) if place else None
            if place is None or mode is None:
                self._books.put(rules.free(lobby, now))
                continue
            place = replace(place, until=max(place.until, now + self._terms.again_ms))
            try:
                self._enqueue(lobby, mode, place, now)
            except BadRequest as error:  # its state does not fit the mode any more
                self._books.put(rules.free(lobby, now))
                self._books.note(lobby.project_id, lobby.id, "queue_left", now, mode=place.mode, why=error.detail)

    def over(self, match: Match, now: int, why: str) -> None:
        self._queues.close(_queue_of(match), match.id)
        ended = self._books.put_match(of.over(match, why, now))
        told = "match_ended" if match.status == "active" else "match_failed"
        self._books.note(match.project_id, match.id, told, now, mode=match.mode, lobbies=list(match.lobbies), why=why)
        if ended.status == "ending":
            self.effects.append(Effect("stop", match.id))

    def lobbies(self, match: Match) -> list[Lobby]:
        return [self._books.lobbies[name] for name in match.lobbies if name in self._books.lobbies]

    def reopen(self, match: Match) -> None:
        """A running match with room takes more lobbies, if its mode says so; else it takes none."""
        key = _queue_of(match)
        self._queues.close(key, match.id)
        mode = self._config(match.project_id, match.config).modes.get(match.mode)
        if mode is None or not mode.allow_backfill or match.status != "active":
            return
        try:
            open_match = self._open_match(match, mode)
        except BadRequest:  # what a player's state has become does not fit the mode
            return
        sizes = [sum(one.size for one in team) for team in open_match.teams]
        room = [shape.size - size for shape, size in zip(mode.shape.teams, sizes, strict=False)]
        if len(sizes) <= len(mode.shape.teams) and min(room) >= 0 and max(room) > 0:  # late joins may overfill a team
            self._queues.open(key, mode, open_match)

    def reopen_of(self, lobby: Lobby) -> None:
        """Who is in this lobby has changed."""
        match = self._books.matches.get(lobby.match_id or "")
        if match is not None and match.status == "active" and match.matchmade:
            self.reopen(match)

    def _open_match(self, match: Match, mode: ModeConfig) -> OpenMatch:
        here = self._books.lobbies
        teams = tuple(
            tuple(ticket(here[name], mode, self._ratings) for name in side.lobbies if name in here)
            for side in match.sides
        )
        players = {player.id for lobby in self.lobbies(match) for player in lobby.players}
        roles = {player: role for side in match.sides for player, role in side.roles.items() if player in players}
        return OpenMatch(match.id, teams, match.region, match.created_at / 1000, roles)


def _queue_of(match: Match) -> QueueKey:
    return match.project_id, match.config, match.mode


def _regions(voted: Iterable[str], lobbies: list[Lobby]) -> tuple[str, ...]:
    """Where to ask for a server, in this order: what the players named, then what their lobbies were made for."""
    known = load_catalog()
    wanted = [*voted, *(lobby.region for lobby in lobbies)]
    found = [
        region.id for name in wanted for region in known.regions.values() if name == region.id or name in region.alias
    ]
    return tuple(dict.fromkeys(found)) or (rules.DEFAULT_REGION,)
