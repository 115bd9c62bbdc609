"""An independent check of found matches against the mode's rules. Shares no code with the matcher but the rules' data.

Tests and the simulator ask it about every match; it is plain rather than quick.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, cast

from fleet.matchmaking.config import ModeConfig
from fleet.matchmaking.expressions import holds
from fleet.matchmaking.model import BETA, Found, OpenMatch, Player, Team, Ticket
from fleet.matchmaking.rules import (
    DifferenceRule,
    EqualsRule,
    ExpressionRule,
    NotEqualsRule,
    OverlapRule,
    RegionRule,
    Rule,
    SkillRule,
)
from fleet.matchmaking.shape import TeamShape

SLACK = 1e-6


def check(
    found: Found, tickets: Mapping[str, Ticket], mode: ModeConfig, now: float, running: OpenMatch | None = None
) -> list[str]:
    """What is wrong with a match; empty if nothing is. `running` is the match that a backfill adds to."""
    faults = [f"unknown ticket {one}" for one in found.ticket_ids if one not in tickets]
    twice = [one for one, count in Counter(found.ticket_ids).items() if count > 1]
    faults += [f"ticket {one} is there twice" for one in twice]
    if len(found.teams) != len(mode.shape.teams):
        faults.append(f"{len(found.teams)} teams instead of {len(mode.shape.teams)}")
    if faults:
        return faults
    before = running.teams if running else ((),) * len(found.teams)
    added = [[tickets[one] for one in team.tickets] for team in found.teams]
    teams = [[*old, *new] for old, new in zip(before, added, strict=True)]
    everyone = [ticket for team in teams for ticket in team]
    players = Counter(player.player_id for ticket in everyone for player in ticket.players)
    faults += [f"player {one} is there twice" for one, count in players.items() if count > 1]
    faults += _sizes(teams, mode, now, backfill=running is not None)
    for shape, team, old, new in zip(mode.shape.teams, found.teams, before, added, strict=True):
        faults += _roles(shape, team, old, new, running)
    faults += _pairs([t for team in added for t in team], [t for team in before for t in team], mode, now)
    faults += _common(everyone, found, mode, now, running)
    if running is None:
        faults += _even(teams, mode, now)
    return faults


def _sizes(teams: Sequence[Sequence[Ticket]], mode: ModeConfig, now: float, *, backfill: bool) -> Iterator[str]:
    sizes = [sum(ticket.size for ticket in team) for team in teams]
    for shape, size in zip(mode.shape.teams, sizes, strict=True):
        if size > shape.size:
            yield f"{shape.name} has {size} players, at most {shape.size}"
        if not backfill and 0 < size < shape.least:
            yield f"{shape.name} has {size} players, at least {shape.least}"
    if backfill:
        return
    if sum(size > 0 for size in sizes) < mode.shape.least_teams:
        yield f"fewer than {mode.shape.least_teams} teams play"
    waited = max((now - ticket.created_at for team in teams for ticket in team), default=0.0)
    if sum(sizes) < mode.shape.players and waited < mode.partial_after - SLACK:
        yield f"a partial match after {waited:.1f} s"


def _roles(
    shape: TeamShape, team: Team, old: Sequence[Ticket], new: Sequence[Ticket], running: OpenMatch | None
) -> Iterator[str]:
    places = dict(shape.roles)
    given = dict(team.roles)
    if running is not None:
        given |= {
            p.player_id: running.roles[p.player_id] for t in old for p in t.players if p.player_id in running.roles
        }
    members: dict[str, Player] = {player.player_id: player for ticket in [*old, *new] for player in ticket.players}
    for player_id in given:
        if player_id not in members:
            yield f"{player_id} has a role on {shape.name} but is not on it"
    if not places:
        return
    held = Counter(given.values())
    beyond = sum(max(0, held[role] - places.get(role, 0)) for role in held)
    beyond += sum(player_id not in given for player_id in members)
    if beyond > shape.open_places:
        yield f"{shape.name}: roles {dict(held)} do not fit {places}"
    for ticket in new:
        for player in ticket.players:
            role = given.get(player.player_id)
            if role is not None and player.roles and role not in player.roles:
                yield f"{player.player_id} wants {player.roles}, got {role}"


def _pairs(added: Sequence[Ticket], before: Sequence[Ticket], mode: ModeConfig, now: float) -> Iterator[str]:
    pairs = [*combinations(added, 2), *((new, old) for new in added for old in before)]
    for a, b in pairs:
        names = f"{a.ticket_id} and {b.ticket_id}"
        ours, theirs = ({player.player_id for player in ticket.players} for ticket in (a, b))
        if any(player.blocked & theirs for player in a.players) or any(player.blocked & ours for player in b.players):
            yield f"{names}: blocked"
        for rule in mode.rules:
            if not _allows(rule, a, b, now):
                yield f"{names}: against {rule.model_dump(exclude_defaults=True)}"


def _allows(rule: Rule, a: Ticket, b: Ticket, now: float) -> bool:
    waited = [now - ticket.created_at for ticket in (a, b)]
    match rule:
        case DifferenceRule():
            apart = abs((a.fields.get(rule.field) or 0.0) - (b.fields.get(rule.field) or 0.0))
            return apart <= min(rule.growth.grown(rule.max_difference, one) for one in waited) + SLACK
        case SkillRule():
            apart = abs(_mean_mu(a) - _mean_mu(b))
            return apart <= min(rule.growth.grown(rule.max_difference, one) for one in waited) + SLACK
        case EqualsRule():
            return _dropped(rule, waited) or a.fields.get(rule.field) == b.fields.get(rule.field)
        case NotEqualsRule():
            shared = set(a.fields.get(rule.field) or ()) & set(b.fields.get(rule.field) or ())
            return _dropped(rule, waited) or not shared
        case ExpressionRule():
            older, younger = sorted((a, b), key=lambda ticket: ticket.created_at)
            return _dropped(rule, waited) or holds(rule.expression, _seen(older, now), _seen(younger, now))
        case _:
            return True


def _dropped(rule: EqualsRule | NotEqualsRule | ExpressionRule, waited: Sequence[float]) -> bool:
    return rule.drop_after is not None and all(one >= rule.drop_after - SLACK for one in waited)


def _seen(ticket: Ticket, now: float) -> dict[str, Any]:
    return {
        **{name: _as_json(value) for name, value in ticket.fields.items()},
        "size": ticket.size,
        "waited": now - ticket.created_at,
        "skill": _mean_mu(ticket),
        "players": [player.player_id for player in ticket.players],
        "regions": list(ticket.players[0].regions),
    }


def _as_json(value: Any) -> Any:
    return list(cast("tuple[str]", value)) if isinstance(value, tuple) else value


def _common(
    everyone: Sequence[Ticket], found: Found, mode: ModeConfig, now: float, running: OpenMatch | None
) -> Iterator[str]:
    """What all lobbies of a match share: a region, and a value of each `overlap` field."""
    for rule in mode.rules:
        if isinstance(rule, RegionRule):
            region = running.region if running else found.region
            for ticket in everyone:
                if region is not None and not _reaches(rule, ticket, region, now) and not _of(running, ticket):
                    yield f"{ticket.ticket_id} cannot play in {region}"
                if region is None and any(player.regions for player in ticket.players):
                    yield f"{ticket.ticket_id} named regions, but the match has none"
        if isinstance(rule, OverlapRule):
            values = [set(v) for ticket in everyone if (v := ticket.fields.get(rule.field))]
            if values and not set.intersection(*values):
                yield f"nothing in common in '{rule.field}'"


def _of(running: OpenMatch | None, ticket: Ticket) -> bool:
    return running is not None and any(ticket in team for team in running.teams)


def _reaches(rule: RegionRule, ticket: Ticket, region: str, now: float) -> bool:
    if not any(player.regions or player.latencies for player in ticket.players):
        return True
    for player in ticket.players:
        if player.regions and region not in player.regions:
            return False
        if not player.regions and player.latencies and region not in player.latencies:
            return False
        limit = math.inf
        if rule.max_latency is not None:
            limit = rule.growth.grown(rule.max_latency, now - ticket.created_at)
        if player.latencies.get(region, 0.0) > limit + SLACK:
            return False
    return True


def _even(teams: Sequence[Sequence[Ticket]], mode: ModeConfig, now: float) -> Iterator[str]:
    skill = next((rule for rule in mode.rules if isinstance(rule, SkillRule)), None)
    playing = [[p for ticket in team for p in ticket.players] for team in teams if team]
    if skill is None or len(playing) < 2:
        return
    waited = min(now - ticket.created_at for team in teams for ticket in team)
    variance = 2 * BETA**2 + sum(p.sigma**2 for team in playing for p in team) * 2 / len(playing)
    mus = [sum(p.mu for p in team) for team in playing]
    off = 0.5 * math.erf((max(mus) - min(mus)) / math.sqrt(2 * variance))
    if off > skill.relax_imbalance.grown(skill.max_imbalance, waited) + SLACK:
        yield f"uneven by {off:.3f} after {waited:.1f} s"


def _mean_mu(ticket: Ticket) -> float:
    return sum(player.mu for player in ticket.players) / ticket.size
