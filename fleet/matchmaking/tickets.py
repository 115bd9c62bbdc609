"""From a lobby's players and their states to a ticket. What a mode needs and a player lacks is told at once, as 4xx."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from fleet.errors import BadRequest
from fleet.matchmaking.config import FILL, SPECTATOR, ModeConfig
from fleet.matchmaking.model import MU, SIGMA, Player, Ticket
from fleet.matchmaking.rules import DifferenceRule, EqualsRule, NotEqualsRule, OverlapRule, RegionRule

MAX_REGIONS = 32
MAX_NAME = 64  # characters of a role's or region's name
MAX_VALUES, MAX_VALUE = 64, 200  # of a player's values of one field; characters of each
MAX_LATENCY_MS = 10_000.0


@dataclass(frozen=True, slots=True)
class Member:
    """A player of a lobby as the keeper knows it. `state` is what the player's client set."""

    player_id: str
    state: Mapping[str, Any]
    mu: float = MU
    sigma: float = SIGMA
    blocked: frozenset[str] = frozenset()
    latencies: Mapping[str, float] = field(default_factory=dict[str, float])


def ticket_of(
    mode: ModeConfig,
    ticket_id: str,
    created_at: float,
    members: Sequence[Member],
    known_regions: Collection[str] | None = None,
) -> Ticket:
    """The ticket of a lobby that queues; BadRequest says which player's state does not fit the mode.

    Of regions only `known_regions` count, if told: names that players make up must not fill our books.
    """
    playing = [member for member in members if not _spectates(member)]
    if not playing:
        raise BadRequest("Only spectators are in this lobby: somebody must play.", error="Nobody plays")
    if len(playing) > mode.party_limit:
        detail = f"{len(playing)} players queue together, but the mode takes lobbies of at most {mode.party_limit}."
        raise BadRequest(detail, error="Party too large")
    regions = next((rule.field for rule in mode.rules if isinstance(rule, RegionRule)), "regions")
    players = tuple(_player(mode, member, regions, known_regions) for member in playing)
    fields = {name: value for rule in mode.rules if (named := _field(rule, playing)) for name, value in [named]}
    watching = tuple(member.player_id for member in members if _spectates(member))
    return Ticket(ticket_id, players, created_at, fields, watching)


def _spectates(member: Member) -> bool:
    role = member.state.get("role")
    return isinstance(role, str) and role.lower() == SPECTATOR


def _player(mode: ModeConfig, member: Member, regions_field: str, known: Collection[str] | None) -> Player:
    named = _texts(member, regions_field)[:MAX_REGIONS]
    regions = tuple(name for name in named if known is None or name in known)
    if named and not regions:
        raise BadRequest(f"Player {member.player_id}: '{named[0][:40]}' is no region here.", error="Bad region")
    return Player(
        player_id=member.player_id,
        mu=member.mu,
        sigma=member.sigma,
        roles=_roles(mode, member),
        regions=regions,
        latencies={name: ms for name, ms in _latencies(member).items() if known is None or name in known},
        blocked=member.blocked,
    )


def _roles(mode: ModeConfig, member: Member) -> tuple[str, ...]:
    """The roles a player takes, the dearest first; empty is any. Names are compared without case."""
    known = {role.lower(): role for role in mode.shape.roles}
    wanted = _texts(member, "role")
    if not known or not wanted or any(role.lower() == FILL for role in wanted):
        liked = [known[role.lower()] for role in wanted if role.lower() in known]
        return tuple(dict.fromkeys([*liked, *known.values()])) if liked else ()
    fitting = tuple(dict.fromkeys(known[role.lower()] for role in wanted if role.lower() in known))
    if not fitting:
        names = ", ".join([*mode.shape.roles, FILL])
        raise BadRequest(f"Player {member.player_id} wants '{wanted[0][:40]}'; the mode has {names}.", error="Bad role")
    return fitting


def _texts(member: Member, name: str) -> tuple[str, ...]:
    value = member.state.get(name)
    if value is None or value == "":
        return ()
    several = cast(list[object], value) if isinstance(value, list) else [value]
    if not all(isinstance(one, str) and len(one) <= MAX_NAME for one in several):
        raise _unfit(member, name, f"a text or a list of texts of at most {MAX_NAME} characters")
    return tuple(dict.fromkeys(str(one) for one in several))


def _latencies(member: Member) -> dict[str, float]:
    """Milliseconds per region: what the platform measured, else what the client says under `latencies`."""
    told = member.latencies or member.state.get("latencies") or {}
    if not isinstance(told, Mapping):
        raise _unfit(member, "latencies", "an object of milliseconds by region")
    named = cast(Mapping[str, object], told)
    if len(named) > MAX_REGIONS:
        raise _unfit(member, "latencies", f"at most {MAX_REGIONS} regions")
    return {name: min(_number(member, "latencies", value), MAX_LATENCY_MS) for name, value in named.items()}


def _field(rule: object, playing: Sequence[Member]) -> tuple[str, Any] | None:
    match rule:
        case DifferenceRule():
            numbers = [_number(member, rule.field, member.state.get(rule.field)) for member in playing]
            return rule.field, sum(numbers) / len(numbers)
        case EqualsRule():
            return rule.field, _common(rule.field, playing)
        case NotEqualsRule():
            values = [value for member in playing for value in _values(member, rule.field)]
            return rule.field, tuple(dict.fromkeys(values))
        case OverlapRule():
            shared = [set(_values(member, rule.field)) for member in playing if member.state.get(rule.field)]
            common: set[str] | None = set[str].intersection(*shared) if shared else None
            if common is not None and not common:
                raise BadRequest(f"The lobby's players share no value of '{rule.field}'.", error="Nothing in common")
            return None if common is None else (rule.field, tuple(sorted(common)))
        case _:
            return None


def _common(name: str, playing: Sequence[Member]) -> str | None:
    values = {
        _value(member, name, value) if (value := member.state.get(name)) is not None else None for member in playing
    }
    if len(values) > 1:
        raise BadRequest(f"The lobby's players differ in '{name}', which must be equal.", error="Nothing in common")
    return next(iter(values))


def _values(member: Member, name: str) -> list[str]:
    value = member.state.get(name)
    if value is None:
        return []
    several = cast(list[object], value) if isinstance(value, list) else [value]
    if len(several) > MAX_VALUES:
        raise _unfit(member, name, f"a list of at most {MAX_VALUES} values")
    return [_value(member, name, one) for one in several]


def _value(member: Member, name: str, value: object) -> str:
    """Rules compare values with many others', so they are short."""
    told = str(value)
    if len(told) > MAX_VALUE:
        raise _unfit(member, name, f"a value of at most {MAX_VALUE} characters")
    return told


def _number(member: Member, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _unfit(member, name, "a number")
    return float(value)


def _unfit(member: Member, name: str, wanted: str) -> BadRequest:
    return BadRequest(f"Player {member.player_id}: '{name}' should be {wanted}.", error="Bad player state")
