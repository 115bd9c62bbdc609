"""What a run used over time, in bounded memory: counters in, series of means out. Pure: the caller brings the time.

Three rings: 15 s steps for an hour, 60 s for six, 300 s for a day. Values are 32-bit floats, so a run takes at most
25 KB however long it lives, and little while it is young.
"""

import math
from array import array
from dataclasses import dataclass

FIELDS = ("cpu_percent", "memory_mb", "network_rx_bytes_per_s", "network_tx_bytes_per_s", "connections")
TIERS = ((15, 240), (60, 360), (300, 288))
Points = list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Usage:
    """One look at a run. CPU and bytes are counted since its start; None where they cannot be told apart."""

    cpu_ns: int
    memory_bytes: int
    rx_bytes: int | None
    tx_bytes: int | None
    connections: int


class _Ring:
    """Means over `step_s`, the last `size` of them, and the step under way."""

    def __init__(self, step_s: int, size: int) -> None:
        self.step_s, self._size = step_s, size
        self._slots = array("L")
        self._values = [array("f") for _ in FIELDS]
        self._next = 0
        self._slot = -1
        self._sums = [0.0] * len(FIELDS)
        self._counts = [0] * len(FIELDS)

    def add(self, at_s: float, values: list[float]) -> None:
        slot = max(int(at_s // self.step_s), self._slot)  # a clock may be put back a little
        if slot != self._slot:
            self._close()
            self._slot = slot
        for n, value in enumerate(values):
            if not math.isnan(value):
                self._sums[n] += value
                self._counts[n] += 1

    def _close(self) -> None:
        if any(self._counts):
            self._put(self._slot, self._means())
        self._sums = [0.0] * len(FIELDS)
        self._counts = [0] * len(FIELDS)

    def _put(self, slot: int, means: list[float]) -> None:
        if len(self._slots) < self._size:
            self._slots.append(slot)
            for ring, value in zip(self._values, means, strict=True):
                ring.append(value)
            return
        self._slots[self._next] = slot
        for ring, value in zip(self._values, means, strict=True):
            ring[self._next] = value
        self._next = (self._next + 1) % self._size

    def _means(self) -> list[float]:
        return [total / n if n else math.nan for total, n in zip(self._sums, self._counts, strict=True)]

    def rows(self, since_s: float) -> list[tuple[int, list[float]]]:
        """(start of the step, values) in order of time."""
        order = [*range(self._next, len(self._slots)), *range(self._next)]
        rows = [(self._slots[i] * self.step_s, [ring[i] for ring in self._values]) for i in order]
        if any(self._counts):
            rows.append((self._slot * self.step_s, self._means()))
        return [row for row in rows if row[0] + self.step_s > since_s]

    def nbytes(self) -> int:
        return sum(ring.itemsize * len(ring) for ring in (self._slots, *self._values))


class Series:
    """Of one run. A clock that was set back begins a new series, since times would repeat."""

    def __init__(self) -> None:
        self._rings = [_Ring(step_s, size) for step_s, size in TIERS]
        self._last: tuple[float, Usage] | None = None
        self._newest_s = 0.0

    def add(self, at_ms: int, tick_s: float, usage: Usage) -> None:
        """`tick_s`: a clock that only goes on, for rates."""
        at_s = at_ms / 1000
        if at_s < self._newest_s - TIERS[0][0]:
            self._rings = [_Ring(step_s, size) for step_s, size in TIERS]
            self._newest_s = at_s
        self._newest_s = max(self._newest_s, at_s)
        values = _values(self._last, tick_s, usage)
        self._last = (tick_s, usage)
        for ring in self._rings:
            ring.add(at_s, values)

    def read(self, now_ms: int, period_s: int, step_s: int) -> tuple[int, dict[str, Points]]:
        """(step, series of (unix seconds, mean)). The step is coarser than asked where nothing finer is kept."""
        ring = _ring_for(self._rings, period_s, step_s)
        step_s = max(step_s, ring.step_s)
        since_s = now_ms / 1000 - period_s
        series: dict[str, Points] = {}
        rows = ring.rows(since_s)
        for n, name in enumerate(FIELDS):
            series[name] = _averaged([(at, values[n]) for at, values in rows], step_s)
        return step_s, series

    def nbytes(self) -> int:
        return sum(ring.nbytes() for ring in self._rings)


def empty() -> dict[str, Points]:
    return {name: [] for name in FIELDS}


def _ring_for(rings: list[_Ring], period_s: int, step_s: int) -> _Ring:
    """The coarsest that is fine enough among those that reach back far enough, else the finest of these."""
    reaching = [ring for ring, (tier_s, size) in zip(rings, TIERS, strict=True) if tier_s * size >= period_s] or rings[
        -1:
    ]
    fine = [ring for ring in reaching if ring.step_s <= step_s]
    return fine[-1] if fine else reaching[0]


def _values(last: tuple[float, Usage] | None, tick_s: float, usage: Usage) -> list[float]:
    """In the order of FIELDS. Rates need two looks; a counter that went back (a process ended) is no rate."""
    cpu = rx = tx = math.nan
    if last is not None and tick_s > last[0]:
        seconds, before = tick_s - last[0], last[1]
        cpu = _rate(before.cpu_ns, usage.cpu_ns, seconds) / 1e7
        rx = _rate(before.rx_bytes, usage.rx_bytes, seconds)
        tx = _rate(before.tx_bytes, usage.tx_bytes, seconds)
    return [cpu, usage.memory_bytes / (1 << 20), rx, tx, float(usage.connections)]


def _rate(before: int | None, now: int | None, seconds: float) -> float:
    if before is None or now is None or now < before:
        return math.nan
    return (now - before) / seconds


def _averaged(points: Points, step_s: int) -> Points:
    """Means over steps of `step_s`; what was not measured is left out."""
    groups: dict[int, list[float]] = {}
    for at, value in points:
        if not math.isnan(value):
            groups.setdefault(at // step_s * step_s, []).append(value)
    return [(at, round(sum(values) / len(values), 3)) for at, values in groups.items()]
