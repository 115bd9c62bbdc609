"""Places in running matches, for tickets that fit those who already play there."""

from collections.abc import Sequence
from dataclasses import replace

from fleet.matchmaking.assemble import Assembler
from fleet.matchmaking.entry import Entry
from fleet.matchmaking.model import Found, OpenMatch, Quality, Team
from fleet.matchmaking.roles import assigned
from fleet.matchmaking.shape import TeamShape


class Running:
    """A running match that takes more players, ready for comparing."""

    def __init__(self, match: OpenMatch, assembler: Assembler) -> None:
        self.match = match
        self.assembler = assembler
        self.terms = assembler.terms
        self.teams = [[self.terms.entry(ticket) for ticket in team] for team in match.teams]
        self.members = [entry for team in self.teams for entry in team]
        self.shard = self.members[0].shard if self.members else None
        self.region = None if match.region is None else self.terms.regions.bit(match.region)
        hall = self.terms.placer.hall
        self.counts = [
            sum(hall.add(hall.mask(self._held(p.player_id))) for entry in team for p in entry.ticket.players)
            for team in self.teams
        ]
        self.room = self.terms.mode.shape.players - sum(entry.size for entry in self.members)

    @property
    def value(self) -> float:
        return sum(entry.value for entry in self.members) / max(1, len(self.members))

    def _held(self, player_id: str) -> Sequence[str]:
        role = self.match.roles.get(player_id)
        return () if role is None else (role,)

    def team_for(self, entry: Entry, now: float) -> int | None:
        """The team that a ticket may join: of those with a place for its roles the smallest, then the weakest."""
        if entry.size > self.room or (self.shard is not None and entry.shard != self.shard):
            return None
        if not self._reaches(entry, now) or not self.assembler.joins(entry, self.members, now):
            return None
        placer = self.terms.placer
        add = placer.counts(entry.kind)
        fitting = [team for team, counts in enumerate(self.counts) if placer.fits(team, counts + add)]

        def need(team: int) -> tuple[float, float, int]:
            mates = self.teams[team]
            return sum(one.size for one in mates), sum(one.mu for one in mates), team

        return min(fitting, key=need, default=None)

    def _reaches(self, entry: Entry, now: float) -> bool:
        if self.terms.regions.rule is None or self.region is None:
            return True
        return bool(self.terms.regions.mask(entry, now) >> self.region & 1)

    def found(self, entry: Entry, team: int, now: float) -> Found:
        """The ticket as an addition to that team."""
        shapes = self.terms.mode.shape.teams
        roles = self._roles(shapes[team], self.teams[team], entry) if self.terms.mode.shape.roles else {}
        teams = tuple(
            Team(shape.name, (entry.id,), roles) if number == team else Team(shape.name, ())
            for number, shape in enumerate(shapes)
        )
        values = [one.value for one in (*self.members, entry)]
        worst, mean = (0.0, 0.0) if self.region is None else self._latency(entry, self.region)
        waited = max(0.0, now - entry.born)
        quality = Quality(max(values) - min(values), 0.0, worst, mean, waited, waited)
        regions = () if self.match.region is None else (self.match.region,)
        return Found(teams, regions, quality, now, backfill=self.match.match_id)

    def match_with(self, entry: Entry, team: int) -> OpenMatch:
        """The running match as it is once the ticket has joined."""
        roles = self.found(entry, team, entry.born).teams[team].roles
        teams = tuple((*t, entry.ticket) if n == team else t for n, t in enumerate(self.match.teams))
        return replace(self.match, teams=teams, roles={**self.match.roles, **roles})

    def _roles(self, shape: TeamShape, mates: Sequence[Entry], entry: Entry) -> dict[str, str]:
        """Roles of who comes, with those of the others as they are."""
        held = [(p.player_id, self._held(p.player_id)) for one in mates for p in one.ticket.players]
        given = assigned(shape, [*held, *((p.player_id, p.roles) for p in entry.ticket.players)])
        return {player_id: role for player_id, role in given.items() if player_id in entry.players}

    def _latency(self, entry: Entry, bit: int) -> tuple[float, float]:
        return entry.worsts.get(bit, 0.0), entry.means.get(bit, 0.0)
