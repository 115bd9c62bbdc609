"""What the pairwise rules of a mode may cost, in steps (`cost.py`), so that a look around one ticket is never long.

A look asks about as many pairs as a match's size has it ask. So the limit of one pair follows from the mode: the sum of
its expressions times the pairs of a look stays within the budget of a look. Each mode may have `LEAST`, though: where
matches are very large the budget itself cuts a look off, and the pairs that were not asked are not matched.
"""

from dataclasses import dataclass

from fleet.matchmaking.config import ModeConfig
from fleet.matchmaking.cost import SCALAR, Bound, either, listing, text
from fleet.matchmaking.expressions import BadExpression, Program, prepared
from fleet.matchmaking.rules import DifferenceRule, EqualsRule, ExpressionRule, NotEqualsRule, OverlapRule
from fleet.matchmaking.tickets import MAX_NAME, MAX_REGIONS, MAX_VALUE, MAX_VALUES
from fleet.players.model import MAX_ID

LOOK = 1_000_000  # steps of a look around one ticket in a sweep
ARRIVAL = 100_000  # of the look for who arrives, which the keeper waits for; what is left is for the sweeps
MOST, LEAST = 10_000, 100  # the limit of one pair
NEAREST = 128  # tickets around an anchor that are weighed; fewer for small matches


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression rule of a mode, and its place among the rules. No program: it is never met; `fault` says why."""

    place: int
    rule: ExpressionRule
    program: Program | None
    fault: str = ""


def nearest(players: int) -> int:
    """How many tickets around an anchor are weighed for a match of so many players."""
    return max(min(NEAREST, max(24, 8 * players)), 2 * players)


def pair_limit(players: int) -> int:
    """Steps that the expressions of a mode may cost together for two lobbies."""
    return max(LEAST, min(MOST, LOOK // (nearest(players) * max(1, players - 1))))


def lobby_bound(mode: ModeConfig) -> Bound:
    """The most that expressions of the mode see of a lobby: `ticket_of` refuses what is larger."""
    fields: dict[str, Bound] = {}
    for rule in mode.rules:
        if (bound := _field(rule, mode.party_limit)) is not None:
            name, value = bound
            fields[name] = either(fields.get(name, SCALAR), value)
    return Bound(
        fields={
            **fields,
            **dict.fromkeys(("size", "waited", "skill"), SCALAR),
            "players": listing(mode.party_limit, text(MAX_ID)),
            "regions": listing(MAX_REGIONS, text(MAX_NAME)),
        }
    )


def _field(rule: object, party: int) -> tuple[str, Bound] | None:
    match rule:
        case DifferenceRule(field=name):
            return name, SCALAR
        case EqualsRule(field=name):
            return name, text(MAX_VALUE)
        case NotEqualsRule(field=name):
            return name, listing(MAX_VALUES * party, text(MAX_VALUE))
        case OverlapRule(field=name):
            return name, listing(MAX_VALUES, text(MAX_VALUE))
        case _:
            return None


def expressions_of(mode: ModeConfig) -> list[Expression]:
    """The mode's expressions, with what is wrong with each."""
    lobby, limit, spent = lobby_bound(mode), pair_limit(mode.shape.players), 0
    found: list[Expression] = []
    for place, rule in enumerate(mode.rules):
        if not isinstance(rule, ExpressionRule):
            continue
        try:
            program = prepared(rule.expression, lobby)
        except BadExpression as error:
            found.append(Expression(place, rule, None, str(error)))
            continue
        if spent + program.steps > limit:
            found.append(Expression(place, rule, None, _too_much(program.steps, spent, limit, mode)))
            continue
        spent += program.steps
        found.append(Expression(place, rule, program))
    return found


def _too_much(steps: int, before: int, limit: int, mode: ModeConfig) -> str:
    others = f", beside {before:,} of the mode's other expressions" if before else ""
    return (
        f"the expression may cost {_told(steps)} steps for two lobbies{others}; the limit is {limit:,} for a mode of "
        f"{mode.shape.players} players. Loops multiply: use fewer, or over shorter lists"
    )


def _told(steps: int) -> str:
    return f"{steps:,}" if steps < 10**15 else "more than 10^15"
