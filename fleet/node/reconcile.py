"""What a node holds to be so beside what its engine lists: ends that no event told, containers that nobody knows.

Pure. A listing is a moment old when it is compared, so nothing is believed that only one pass has seen: passes are
counted, not time, so that a machine which stood still for an hour concludes nothing from that.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from fleet.node.model import RunState
from fleet.node.runtime import Exited, Observed, RunKey

REMOVED = "The container was removed by someone else."
VANISHED_CODE = -1
_ALIVE = (RunState.BOOTING, RunState.RUNNING)


class Finding(Enum):
    """What is wrong with a run. The value: how many passes in a row must see it before it is believed."""

    ENDED = (2, "it has ended, and no event told")
    VANISHED = (2, "it is not listed any more")
    UNDEAD = (2, "it was told as ended, and runs")
    UNKNOWN = (2, "it runs, or has ended, and is not known here")
    HALF_MADE = (8, "it was made and never started; no launch has come for it")

    @property
    def passes(self) -> int:
        return self.value[0]


Suspect = tuple[Finding, RunKey]


def compare(seen: Iterable[Observed], states: Mapping[RunKey, RunState]) -> dict[Suspect, Observed | None]:
    """Where the engine's list and what is known of runs disagree. Runs that are being launched are left alone."""
    listed = {run.key: run for run in seen}
    found: dict[Suspect, Observed | None] = {}
    for key, run in listed.items():
        finding = _finding(run, states.get(key))
        if finding is not None:
            found[finding, key] = run
    for key, state in states.items():
        if state in _ALIVE and key not in listed:
            found[Finding.VANISHED, key] = None
    return found


def _finding(run: Observed, state: RunState | None) -> Finding | None:
    ended = run.exit_code is not None
    if state is None:
        return Finding.UNKNOWN if run.running or ended else Finding.HALF_MADE
    if state in _ALIVE and not run.running and ended:
        return Finding.ENDED
    return Finding.UNDEAD if state.ended and run.running else None


@dataclass(slots=True)
class Suspicions:
    """How often in a row each disagreement has been seen."""

    _seen: dict[Suspect, int] = field(default_factory=dict[Suspect, int])

    def confirm(self, found: Mapping[Suspect, Observed | None]) -> dict[Suspect, Observed | None]:
        """Those that have been there for long enough."""
        self._seen = {suspect: self._seen.get(suspect, 0) + 1 for suspect in found}
        return {suspect: found[suspect] for suspect, passes in self._seen.items() if passes >= suspect[0].passes}


def end_of(key: RunKey, seen: Observed | None, now: int) -> Exited:
    """The end of a run that no event told. `seen`: as the engine lists it, None if it does not. `now` in ms."""
    if seen is None or seen.exit_code is None:
        return Exited(key, now, VANISHED_CODE, tail=REMOVED)
    return Exited(key, seen.ended_at or now, seen.exit_code, oom=seen.oom)
