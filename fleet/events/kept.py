"""From where on the journals are whole: what retention has deleted lies before."""

from dataclasses import dataclass, replace
from typing import Any

from fleet.errors import FleetError
from fleet.events.model import Cursor, Position
from fleet.store.engine import Store
from fleet.store.tables import Job

JOB = "retention"
_NOTHING = Position(0, 0)


class PositionTooOld(FleetError):
    status = 410
    error = "Position too old"


@dataclass(frozen=True, slots=True)
class Kept:
    """The newest entry of each journal that has been deleted. Entries before it may be missing, none after it is."""

    server: Position = _NOTHING
    project: Position = _NOTHING

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Kept":
        """From a job's state, as `state` made it."""
        return cls(*(Position(*state.get(name, _NOTHING)) for name in ("server", "project")))

    def state(self) -> dict[str, Any]:
        return {"server": list(self.server), "project": list(self.project)}

    def without(self, server: bool, place: Position) -> "Kept":
        """After an entry at that place has been deleted."""
        if server:
            return replace(self, server=max(self.server, place))
        return replace(self, project=max(self.project, place))

    def covers(self, cursor: Cursor) -> bool:
        """Whether a reader who goes on there misses nothing."""
        return cursor.server >= self.server and cursor.project >= self.project


def state_of(job: Job | None) -> dict[str, Any]:
    return (job.state if job is not None else None) or {}


async def check_kept(store: Store, cursor: Cursor) -> None:
    """`PositionTooOld` if entries after it have been deleted. Who begins at the very beginning has what is kept."""
    if cursor == Cursor(_NOTHING, _NOTHING):
        return
    async with store.read() as session:
        job = await session.get(Job, JOB)
    if not Kept.of(state_of(job)).covers(cursor):
        raise PositionTooOld(
            "Events after this position are not kept any more. Read the present state (servers, builds), and follow "
            "from now on: leave the position out."
        )
