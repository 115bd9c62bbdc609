"""Skill from results: openskill's Plackett-Luce model, as a pure function."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openskill.models import PlackettLuce

from fleet.matchmaking.model import MU, SIGMA


@dataclass(frozen=True, slots=True)
class Rating:
    """What is known of a player's skill: its mean and how sure that is."""

    mu: float = MU
    sigma: float = SIGMA

    @property
    def ordinal(self) -> float:
        """A number to show: with 99.7 % chance the skill is higher."""
        return self.mu - 3 * self.sigma


def rated(teams: Sequence[Mapping[str, Rating]], ranks: Sequence[float]) -> dict[str, Rating]:
    """New ratings after a match: `ranks[i]` is the place of `teams[i]`, 1 is best, equal ones are a draw."""
    if len(teams) != len(ranks):
        raise ValueError(f"{len(teams)} teams need as many ranks, not {len(ranks)}")
    if len(teams) < 2:
        return {player: rating for team in teams for player, rating in team.items()}
    model = PlackettLuce()
    given = [[model.rating(mu=one.mu, sigma=one.sigma) for one in team.values()] for team in teams]
    after = model.rate(given, ranks=list(ranks))
    players = [list(team) for team in teams]
    return {
        player: Rating(float(one.mu), float(one.sigma))
        for names, team in zip(players, after, strict=True)
        for player, one in zip(names, team, strict=True)
    }


def chances(teams: Sequence[Sequence[Rating]]) -> list[float]:
    """Each team's chance to win, as openskill reckons it."""
    model = PlackettLuce()
    return [float(chance) for chance in model.predict_win([[model.rating(r.mu, r.sigma) for r in t] for t in teams])]
