"""Demand that is known ahead: a matchmaking queue that will ask for a server, an event at 18:00.

What is announced adds to what is expected; but claims that always come announced must not be expected twice. So it is
learned, for each third of the lead time ahead, which share of the claims had been announced by then, and which
share of what was announced then came. Only the last few bins count, so a queue that falls silent is soon not relied on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

THIRDS = 3
_FADE = 0.8  # of the sums, per bin in which something came or was announced
Announced = Sequence[tuple[float, float]]


def _none() -> list[float]:
    return [0.0] * THIRDS


@dataclass(slots=True)
class Coverage:
    """Changed in place. `ahead`, `before`: what the thirds held when this bin and the last one began."""

    known: list[float] = field(default_factory=_none)  # sums over the last bins, per third
    came: float = 0.0
    ahead: list[float] = field(default_factory=_none)
    before: list[float] = field(default_factory=_none)
    oldest: float = 0.0  # the last third, as of two bins ago
    bin: list[float] = field(default_factory=lambda: [0.0, 0.0])  # seconds, claims

    @property
    def active(self) -> bool:
        """Whether anything was announced lately."""
        return self.oldest > 0 or max(self.known) > 1e-3 or any(self.ahead) or any(self.before)

    def to_json(self) -> dict[str, Any]:
        if not self.active:
            return {}
        return {name: getattr(self, name) for name in self.__slots__}

    @staticmethod
    def from_json(stored: dict[str, Any]) -> "Coverage":
        found = Coverage()
        for name, value in stored.items():
            if name in ("came", "oldest"):
                setattr(found, name, float(value))
            elif name in ("known", "ahead", "before", "bin") and len(value) == len(getattr(found, name)):
                setattr(found, name, [float(x) for x in value])
        return found


def thirds(announced: Announced, at: float, lead_s: float) -> list[float]:
    """The announced count in each third of the lead time; what is overdue belongs to the first."""
    found = _none()
    for when, count in announced:
        if when < at + lead_s and count > 0:
            found[min(THIRDS - 1, max(0, int((when - at) / lead_s * THIRDS)))] += count
    return found


def learn(state: Coverage, seconds: float, count: float, now: list[float], bin_s: float) -> None:
    """`count` claims came in the last `seconds`; `now` is announced at present. Bins are thirds of a lead time."""
    state.bin[0] += seconds
    state.bin[1] += count
    if state.bin[0] < bin_s:
        return
    came, known = state.bin[1], (state.ahead[0], state.before[1], state.oldest)
    if came or any(known):
        state.came = state.came * _FADE + came
        state.known = [total * _FADE + one for total, one in zip(state.known, known, strict=True)]
    state.oldest, state.before, state.ahead = state.before[2], state.ahead, list(now)
    state.bin = [0.0, 0.0]


def combine(state: Coverage, now: list[float], mean: float, variance: float) -> tuple[float, float]:
    """Mean and variance of the lead time's demand: what is announced, and of what else is expected the rest."""
    if not any(now) and not any(state.known):
        return mean, variance
    total = spread = 0.0
    for one, known in zip(now, state.known, strict=True):
        unknown = 1 - min(1.0, known / (state.came + 0.5))
        sure = min(1.0, (state.came + 1.0) / (known + 1.0)) * one
        total += sure + unknown * mean / THIRDS
        # What is covered is known up to its exact moment; what is announced beyond that may fail to come.
        spread += sure * (0.2 + 0.8 * unknown) + unknown * variance / THIRDS
    return total, max(spread, 1e-9)
