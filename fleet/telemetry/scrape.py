"""What `/metrics` answers: requests, what the database tells, what managers and keepers count, as one text.

Whichever replica is asked, the parts are the same: the requests of all replicas are summed, rows and actors are
there once. Answers are kept for a second and shared, so several scrapers cost one, and so does a flood of them.
"""

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import structlog
from prometheus_client import Metric, generate_latest

from fleet.actors.single_flight import SingleFlight
from fleet.catalog import Catalog
from fleet.store.engine import Store
from fleet.telemetry.families import gauge, merge
from fleet.telemetry.metrics import HttpMetrics
from fleet.telemetry.stored import Stored, read_stored

log = structlog.get_logger(__name__)

KEEP_S = 1.0
PART_S = 8.0  # what one part may take: Prometheus gives a scrape 10 s; then it is missing
Part = TypeVar("Part")


class Actors(Protocol):
    """The actors of a kind that live (region managers, keepers of lobbies), asked for their counts."""

    async def metrics(self, expected: Collection[str]) -> dict[str, list[Metric] | None]:
        """By region or shard; None for one that does not answer in time, or is `expected` and not there. Makes none."""
        ...


class NoActors:
    """For an API without a fleet behind it."""

    async def metrics(self, expected: Collection[str]) -> dict[str, list[Metric] | None]:
        return {}


class _Families(list[Metric]):
    """What `generate_latest` takes."""

    def collect(self) -> Iterable[Metric]:
        return self


def _text(families: list[Metric]) -> bytes:
    return generate_latest(_Families(merge(families)))


class Scrape:
    """One per replica. `text()` never raises: a part that fails is missing, and `fleet_scrape_up` says so."""

    def __init__(
        self,
        http: HttpMetrics,
        store: Store,
        catalog: Catalog,
        home: Path,
        *,
        managers: Actors | None = None,
        keepers: Actors | None = None,
    ) -> None:
        self._http = http
        self._store = store
        self._catalog = catalog
        self._managers = managers or NoActors()
        self._keepers = keepers or NoActors()
        self._home = home
        self._flights = SingleFlight[None, bytes]()
        self._kept = b""
        self._until = 0.0

    async def text(self) -> bytes:
        """Prometheus' text format, at most `KEEP_S` old."""
        if time.monotonic() < self._until:
            return self._kept
        return await self._flights.do(None, self._compute, for_all=True)

    async def _compute(self) -> bytes:
        up: dict[tuple[str, ...], float] = {}
        stored = await self._part("database", up, lambda: read_stored(self._store, self._catalog), Stored())
        regions, lobbies, http, disk = await asyncio.gather(
            self._part("regions", up, lambda: self._regions(stored.live_regions), list[Metric]()),
            self._part("lobbies", up, self._lobbies, list[Metric]()),
            self._part("requests", up, lambda: asyncio.to_thread(self._http.collect), list[Metric]()),
            self._part("disk", up, lambda: asyncio.to_thread(self._disk), list[Metric]()),
        )
        parts = gauge("fleet_scrape_up", "1 if that part of this answer could be had.", up, ("part",))
        # Many pools make a text of a megabyte and more, which takes tenths of a second: not in the replica's loop.
        text = await asyncio.to_thread(_text, [*http, *stored.families, *regions, *lobbies, *disk, parts])
        self._kept, self._until = text, time.monotonic() + KEEP_S
        return text

    async def _part(
        self, name: str, up: dict[tuple[str, ...], float], read: Callable[[], Awaitable[Part]], missing: Part
    ) -> Part:
        try:
            async with asyncio.timeout(PART_S):
                found = await read()
        except Exception as error:
            log.warning("scrape_part_failed", part=name, error=repr(error))
            up[name,] = 0
            return missing
        up[name,] = 1
        return found

    async def _regions(self, expected: Collection[str]) -> list[Metric]:
        answers = await self._managers.metrics(expected)
        return _told(answers, "fleet_region_up", "1 while the region's manager answers.", "region")

    async def _lobbies(self) -> list[Metric]:
        answers = await self._keepers.metrics(())
        return _told(answers, "fleet_lobbies_up", "1 while the keeper of the shard answers.", "shard")

    def _disk(self) -> list[Metric]:
        usage = shutil.disk_usage(self._home)
        return [
            gauge("fleet_home_disk_bytes", "Size of the disk that holds the fleet's home.", {(): usage.total}),
            gauge("fleet_home_disk_free_bytes", "What is free of it.", {(): usage.free}),
        ]


def _told(answers: Mapping[str, list[Metric] | None], up: str, meaning: str, label: str) -> list[Metric]:
    """What the actors told; the silent ones are not `up`."""
    silent = {(name,): 0.0 for name, families in answers.items() if families is None}
    told = [family for families in answers.values() if families for family in families]
    return [gauge(up, meaning, silent, (label,)), *told]
