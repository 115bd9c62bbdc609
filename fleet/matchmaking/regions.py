"""Which region a match plays in: the one whose worst latency is least, then whose mean is, then by the votes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fleet.matchmaking.rules import RegionRule

if TYPE_CHECKING:
    from fleet.matchmaking.entry import Entry
    from fleet.matchmaking.model import Player

ANYWHERE = -1
# A player who named regions but measured none is taken to have these latencies, in the order named.
FIRST_MS, NEXT_MS, UNNAMED_MS = 50.0, 40.0, 150.0
STEP_MS = 10.0  # closer together than this latencies are the same, and votes decide


class RegionBook:
    """Regions' names as bits, and for each ticket from when on a region will do for it."""

    def __init__(self, rule: RegionRule | None) -> None:
        self.rule = rule
        self.names: list[str] = []
        self._bits: dict[str, int] = {}

    def bit(self, name: str) -> int:
        number = self._bits.get(name)
        if number is None:
            number = self._bits[name] = len(self.names)
            self.names.append(name)
        return number

    def place(self, entry: "Entry") -> None:
        """Fill in where a ticket may play."""
        players = entry.ticket.players
        named = list(dict.fromkeys(name for player in players for name in (*player.regions, *player.latencies)))
        for name in named:
            costs = [latency(player, name) for player in players]
            entry.worsts[self.bit(name)] = max(costs)
            entry.means[self.bit(name)] = sum(costs) / len(costs)
        entry.best = min(entry.worsts, key=lambda bit: (entry.worsts[bit], self.names[bit]), default=None)
        if self.rule is None or not named:
            return
        reach: list[tuple[float, int]] = []
        for name in named:
            if all(name in player.regions or (not player.regions and _knows(player, name)) for player in players):
                reach.append((entry.born + self._opens(players, name), self.bit(name)))
        entry.reach = tuple(sorted(reach))
        entry.best = min((b for _, b in reach), key=lambda bit: (entry.worsts[bit], self.names[bit]), default=None)
        entry.mask, entry.mask_until = 0, float("-inf")

    def _opens(self, players: Sequence["Player"], name: str) -> float:
        """After how many seconds of waiting the region's latency is accepted by all."""
        rule = self.rule
        if rule is None or rule.max_latency is None:
            return 0.0
        worst = max((player.latencies[name] for player in players if name in player.latencies), default=0.0)
        if worst <= rule.max_latency:
            return 0.0
        growth = rule.growth
        widest = float("inf") if growth.max is None else max(growth.max, rule.max_latency)
        if worst > widest or growth.per_second <= 0:
            return float("inf")
        return growth.after + (worst - rule.max_latency) / growth.per_second

    def mask(self, entry: "Entry", now: float) -> int:
        """The regions that will do for a ticket now, as bits."""
        if now < entry.mask_until:
            return entry.mask
        opened = [bit for at, bit in entry.reach if at <= now]
        entry.mask = sum(1 << bit for bit in opened)
        entry.mask_until = entry.reach[len(opened)][0] if len(opened) < len(entry.reach) else float("inf")
        return entry.mask

    def vote(self, group: Sequence["Entry"], mask: int) -> list[tuple[float, float, int]]:
        """(worst latency, mean latency, region's bit) of all regions that will do, the best first."""
        known = {bit for entry in group for bit in entry.worsts if mask >> bit & 1}
        if not known:
            return []
        players = sum(entry.size for entry in group)
        ranked: list[tuple[float, float, float, int, float]] = []
        for bit in known:
            worst = max(entry.worsts.get(bit, UNNAMED_MS) for entry in group)
            mean = sum(entry.means.get(bit, UNNAMED_MS) * entry.size for entry in group) / players
            ranked.append((worst // STEP_MS, mean // STEP_MS, mean, bit, worst))
        if len(ranked) > 1:
            ranked.sort(key=lambda one: (one[0], one[1], -self._votes(group, one[3]), one[2], self.names[one[3]]))
        return [(worst, mean, bit) for _, _, mean, bit, worst in ranked]

    def _votes(self, group: Sequence["Entry"], bit: int) -> float:
        """A player's first region counts 1, the second a half, and so on."""
        name = self.names[bit]
        return sum(
            1 / (player.regions.index(name) + 1)
            for entry in group
            for player in entry.ticket.players
            if name in player.regions
        )


def _knows(player: "Player", name: str) -> bool:
    return name in player.latencies or not player.latencies


def latency(player: "Player", name: str) -> float:
    """Measured milliseconds, else a guess by the order of liking."""
    measured = player.latencies.get(name)
    if measured is not None:
        return measured
    return FIRST_MS + NEXT_MS * player.regions.index(name) if name in player.regions else UNNAMED_MS
