"""Telling a project which of its matchmaking rules count as not met, without telling it a thousand times."""

from collections.abc import Callable
from typing import Protocol

from fleet.lobbies.queues import QueueKey
from fleet.matchmaking import Faults
from fleet.times import now_ms

AGAIN_MS = 600_000  # between two events of one queue
MOST = 10  # queues of one project that are told of in that time


class Note(Protocol):
    """`Books.note`."""

    def __call__(self, project_id: str, subject: str, what: str, at: int, **data: object) -> None: ...


class Unmet:
    """Each fault is counted; of each queue the first is told, with its rule, every ten minutes at most."""

    def __init__(self, note: Note, count: Callable[[str], None], clock: Callable[[], int] = now_ms) -> None:
        self._note = note
        self._count = count
        self._clock = clock
        self._told: dict[str, dict[tuple[str, str], int]] = {}  # project -> config and mode -> when

    def heard(self, key: QueueKey, faults: Faults) -> None:
        """These rules of the queue were not evaluated."""
        for fault in faults.values():
            self._count(fault.kind)
        project_id, config, mode = key
        if faults and self._due(project_id, (config, mode)):
            place, fault = min(faults.items())
            rule = place if place >= 0 else None
            self._note(project_id, config, "rule_not_met", self._clock(), mode=mode, rule=rule, why=fault.why)

    def _due(self, project_id: str, queue: tuple[str, str]) -> bool:
        now = self._clock()
        told = {one: at for one, at in self._told.get(project_id, {}).items() if now - at < AGAIN_MS}
        due = queue not in told and len(told) < MOST
        self._told[project_id] = told | ({queue: now} if due else {})
        if len(self._told) > 1_000:
            fresh = {one: at for one, at in self._told.items() if any(now - when < AGAIN_MS for when in at.values())}
            self._told = fresh
        return due
