"""The builds that a region's servers run, as nodes need them. A ready build never changes, so it is read once."""

from collections import OrderedDict
from collections.abc import Callable

from sqlmodel import col, select

from fleet.errors import NotFound
from fleet.node.runtime import BuildRef
from fleet.region.spec import build_ref
from fleet.store.engine import Store
from fleet.store.tables import Build

KEPT = 256


class BuildRefs:
    """`credentials` gives a build's registry login in clear, or None."""

    def __init__(self, store: Store, credentials: Callable[[Build], dict[str, str] | None]) -> None:
        self._store = store
        self._credentials = credentials
        self._known: OrderedDict[str, BuildRef] = OrderedDict()

    async def __call__(self, build_id: str) -> BuildRef:
        """NotFound if there is no such row. Deleted builds are found: running servers keep theirs."""
        found = self._known.get(build_id)
        if found is None:
            row = await self._store.first(select(Build).where(col(Build.build_id) == build_id))
            if row is None:
                raise NotFound(f"There is no build '{build_id}'.", error="Build not found")
            found = self._known[build_id] = build_ref(row, self._credentials(row))
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        return found
