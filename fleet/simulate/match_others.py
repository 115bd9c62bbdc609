"""What matchmaking is compared with: first come first served, greedy with fixed windows, and an exact solver."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fleet.matchmaking import Found, ModeConfig, Ticket, parse_mode
from fleet.matchmaking.assemble import Assembler
from fleet.matchmaking.entry import Entry, Terms
from fleet.matchmaking.pairs import Pairs
from fleet.matchmaking.regions import RegionBook
from fleet.matchmaking.roles import Placer
from fleet.matchmaking.rules import RegionRule

MOST_GROUPS = 60_000


def assembler_of(mode: ModeConfig) -> Assembler:
    rule = next((rule for rule in mode.rules if isinstance(rule, RegionRule)), None)
    return Assembler(Terms(mode, Placer(mode.shape), RegionBook(rule)), Pairs(mode))


class Plain:
    """Each ticket that comes takes those who wait longest of all that fit. Its rules never loosen."""

    def __init__(self, mode: ModeConfig) -> None:
        self.assembler = assembler_of(mode)
        self.waiting: dict[str, Entry] = {}

    def arrives(self, ticket: Ticket, now: float) -> Sequence[Found]:
        entry = self.assembler.terms.entry(ticket)
        group = self.assembler.gather(entry, self.waiting.values(), now)
        made = self.assembler.made(group, now)
        if made is None:
            self.waiting[entry.id] = entry
            return ()
        for one in made.entries:
            self.waiting.pop(one.id, None)
        return (self.assembler.found(made, now),)

    def tick(self, now: float) -> Sequence[Found]:
        return ()

    def leaves(self, ticket_id: str) -> None:
        self.waiting.pop(ticket_id, None)


def first_come(mode: ModeConfig) -> Plain:
    """Roles and regions are kept to, skill is not looked at."""
    return Plain(_changed(mode, [rule for rule in _rules(mode) if rule["type"] not in ("skill", "difference")]))


def fixed_windows(mode: ModeConfig, widened: float = 2.0) -> Plain:
    """Like first come, within windows of `widened` times the mode's first ones."""
    rules: list[dict[str, Any]] = []
    for rule in _rules(mode):
        if rule["type"] in ("skill", "difference"):
            width = widened * rule["maxDifference"]
            rule = {**rule, "maxDifference": width, "relax": {"perSecond": 0}, "maxImbalance": 0.5}
        rules.append(rule)
    return Plain(_changed(mode, rules))


def _rules(mode: ModeConfig) -> list[dict[str, Any]]:
    return mode.model_dump(by_alias=True)["rules"]


def _changed(mode: ModeConfig, rules: list[dict[str, Any]]) -> ModeConfig:
    return parse_mode(mode.model_dump(by_alias=True, exclude_unset=True) | {"rules": rules})


@dataclass(frozen=True, slots=True)
class Best:
    """The best set of matches of a snapshot, and whether it is proved to be (else it is the best that was found)."""

    worth: float
    matches: int
    groups: int
    proved: bool


def exact(tickets: Sequence[Ticket], mode: ModeConfig, now: float, seconds: float = 60.0) -> Best | None:
    """Set packing over all matches there could be, by HiGHS; None if there are too many of them."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # pyright: ignore[reportUnknownVariableType]
    from scipy.sparse import csc_matrix

    assembler = assembler_of(mode)
    entries = sorted((assembler.terms.entry(ticket) for ticket in tickets), key=lambda entry: entry.key)
    groups: list[tuple[list[int], float]] = []
    if not _all_groups(assembler, entries, now, groups):
        return None
    if not groups:
        return Best(0.0, 0, 0, True)
    rows = [row for members, _ in groups for row in members]
    columns = [column for column, (members, _) in enumerate(groups) for _ in members]
    matrix = csc_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(entries), len(groups)))
    found: Any = milp(
        -np.array([worth for _, worth in groups]),
        constraints=LinearConstraint(matrix, -np.inf, 1),
        integrality=np.ones(len(groups)),
        bounds=Bounds(0, 1),
        options={"time_limit": seconds, "mip_rel_gap": 1e-4},
    )
    if found.x is None:
        return None
    chosen: list[float] = found.x.tolist()
    return Best(-float(found.fun), sum(share > 0.5 for share in chosen), len(groups), found.status == 0)


def _all_groups(
    assembler: Assembler, entries: Sequence[Entry], now: float, groups: list[tuple[list[int], float]]
) -> bool:
    """Every set of tickets that makes a match, by extending sets that can still become one."""

    def extend(members: list[int], players: int) -> bool:
        for number in range(members[-1] + 1 if members else 0, len(entries)):
            grown = [*members, number]
            size = players + entries[number].size
            if size > assembler.full:
                continue
            group = [entries[one] for one in grown]
            if len(assembler.gather(group[0], group[1:], now)) < len(group):
                continue
            if size >= assembler.least and (made := assembler.made(group, now)):
                groups.append((grown, made.worth))
                if len(groups) > MOST_GROUPS:
                    return False
            if size < assembler.full and not extend(grown, size):
                return False
        return True

    return extend([], 0)
