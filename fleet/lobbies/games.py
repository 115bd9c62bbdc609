"""A match and its server: what becomes of the match when the server is there, fails, stops, or is done with.

No I/O and no clock, as in `matches.py`.
"""

from collections.abc import Iterable

from fleet.errors import BadRequest
from fleet.lobbies import match as of
from fleet.lobbies import rules
from fleet.lobbies.books import Books
from fleet.lobbies.effects import Effect
from fleet.lobbies.match import Match
from fleet.lobbies.matches import Matches
from fleet.lobbies.model import Lobby, Standing, State
from fleet.lobbies.queues import Queues
from fleet.lobbies.ratings import RatingBook
from fleet.lobbies.rows import Rating
from fleet.matchmaking import Rating as Skill
from fleet.matchmaking import rated


class Games:
    def __init__(self, books: Books, matches: Matches, queues: Queues, ratings: RatingBook) -> None:
        self._books = books
        self._matches = matches
        self._queues = queues
        self._ratings = ratings

    def _starting(self, match_id: str) -> Match | None:
        match = self._books.matches.get(match_id)
        return match if match is not None and match.status == "starting" else None

    def next_region(self, match_id: str, now: int) -> bool:
        """The region has no room. False: there is no other to ask."""
        match = self._starting(match_id)
        elsewhere = of.next_region(match, now) if match is not None else None
        if elsewhere is None:
            return False
        self._books.put_match(elsewhere)
        return True

    def started(self, match_id: str, server: State, now: int) -> None:
        """The match has this server, launching or running. If it was called off meanwhile, `stop` is on its way."""
        match = self._starting(match_id)
        if match is None:
            return
        match = of.active(match, server["instance_id"], server["status"], server["region"], now)
        self._books.put_match(match)
        for lobby in self._matches.lobbies(match):
            self._books.put(rules.in_game(lobby, match.id, server, now))
        if match.matchmade:
            self._queues.served((match.project_id, match.config, match.mode))
        self._note(match, "match_started", now, region=server["region"], server=match.server_id)
        self._matches.effects.append(Effect("follow", match.id))
        self._matches.reopen(match)

    def failed(self, match_id: str, why: str, now: int, *, again: bool, hold_ms: int) -> None:
        """No server for it. `again`: there may be one later, so lobbies from a queue go back to their places."""
        match = self._starting(match_id)
        if match is None:
            return
        again = again and match.matchmade
        if again:
            self._queues.hold((match.project_id, match.config, match.mode), now, hold_ms)
        self._matches.off(match, now, why, waiting=() if again else match.lobbies)

    def server_stopped(self, match_id: str, why: str, now: int) -> None:
        """Everybody waits again, with players, code and settings kept."""
        match = self._books.matches.get(match_id)
        if match is not None and match.status == "active":
            self._matches.off(match, now, f"server stopped: {why}", waiting=match.lobbies)

    def server_changed(self, match_id: str, server: State, now: int) -> None:
        """What players see of its server has changed: it runs."""
        match = self._books.matches.get(match_id)
        if match is None or match.status != "active":
            return
        self._books.put_match(of.active(match, server["instance_id"], server["status"], server["region"], now))
        for lobby in self._matches.lobbies(match):
            self._books.put(rules.in_game(lobby, match.id, server, now))

    def settled(self, match_id: str, now: int) -> None:
        """Nothing of the match is left to stop."""
        match = self._books.matches.get(match_id)
        if match is not None and match.status == "ending":
            self._books.put_match(of.settled(match, now))

    def end(self, lobby: Lobby, results: list[Standing] | None, now: int) -> Lobby:
        """This lobby is done with its match. The server goes with the last one, or when the results are told: then it
        is over for all."""
        match = self._books.matches.get(lobby.match_id or "")
        assert match is not None, f"lobby {lobby.id} is in a match that is not there"
        if results is not None:
            self._rate(match, results, now)
            self._matches.off(match, now, "the results are in", waiting=match.lobbies)
        else:
            self._matches.leave(match, lobby, now, "ended by the host")
            self._books.put(rules.free(lobby, now))
        return self._books.lobbies[lobby.id]

    def _rate(self, match: Match, results: list[Standing], now: int) -> None:
        here = {player.id for lobby in self._matches.lobbies(match) for player in lobby.players}
        told = [player for standing in results for player in standing.players]
        if len(set(told)) < len(told) or not set(told) <= here:
            raise BadRequest("results should name players of this match, each once.", error="Bad results")
        if not match.matchmade or len(results) < 2:
            return
        before = {player: self._ratings.get((match.project_id, match.config, match.mode, player)) for player in told}
        teams = [{name: Skill(before[name].mu, before[name].sigma) for name in one.players} for one in results]
        after = rated(teams, [standing.rank for standing in results])
        self._save(match, before, after.items(), now)

    def _save(self, match: Match, before: dict[str, Rating], after: Iterable[tuple[str, Skill]], now: int) -> None:
        new = [
            Rating(match.project_id, match.config, match.mode, name, skill.mu, skill.sigma, before[name].games + 1, now)
            for name, skill in after
        ]
        for rating in new:
            self._ratings.put(rating)
        self._books.rate(new)
        told = {rating.player_id: [round(rating.mu, 3), round(rating.sigma, 3)] for rating in new}
        self._note(match, "ratings_changed", now, ratings=told)

    def _note(self, match: Match, what: str, now: int, **data: object) -> None:
        self._books.note(match.project_id, match.id, what, now, mode=match.mode, lobbies=list(match.lobbies), **data)
