"""What a project holds of what tenants share: streams, waits, uploads. Counted over all replicas (`places.py`)."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fleet.errors import FleetError, TooMany
from fleet.limits.limiter import tag_of
from fleet.limits.names import ShareName
from fleet.limits.places import SharedPlaces
from fleet.projects.plans import plan_book
from fleet.settings import FleetSettings

_SAID: dict[ShareName, str] = {
    "log_streams": "streams of logs open. Close one, or read pages with start_time",
    "log_reads": "reads of logs and metrics under way. Wait for one to end",
    "event_streams": "event streams open. Close one, or filter in one",
    "player_streams": "streams of players open. Poll, and send heartbeats",
    "waits": "requests that wait for a status. Ask without wait_for",
    "uploads": "uploads under way. Wait for one to end",
    "exports": "downloads of its export under way. Wait for one to end",
    "builds": "builds that are uploaded or processed. Wait for one to end",
}
_PER_KEY: dict[ShareName, ShareName] = {
    "log_streams": "log_streams_per_key",
    "event_streams": "event_streams_per_key",
}


_STREAMS = frozenset[ShareName]({"log_streams", "event_streams", "player_streams"})


def too_many(name: ShareName, held: int, who: str = "The project has") -> TooMany:
    """The refusal of one more."""
    return TooMany(f"{who} {held} {_SAID[name]}.", error="Too many streams" if name in _STREAMS else None)


class _Place(NamedTuple):
    tag: int
    limit: int
    said: str


class Hold:
    """Places that somebody has. Given back by `release`, at the latest when nobody knows the hold any more: a request
    may go away before its answer is begun."""

    def __init__(self, places: SharedPlaces) -> None:
        self._places = places
        self._tags: list[int] = []

    def take(self, place: _Place) -> int | None:
        held = self._places.enter(place.tag, place.limit)
        if held is None:
            self._tags.append(place.tag)
        return held

    def release(self) -> None:
        """Again changes nothing."""
        while self._tags:
            self._places.leave(self._tags.pop())

    def __del__(self) -> None:
        self.release()


class Shares:
    """One per replica. `limit_of(plan, name)`: how many a project of that plan may have."""

    def __init__(self, places: SharedPlaces, limit_of: Callable[[str, ShareName], int]) -> None:
        self._places = places
        self._limit_of = limit_of

    def limit(self, plan: str, name: ShareName) -> int:
        return self._limit_of(plan, name)

    def take(self, project_id: str, plan: str, name: ShareName, key: str = "") -> Hold:
        """A place of the project and, where that has a limit, of its key. `TooMany` if there is none."""
        hold = Hold(self._places)
        places = [_Place(_tag(name, project_id), self._limit_of(plan, name), "The project has")]
        if key and (per_key := _PER_KEY.get(name)) is not None:
            places.append(_Place(_tag(name, "key", key), self._limit_of(plan, per_key), "This key has"))
        for place in places:
            held = hold.take(place)
            if held is not None:
                hold.release()
                raise too_many(name, held, place.said)
        return hold

    @contextmanager
    def held(self, project_id: str, plan: str, name: ShareName, key: str = "") -> Generator[None]:
        """A place while inside."""
        hold = self.take(project_id, plan, name, key)
        try:
            yield
        finally:
            hold.release()

    def count(self, project_id: str, name: ShareName) -> int:
        """How many the project has now."""
        return self._places.held(_tag(name, project_id))


def open_shares(settings: FleetSettings, folder: Path | None = None) -> Shares:
    """Over the counts of this node in `folder`."""
    places = SharedPlaces((folder or settings.home / "limits") / "places")
    return Shares(places, partial(limit_of, settings))


def limit_of(settings: FleetSettings, plan: str, name: ShareName) -> int:
    """What a project of that plan may have at once: the plan's word, else the setting."""
    usual: int = getattr(settings.shares, name)
    try:
        return plan_book(settings.plans_config).get(plan).shares.get(name, usual)
    except FleetError:  # what needs the plan says so
        return usual


def _tag(*words: str) -> int:
    return tag_of("\0".join(("share", *words)).encode())
