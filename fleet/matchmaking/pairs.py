"""Rules between two lobbies that no ordering helps with: checked pair by pair, for those who have them."""

from typing import Any

from fleet.matchmaking.config import ModeConfig
from fleet.matchmaking.entry import Entry
from fleet.matchmaking.expressions import holds
from fleet.matchmaking.rules import DifferenceRule, EqualsRule, ExpressionRule, NotEqualsRule


class Pairs:
    """The pairwise rules of a mode. A rule that is dropped with waiting binds as long as one of the two insists."""

    def __init__(self, mode: ModeConfig) -> None:
        first = mode.first_difference
        self.differences = [r for r in mode.rules if isinstance(r, DifferenceRule) and r is not first]
        self.equal = [r for r in mode.rules if isinstance(r, EqualsRule) and r.drop_after is not None]
        self.unequal = [r for r in mode.rules if isinstance(r, NotEqualsRule)]
        self.expressions = [r for r in mode.rules if isinstance(r, ExpressionRule)]
        self.any = bool(self.differences or self.equal or self.unequal or self.expressions)

    def allow(self, a: Entry, b: Entry, now: float) -> bool:
        """Whether the two may be in one match."""
        if b.born < a.born:
            a, b = b, a
        return (
            all(_near(rule, a, b, now) for rule in self.differences)
            and all(_dropped(rule, b, now) or _same(rule.field, a, b) for rule in self.equal)
            and all(_dropped(rule, b, now) or _distinct(rule.field, a, b) for rule in self.unequal)
            and all(_dropped(rule, b, now) or self._true(rule.expression, a, b, now) for rule in self.expressions)
        )

    def _true(self, text: str, a: Entry, b: Entry, now: float) -> bool:
        return holds(text, seen(a, now), seen(b, now))


def seen(entry: Entry, now: float) -> dict[str, Any]:
    """What an expression sees of a lobby: the fields of the other rules, and these."""
    ticket = entry.ticket
    return {
        **ticket.fields,
        "size": entry.size,
        "waited": max(0.0, now - entry.born),
        "skill": sum(player.mu for player in ticket.players) / entry.size,
        "players": [player.player_id for player in ticket.players],
        "regions": [name for name in ticket.players[0].regions],
    }


def _dropped(rule: EqualsRule | NotEqualsRule | ExpressionRule, younger: Entry, now: float) -> bool:
    return rule.drop_after is not None and now - younger.born >= rule.drop_after


def _near(rule: DifferenceRule, a: Entry, b: Entry, now: float) -> bool:
    apart = abs(float(a.ticket.fields.get(rule.field) or 0.0) - float(b.ticket.fields.get(rule.field) or 0.0))
    growth = rule.growth
    younger = min(growth.grown(rule.max_difference, now - a.born), growth.grown(rule.max_difference, now - b.born))
    return apart <= younger


def _same(name: str, a: Entry, b: Entry) -> bool:
    return a.ticket.fields.get(name) == b.ticket.fields.get(name)


def _distinct(name: str, a: Entry, b: Entry) -> bool:
    return set(a.ticket.fields.get(name) or ()).isdisjoint(b.ticket.fields.get(name) or ())
