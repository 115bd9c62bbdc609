"""A mode of matchmaking as a project configures it: `lobby_configs[].matchmaking.modes.<mode>`.

What the API page tells is kept to; where it is silent the field is our choice (docs/matchmaking.md lists them).
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Self, cast

from pydantic import Field, StringConstraints, model_validator

from fleet.matchmaking.rules import Data, DifferenceRule, EqualsRule, RegionRule, Rule, Seconds, SkillRule
from fleet.matchmaking.shape import Shape, TeamShape

MAX_PLAYERS = 200
MAX_ROLES = 8
MAX_RULES = 20

Count = Annotated[int, Field(ge=1, le=MAX_PLAYERS)]
RoleName = Annotated[str, StringConstraints(min_length=1, max_length=40)]
Roles = dict[RoleName, Count]
FILL, SPECTATOR = "fill", "spectator"


class Confirmation(Data):
    """Every lobby of a found match must say yes within `timeout` seconds. If one does not, the others are back in their
    places of the queue, or, without `requeue`, wait as well."""

    enabled: bool = False
    requeue: bool = True
    timeout: Annotated[float, Field(ge=1, le=600)] = 30.0


class Composition(Data):
    """A team with roles: `{"name": "boss", "roles": {"boss": 1}}`. Players beyond the roles may have any."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=60)] | None = None
    roles: Roles = Field(default_factory=dict)
    players: Count | None = None
    min_players: Count | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        _check_roles(self.roles)
        named = sum(self.roles.values())
        if self.players is not None and self.players < named:
            raise ValueError(f"players is {self.players}, but the roles have {named} places")
        return self


class ModeConfig(Data):
    """One mode. Validated when the settings are saved; its `digest` is its version."""

    teams: Count = 2
    players_per_team: Count = 1
    min_players_per_team: Count | None = None
    min_teams: Count | None = None
    timeout: Annotated[float, Field(ge=1, le=86_400)] = 300.0
    max_party_size: Count | None = None
    allow_backfill: bool = False
    rules: Annotated[tuple[Rule, ...], Field(max_length=MAX_RULES)] = ()
    roles: Roles = Field(default_factory=dict)
    team_composition: Annotated[tuple[Composition, ...], Field(max_length=MAX_PLAYERS)] = ()
    match_confirmation: Confirmation = Confirmation()
    partial_after: Seconds = Field(default=20.0, description="longest wait after which fewer players will do")

    @model_validator(mode="before")
    @classmethod
    def _older_spelling(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or "matchmakingRules" not in given:
            return cast(object, given)
        mode = dict(cast(Mapping[str, Any], given))
        older = mode.pop("matchmakingRules")
        if mode.get("rules") and older:
            raise ValueError("rules and matchmakingRules are two names of the same: give one")
        return mode | ({"rules": older} if older else {})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_roles(self.roles)
        if self.team_composition and self.roles:
            raise ValueError("give roles for all teams alike, or teamComposition, not both")
        self._check_team_count()
        sizes = [team.size for team in self.shape.teams]
        if sum(sizes) > MAX_PLAYERS:
            raise ValueError(f"a match has at most {MAX_PLAYERS} players, not {sum(sizes)}")
        self._check_least()
        self._check_rules()
        return self

    def _check_team_count(self) -> None:
        told = len(self.team_composition)
        if told > 1 and "teams" in self.model_fields_set and self.teams != told:
            raise ValueError(f"teams is {self.teams}, but teamComposition tells {told}")

    def _check_least(self) -> None:
        biggest = self.shape.biggest_team
        if self.min_players_per_team is not None and self.min_players_per_team > biggest:
            raise ValueError(f"minPlayersPerTeam is {self.min_players_per_team}, but a team has {biggest}")
        if self.min_teams is not None and self.min_teams > len(self.shape.teams):
            raise ValueError(f"minTeams is {self.min_teams}, but there are {len(self.shape.teams)} teams")
        if self.min_teams is not None and self.min_teams < len(self.shape.teams) and not self.shape.alike:
            raise ValueError("minTeams below the number of teams needs teams that are all alike")
        if len(self.shape.roles) > MAX_ROLES:
            raise ValueError(f"a mode has at most {MAX_ROLES} roles, not {len(self.shape.roles)}")

    def _check_rules(self) -> None:
        if sum(isinstance(rule, SkillRule) for rule in self.rules) > 1:
            raise ValueError("one skill rule is enough")
        if sum(isinstance(rule, RegionRule) for rule in self.rules) > 1:
            raise ValueError("one region rule is enough")

    @cached_property
    def shape(self) -> Shape:
        """The teams with their sizes, least sizes and roles."""
        specs = self.team_composition or (Composition(roles=self.roles),)
        if len(specs) == 1:
            specs = specs * self.teams
        teams = tuple(self._team(spec, number) for number, spec in enumerate(specs))
        return Shape(teams, self.min_teams or len(teams))

    def _team(self, spec: Composition, number: int) -> TeamShape:
        named = sum(spec.roles.values())
        told = "players_per_team" in self.model_fields_set or not named
        size = spec.players or (max(named, self.players_per_team) if told and not self._asymmetric else named)
        size = size or self.players_per_team
        least = min(spec.min_players or self.min_players_per_team or size, size)
        return TeamShape(spec.name or f"team-{number + 1}", size, least, tuple(spec.roles.items()))

    @property
    def _asymmetric(self) -> bool:
        return len(self.team_composition) > 1

    @cached_property
    def party_limit(self) -> int:
        """How many players a lobby may have that queues: a party stays on one team."""
        return min(self.max_party_size or MAX_PLAYERS, self.shape.biggest_team)

    @cached_property
    def first_difference(self) -> DifferenceRule | SkillRule | None:
        """The rule whose value the queue is ordered by: skill before others."""
        of_value = [rule for rule in self.rules if isinstance(rule, DifferenceRule | SkillRule)]
        return min(of_value, key=lambda rule: isinstance(rule, DifferenceRule), default=None)

    @cached_property
    def strict_fields(self) -> tuple[str, ...]:
        """Fields that are equal in a match whatever the wait: they split the queue into shards."""
        return tuple(r.field for r in self.rules if isinstance(r, EqualsRule) and r.drop_after is None)

    @cached_property
    def digest(self) -> str:
        """The version of this config: equal for equal content, whatever the order of keys."""
        dumped = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return hashlib.sha256(json.dumps(dumped, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names in the config that mean nothing to us, for a hint to whoever wrote it."""
        return tuple(sorted(self.model_extra or ()))


def _check_roles(roles: Roles) -> None:
    for role in roles:
        if role.lower() in (FILL, SPECTATOR):
            raise ValueError(f"'{role}' is what a player may wish, not a role of a team")
