"""What a compute size means for a server that has it: as `configs/sizes.yaml` says, or as it said when it still had it.

An operator may remove a size that servers have. They keep what they have; nothing new is started of it.
"""

from collections.abc import Callable

import structlog

from fleet.catalog import Catalog, ComputeSize
from fleet.node.model import RunView

log = structlog.get_logger(__name__)


class RegionSizes:
    """Never raises for a server that is there already."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._learned: dict[str, ComputeSize] = {}
        self._unknown: set[str] = set()

    def offered(self, name: str) -> ComputeSize:
        """For a new start. `BadRequest` if there is no such size (any more)."""
        return self._catalog.size(name)

    def has(self, name: str) -> bool:
        return name in self._catalog.sizes

    def size(self, name: str, run: Callable[[], RunView | None] = lambda: None) -> ComputeSize:
        """For a server that has it already. `run()`: what a node tells of that server, if it does."""
        return self._catalog.known(name) or self._learned.get(name) or self._guess(name, run())

    def _guess(self, name: str, run: RunView | None) -> ComputeSize:
        """Removed before this fleet remembered it: what runs tells what it has; until then it is like most others."""
        if name not in self._unknown:
            self._unknown.add(name)
            log.error("size_unknown", size=name, remedy="put it back into sizes.yaml")
        if run is not None and run.memory_mb:
            size = ComputeSize(name=name, memory_mb=run.memory_mb, cpus=run.cores or 1.0, dedicated=run.cores > 0)
            self._learned[name] = size
            return size
        shared = sorted((size.memory_mb, size.cpus) for size in self._catalog.sizes.values() if not size.dedicated)
        memory_mb, cpus = shared[len(shared) // 2] if shared else (1024, 1.0)
        return ComputeSize(name=name, memory_mb=memory_mb, cpus=cpus)
