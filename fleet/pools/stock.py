"""STUB until helper policy lands."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class StockPolicy:
    slo: float = 0.99
    floor: int = 1
    ceiling: int | None = None
    hold_s: float = 600
    miss_cost: float | None = None
    idle_cost_per_hour: float | None = None
    mode: Literal["auto", "fixed", "shadow"] = "auto"


@dataclass(slots=True)
class StockState:
    at: float
    rate: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {"at": self.at, "rate": self.rate}

    @staticmethod
    def from_json(d: dict[str, Any]) -> "StockState":
        return StockState(d["at"], d["rate"])


def new_state(at: float) -> StockState:
    return StockState(at)


@dataclass(frozen=True, slots=True)
class StockDecision:
    target: int
    keep: int
    auto_target: int
    expected_hit_rate: float
    explanation: dict[str, Any] = field(default_factory=dict[str, Any])


def arrived(state: StockState, at: float, count: int, misses: int, lead_s: float, policy: StockPolicy) -> StockState:
    state.rate = state.rate * math.exp(-(max(0.0, at - state.at)) / 90) + count / 90
    state.at = at
    return state


def decide(
    state: StockState, at: float, lead_s: float, announced: Sequence[tuple[float, float]], policy: StockPolicy
) -> tuple[StockState, StockDecision]:
    m = state.rate * math.exp(-(max(0.0, at - state.at)) / 90) * lead_s
    s = math.ceil(m + 2.5 * math.sqrt(m)) + 1
    hi = policy.ceiling if policy.ceiling is not None else s
    t = min(max(s, policy.floor), hi)
    if policy.mode != "auto":
        t = policy.floor
    return state, StockDecision(t, t, s, 0.99, {"rate": state.rate})
