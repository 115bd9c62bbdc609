"""What a good match is worth. docs/matchmaking.md writes the same down in words."""

import math

from fleet.matchmaking.config import ModeConfig
from fleet.matchmaking.model import Quality

WAIT, SPREAD, IMBALANCE, LATENCY = 0.5, 0.4, 0.3, 0.3
LATENCY_MS = 200.0


def gain(mode: ModeConfig, players: int, quality: Quality) -> float:
    """Each player counts 1, and up to a half more for waiting; spread, imbalance and latency take off at most 1.

    Spread counts by the widest window the mode ever allows, latency by 200 ms, waiting by the mode's timeout.
    """
    widest = widest_window(mode)
    spread = min(1.0, quality.spread / widest) if widest else 0.0
    off = SPREAD * spread + IMBALANCE * 2 * quality.imbalance
    off += LATENCY * min(1.0, quality.worst_latency / LATENCY_MS)
    return players * (1 + WAIT * min(1.0, max(0.0, quality.mean_wait) / mode.timeout) - off)


def widest_window(mode: ModeConfig) -> float:
    """The widest the rule of the queue's order ever gets; five times its limit where it grows without end."""
    rule = mode.first_difference
    if rule is None:
        return 0.0
    widest = rule.growth.max
    return max(rule.max_difference, 5 * rule.max_difference if widest is None else widest)


def chance_off(difference: float, variance: float) -> float:
    """|P(win) - 1/2| of two teams whose skills differ by so much: openskill's formula, which counts beta per team."""
    return 0.5 * math.erf(abs(difference) / math.sqrt(2 * variance))
