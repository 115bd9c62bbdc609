"""What a region has learned about itself and its next manager shall know: named values in one row."""

from typing import Any

from sqlalchemy import delete, insert
from sqlmodel import col

from fleet.region.books import Books
from fleet.store.commit import row_values
from fleet.store.engine import Store
from fleet.store.tables import RegionDemand
from fleet.times import now_ms


class RegionMemory:
    """Values are plain JSON. Written with the next commit."""

    def __init__(self, region: str, store: Store, books: Books) -> None:
        self._region = region
        self._store = store
        self._books = books
        self._state: dict[str, Any] = {}

    async def load(self) -> None:
        async with self._store.read() as session:
            row = await session.get(RegionDemand, self._region)
        self._state = dict(row.state or {}) if row else {}

    def get(self, name: str) -> Any:
        """None if nothing of that name was kept."""
        return self._state.get(name)

    def put(self, name: str, value: Any) -> None:
        self._state[name] = value
        row = RegionDemand(region=self._region, state=self._state, updated_at=now_ms())
        mine = delete(RegionDemand).where(col(RegionDemand.region) == self._region)
        self._books.write([(mine, None), (insert(RegionDemand), [row_values(row)])])
