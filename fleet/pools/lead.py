"""A pool's own lead time: how long an ordered server takes to be warm, learned from those that came.

How many servers boot at any time depends on the lead time's mean alone (Palm's theorem for M/G/infinity), so a mean is
what the policy needs, not a quantile. It follows recent boots, and one stuck boot does not move it far.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Any

PRIOR_S = 10.0
_PRIOR_WEIGHT = 1.0
_GAIN = 0.05  # about the last forty boots
_FAR = 4.0  # a boot counts as at most this multiple of the present estimate
_LEAST_S, _MOST_S = 0.05, 3600.0


@dataclass(slots=True)
class LeadState:
    """Changed in place by `booted`."""

    mean: float = PRIOR_S
    square: float = 0.0  # mean squared deviation
    seen: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"mean": self.mean, "square": self.square, "seen": self.seen}


def new_lead(stored: dict[str, Any] | None = None) -> LeadState:
    """A fresh estimate, or the stored one; what cannot be read is as if it were not there."""
    try:
        return LeadState(float(stored["mean"]), float(stored["square"]), int(stored["seen"])) if stored else LeadState()
    except (KeyError, TypeError, ValueError):
        return LeadState()


def booted(lead: LeadState, seconds: float) -> LeadState:
    """One server was warm `seconds` after it was ordered."""
    gain = max(_GAIN, 1 / (lead.seen + 1 + _PRIOR_WEIGHT))
    taken = min(max(seconds, _LEAST_S), _MOST_S, _FAR * max(lead.mean, _LEAST_S))
    off = taken - lead.mean
    lead.mean += gain * off
    lead.square = (1 - gain) * (lead.square + gain * off * off)
    lead.seen = min(lead.seen + 1, 1_000_000)
    return lead


def lead_seconds(lead: LeadState) -> float:
    """The mean, and one standard error, since too long costs less than too short."""
    known = min(lead.seen + _PRIOR_WEIGHT, 2 / _GAIN)
    return lead.mean + sqrt(lead.square / known)
