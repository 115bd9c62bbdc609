"""A ticket made ready for comparing: names become bits, rules become numbers."""

from dataclasses import dataclass
from typing import Any

from fleet.matchmaking.config import ModeConfig
from fleet.matchmaking.model import BETA, Ticket
from fleet.matchmaking.regions import ANYWHERE, RegionBook
from fleet.matchmaking.roles import Placer
from fleet.matchmaking.rules import DifferenceRule, OverlapRule, SkillRule

# For each `overlap` rule the values a lobby would take; None: any.
Overlaps = tuple[frozenset[str] | None, ...]
FOREVER = float("inf")
# In the objective's units: what a whole timeout of waiting, the freedom of a role, and a party's next player count for.
AGE, EASY, PARTY = 0.2, 0.03, 0.02


class Entry:
    """One waiting ticket. `born` is its place in the queue; `value` is what the queue is ordered by."""

    __slots__ = (
        "alive",
        "best",
        "blocked",
        "born",
        "drag",
        "id",
        "key",
        "kind",
        "listed",
        "mask",
        "mask_until",
        "masks",
        "means",
        "mu",
        "next_try",
        "overlaps",
        "players",
        "reach",
        "seen",
        "shard",
        "size",
        "ticket",
        "tries",
        "value",
        "variance",
        "worsts",
    )

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.id = ticket.ticket_id
        self.born = ticket.created_at
        self.size = ticket.size
        self.value = 0.0
        self.key: tuple[float, float, str] = (0.0, self.born, ticket.ticket_id)
        self.kind = 0
        self.mask = ANYWHERE
        self.mask_until = FOREVER
        self.best: int | None = None
        self.drag = 0.0
        self.reach: tuple[tuple[float, int], ...] = ()
        self.worsts: dict[int, float] = {}
        self.means: dict[int, float] = {}
        self.overlaps: Overlaps = ()
        self.players = frozenset(player.player_id for player in ticket.players)
        self.blocked = frozenset(one for player in ticket.players for one in player.blocked)
        self.mu = 0.0
        self.variance = 0.0
        self.shard: tuple[Any, ...] = ()
        self.seen: tuple[dict[str, Any], bool] | None = (
            None  # what expressions see of it, and whether that is in bounds
        )
        self.masks: list[int] = []
        self.alive = True  # free to be matched
        self.listed = False  # among its shard's items
        self.next_try = 0.0
        self.tries = 0


@dataclass
class Terms:
    """What a mode's rules come to: the numbers the matcher compares with, and the bits it has given to names."""

    mode: ModeConfig
    placer: Placer
    regions: RegionBook

    def __post_init__(self) -> None:
        rule = self.mode.first_difference
        self.rule = rule
        self.limit = rule.max_difference if rule else FOREVER
        growth = rule.growth if rule else None
        self.after = growth.after if growth else 0.0
        self.rate = growth.per_second if growth else 0.0
        self.widest = max(growth.max, self.limit) if growth and growth.max is not None else FOREVER
        self.skill = rule if isinstance(rule, SkillRule) else None
        self.overlap_fields = [r.field for r in self.mode.rules if isinstance(r, OverlapRule)]
        # A window of the ordering number counts like two performances' spread of openskill.
        self.unit = 1.0 if self.skill or not rule or not rule.max_difference else 2 * BETA / rule.max_difference

    def window(self, entry: Entry, now: float) -> float:
        """How far from its own value a ticket accepts others."""
        waited = now - entry.born - self.after
        if waited <= 0.0:
            return self.limit
        wide = self.limit + waited * self.rate
        return wide if wide < self.widest else self.widest

    def entry(self, ticket: Ticket) -> Entry:
        made = Entry(ticket)
        hall = self.placer.hall
        made.masks = [hall.mask(player.roles) for player in ticket.players]
        made.kind = self.placer.kind(made.masks)
        made.value = self._value(ticket)
        made.key = (made.value, made.born, ticket.ticket_id)
        made.shard = tuple(ticket.fields.get(name) for name in self.mode.strict_fields)
        self.regions.place(made)
        made.drag = self._drag(made)
        values = (ticket.fields.get(name) for name in self.overlap_fields)
        made.overlaps = tuple(frozenset(several) if several else None for several in values)
        if self.skill is not None:
            made.mu = sum(player.mu for player in ticket.players)
            made.variance = sum(player.sigma**2 for player in ticket.players)
        else:
            made.mu = made.value * self.unit * made.size
        return made

    def _drag(self, entry: Entry) -> float:
        """What makes a candidate worth less than others as near: coming later, being easy to place elsewhere."""
        hall = self.placer.hall
        easy = sum(mask == hall.any for mask in entry.masks) / entry.size if hall.any else 0.0
        return AGE * entry.born / self.mode.timeout + EASY * easy - PARTY * (entry.size - 1)

    def _value(self, ticket: Ticket) -> float:
        match self.rule:
            case SkillRule():
                return sum(player.mu for player in ticket.players) / ticket.size
            case DifferenceRule(field=name):
                return float(ticket.fields.get(name) or 0.0)
            case _:
                return 0.0


def shared(ours: Overlaps, theirs: Overlaps) -> Overlaps | None:
    """What two sides have in common in each field; None if in one of them nothing."""
    both = tuple(a if b is None else b if a is None else a & b for a, b in zip(ours, theirs, strict=True))
    return None if any(one is not None and not one for one in both) else both
