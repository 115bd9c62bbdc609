"""STUB."""

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class LeadState:
    s: float = 5.0

    def to_json(self) -> dict[str, Any]:
        return {"s": self.s}


def new_lead(d: dict[str, Any] | None = None) -> LeadState:
    return LeadState(d["s"]) if d else LeadState()


def lead_seconds(lead: LeadState) -> float:
    return lead.s


def booted(lead: LeadState, seconds: float) -> LeadState:
    lead.s = 0.8 * lead.s + 0.2 * seconds
    return lead
