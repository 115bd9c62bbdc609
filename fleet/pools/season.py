"""A profile over the week: what is usual at this time of day, and on this weekday at this time.

Learned online from counts (or levels) with the time they cover; its size is fixed. A slot of the week trusts its own
past as far as it has one, then the same time on other days, then everything. Weeks are forgotten by half.
"""

from dataclasses import dataclass, field
from typing import Any

_DAY, _WEEK = 86_400.0, 604_800.0
SLOT_S = 1800.0
_PER_DAY, _PER_WEEK = int(_DAY / SLOT_S), int(_WEEK / SLOT_S)
_KEEP_WEEK, _KEEP_DAY = 0.6, 0.75  # what a visit to a slot leaves of the visits before
_TRUST_DAY = 0.7  # in visits: weight of the time of day beside the weekday's own past


def _zeros(length: int) -> list[float]:
    return [0.0] * length


@dataclass(slots=True)
class Season:
    """Changed in place by `observe`. Values are per second where counts are given."""

    week: list[float] = field(default_factory=lambda: _zeros(_PER_WEEK))
    week_seen: list[float] = field(default_factory=lambda: _zeros(_PER_WEEK))  # visits, forgotten
    day: list[float] = field(default_factory=lambda: _zeros(_PER_DAY))
    day_seen: list[float] = field(default_factory=lambda: _zeros(_PER_DAY))
    slot: int = -1  # the absolute slot under way
    value: float = 0.0
    seconds: float = 0.0

    def observe(self, at: float, value: float, seconds: float) -> None:
        """`value` came in the `seconds` from `at` on. A clock that jumps begins a new slot."""
        slot = int(at // SLOT_S)
        if slot != self.slot:
            self._close()
            self.slot = slot
        self.value += value
        self.seconds += seconds

    def _close(self) -> None:
        if self.slot >= 0 and self.seconds >= SLOT_S / 3:
            rate = self.value / self.seconds
            _visit(self.week, self.week_seen, self.slot % _PER_WEEK, rate, _KEEP_WEEK)
            _visit(self.day, self.day_seen, self.slot % _PER_DAY, rate, _KEEP_DAY)
        self.value = self.seconds = 0.0

    def rate(self, at: float) -> float | None:
        """What is usual at that time; None where nothing is known. Between the middles of slots it is a line."""
        place = at / SLOT_S - 0.5
        first = int(place // 1)
        one, two = self._slot(first), self._slot(first + 1)
        if one is None or two is None:
            return None
        share = place - first
        return one * (1 - share) + two * share

    def _slot(self, slot: int) -> float | None:
        day_seen, week_seen = self.day_seen[slot % _PER_DAY], self.week_seen[slot % _PER_WEEK]
        if day_seen <= 0:
            return None
        day, week = self.day[slot % _PER_DAY], self.week[slot % _PER_WEEK]
        return (week * week_seen + day * _TRUST_DAY) / (week_seen + _TRUST_DAY)

    def ahead(self, at: float, seconds: float) -> float | None:
        """The usual mean rate over the `seconds` from `at` on."""
        parts = (self.rate(at), self.rate(at + seconds / 2), self.rate(at + seconds))
        if parts[0] is None or parts[1] is None or parts[2] is None:
            return None
        return (parts[0] + 4 * parts[1] + parts[2]) / 6

    def to_json(self) -> dict[str, Any]:
        return {
            "week": _short(self.week),
            "week_seen": _short(self.week_seen),
            "day": _short(self.day),
            "day_seen": _short(self.day_seen),
            "now": [self.slot, self.value, self.seconds],
        }

    @staticmethod
    def from_json(stored: dict[str, Any]) -> "Season":
        """What cannot be read begins anew."""
        season = Season()
        lists = [[float(x) for x in stored.get(name, [])] for name in ("week", "week_seen", "day", "day_seen")]
        if [len(one) for one in lists] == [_PER_WEEK, _PER_WEEK, _PER_DAY, _PER_DAY]:
            season.week, season.week_seen, season.day, season.day_seen = lists
            slot, season.value, season.seconds = stored.get("now", (-1, 0.0, 0.0))
            season.slot = int(slot)
        return season


def _visit(values: list[float], seen: list[float], place: int, rate: float, keep: float) -> None:
    before = seen[place] * keep
    values[place] = (values[place] * before + rate) / (before + 1)
    seen[place] = before + 1


def _short(values: list[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
