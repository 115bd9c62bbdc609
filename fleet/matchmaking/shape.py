"""What a full match looks like: its teams, their sizes and roles."""

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, slots=True)
class TeamShape:
    """One team. `roles` are places for named roles; players beyond them may have any role."""

    name: str
    size: int
    least: int
    roles: tuple[tuple[str, int], ...] = ()

    @property
    def open_places(self) -> int:
        return self.size - sum(count for _, count in self.roles)


@dataclass(frozen=True)
class Shape:
    """All teams of a mode, in the order of the config."""

    teams: tuple[TeamShape, ...]
    least_teams: int

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """Each role once, in order of first mention."""
        return tuple(dict.fromkeys(role for team in self.teams for role, _ in team.roles))

    @cached_property
    def players(self) -> int:
        return sum(team.size for team in self.teams)

    @cached_property
    def least_players(self) -> int:
        return sum(sorted(team.least for team in self.teams)[: self.least_teams])

    @cached_property
    def biggest_team(self) -> int:
        return max(team.size for team in self.teams)

    @cached_property
    def alike(self) -> bool:
        """Whether all teams have the same size and roles."""
        first = self.teams[0]
        return all((team.size, team.least, team.roles) == (first.size, first.least, first.roles) for team in self.teams)

    @cached_property
    def may_be_partial(self) -> bool:
        return self.least_players < self.players
