"""How long a node takes from being asked for to being ready, its builds included: measured, per class. Pure."""

import math
from collections.abc import Mapping
from typing import Any, cast

KEPT = 20


class NodeLeads:
    """An estimate on the safe side: four of five nodes were sooner. Until one was measured, the configured guess."""

    def __init__(self, guesses: Mapping[str, float]) -> None:
        self._guesses = guesses
        self._seen: dict[str, list[float]] = {}

    def record(self, node_class: str, seconds: float) -> None:
        self._seen[node_class] = [*self._seen.get(node_class, ()), round(max(0.0, seconds), 3)][-KEPT:]

    def seconds(self, node_class: str) -> float:
        seen = sorted(self._seen.get(node_class, ()))
        return seen[min(len(seen) - 1, len(seen) * 4 // 5)] if seen else self._guesses.get(node_class, 60.0)

    def to_json(self) -> dict[str, list[float]]:
        return dict(self._seen)

    def load(self, kept: Any) -> None:
        """What an earlier manager measured. What is not of this shape is left out."""
        if isinstance(kept, dict):
            found = {str(name): _seconds(seen) for name, seen in kept.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            self._seen = {name: seen for name, seen in found.items() if seen}


def _seconds(seen: Any) -> list[float]:
    values = cast(list[Any], seen) if isinstance(seen, list) else []
    return [float(one) for one in values if isinstance(one, int | float) and 0 <= one < math.inf][-KEPT:]
