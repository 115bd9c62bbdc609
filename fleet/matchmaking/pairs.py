"""Rules between two lobbies that no ordering helps with: checked pair by pair, for those who have them.

They are counted in steps (`budget.py`), since one look around a ticket asks about many pairs: what the look's budget
does not reach is not matched. Whatever is not evaluated counts as not met, and `faults` tells why.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from fleet.matchmaking.budget import LOOK, Expression, expressions_of, lobby_bound
from fleet.matchmaking.config import ModeConfig
from fleet.matchmaking.entry import Entry
from fleet.matchmaking.expressions import OverBound, fits
from fleet.matchmaking.rules import DifferenceRule, EqualsRule, ExpressionRule, NotEqualsRule

_PLAIN = 2  # steps of a rule that is no expression
_COMPARED = 4  # values that such a rule compares in a step
ALL_RULES = -1


class Fault(NamedTuple):
    """`kind` is a word for a metric: refused, lobby_too_large, stopped, look_too_long. `why` is for the project."""

    kind: str
    why: str


Faults = dict[int, Fault]  # by the rule's place, or `ALL_RULES`


class Pairs:
    """The pairwise rules of a mode. A rule that is dropped with waiting binds as long as one of the two insists."""

    def __init__(self, mode: ModeConfig) -> None:
        first = mode.first_difference
        self.differences = [r for r in mode.rules if isinstance(r, DifferenceRule) and r is not first]
        self.equal = [r for r in mode.rules if isinstance(r, EqualsRule) and r.drop_after is not None]
        self.unequal = [r for r in mode.rules if isinstance(r, NotEqualsRule)]
        self.expressions = expressions_of(mode)
        self.any = bool(self.differences or self.equal or self.unequal or self.expressions)
        self._plain = _PLAIN * (1 + len(self.differences) + len(self.equal) + len(self.unequal))
        self._sight = _Sight(mode, self.expressions)
        self._left = LOOK
        self._faults: Faults = {}

    def begin(self, steps: int = LOOK) -> None:
        """A new look, with so many steps."""
        self._left = steps

    @property
    def exhausted(self) -> bool:
        """Whether the look's steps are used up, so that pairs were not asked about."""
        return self._left <= 0

    def faults(self) -> Faults:
        """Rules that counted as not met since the last call, though nobody knows whether they are."""
        faults, self._faults = self._faults, {}
        return faults

    def allow(self, a: Entry, b: Entry, now: float) -> bool:
        """Whether the two may be in one match."""
        if self._left <= 0:
            return False
        if b.born < a.born:
            a, b = b, a
        self._left -= self._plain
        return (
            all(_near(rule, a, b, now) for rule in self.differences)
            and all(_dropped(rule, b, now) or _same(rule.field, a, b) for rule in self.equal)
            and all(_dropped(rule, b, now) or self._distinct(rule.field, a, b) for rule in self.unequal)
            and all(_dropped(one.rule, b, now) or self._true(one, a, b, now) for one in self.expressions)
        )

    def _distinct(self, name: str, a: Entry, b: Entry) -> bool:
        ours, theirs = a.ticket.fields.get(name) or (), b.ticket.fields.get(name) or ()
        self._left -= (len(ours) + len(theirs)) // _COMPARED
        return set(ours).isdisjoint(theirs)

    def _true(self, expression: Expression, a: Entry, b: Entry, now: float) -> bool:
        """Each costs its estimate, whatever it really does: so that the same calls give the same matches."""
        if expression.program is None:
            self._faults[expression.place] = Fault("refused", expression.fault)
            return False
        self._left -= expression.program.steps
        ours, theirs = self._sight.of(a, now), self._sight.of(b, now)
        if ours is None or theirs is None:
            why = "a lobby queued with more values than the mode's expressions may see"
            self._faults[expression.place] = Fault("lobby_too_large", why)
            return False
        try:
            return expression.program.holds(ours, theirs)
        except OverBound as error:
            self._left -= LOOK // 10  # of the time that it took
            self._faults[expression.place] = Fault("stopped", str(error))
            return False


class _Sight:
    """What expressions see of lobbies: the fields of the other rules, and `size`, `waited`, `skill`, `players`,
    `regions`; of these what the mode's expressions use. It is kept with each lobby; only `waited` changes."""

    def __init__(self, mode: ModeConfig, expressions: list[Expression]) -> None:
        known = lobby_bound(mode).fields
        used = [one.program.used for one in expressions if one.program is not None]
        self._bounds = {name: bound for name, bound in known.items() if any(u is None or name in u for u in used)}
        self._waited = "waited" in self._bounds

    def of(self, entry: Entry, now: float) -> Mapping[str, Any] | None:
        """None: it is larger than expressions may see."""
        if entry.seen is None:
            entry.seen = self._seen(entry)
        seen, fit = entry.seen
        if not fit:
            return None
        return {**seen, "waited": max(0.0, now - entry.born)} if self._waited else seen

    def _seen(self, entry: Entry) -> tuple[dict[str, Any], bool]:
        ticket = entry.ticket
        whole = {
            **ticket.fields,
            "size": entry.size,
            "waited": 0.0,
            "skill": sum(player.mu for player in ticket.players) / entry.size,
            "players": [player.player_id for player in ticket.players],
            "regions": list(ticket.players[0].regions),
        }
        seen = {name: _as_json(value) for name, value in whole.items() if name in self._bounds}
        return seen, all(fits(value, self._bounds[name]) for name, value in seen.items())


def _as_json(value: Any) -> Any:
    return list(cast("tuple[object]", value)) if isinstance(value, tuple) else value


def _dropped(rule: EqualsRule | NotEqualsRule | ExpressionRule, younger: Entry, now: float) -> bool:
    return rule.drop_after is not None and now - younger.born >= rule.drop_after


def _near(rule: DifferenceRule, a: Entry, b: Entry, now: float) -> bool:
    apart = abs(float(a.ticket.fields.get(rule.field) or 0.0) - float(b.ticket.fields.get(rule.field) or 0.0))
    growth = rule.growth
    younger = min(growth.grown(rule.max_difference, now - a.born), growth.grown(rule.max_difference, now - b.born))
    return apart <= younger


def _same(name: str, a: Entry, b: Entry) -> bool:
    return a.ticket.fields.get(name) == b.ticket.fields.get(name)
