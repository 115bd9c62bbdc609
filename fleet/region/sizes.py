"""What a compute size means here: as `configs/sizes.yaml` says, or as it said when a server of it was last started.

An operator may remove a size that servers still have. They keep what they have; nothing new is started of it.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import structlog

from fleet.catalog import Catalog, ComputeSize
from fleet.node.model import RunView

log = structlog.get_logger(__name__)

_KEPT = "compute_sizes"
_FIGURES = {"memory_mb", "cpus", "dedicated", "persistent"}


class Memory(Protocol):
    """What the region's next manager shall know (`region_memory.py`)."""

    def get(self, name: str) -> Any: ...
    def put(self, name: str, value: Any) -> None: ...


class RegionSizes:
    """`memory`: without it, nothing outlives this process."""

    def __init__(self, catalog: Catalog, memory: Memory | None = None) -> None:
        self._catalog = catalog
        self._memory = memory
        self._seen: dict[str, ComputeSize] = {}
        self._unknown: set[str] = set()

    def offered(self, name: str) -> ComputeSize:
        """For a new start. `BadRequest` if there is no such size (any more)."""
        return self._catalog.size(name)

    def has(self, name: str) -> bool:
        return name in self._catalog.sizes

    def size(self, name: str, run: Callable[[], RunView | None] = lambda: None) -> ComputeSize:
        """For a server that has it already: always an answer. `run()`: what a node tells of the server."""
        return self._catalog.sizes.get(name) or self._seen.get(name) or self._recall(name) or self._guess(name, run())

    def remember(self, names: Iterable[str]) -> None:
        """Servers have these sizes: the next manager shall know what they mean."""
        if self._memory is None:
            return
        kept: dict[str, Any] = self._memory.get(_KEPT) or {}
        used = {name: self._catalog.sizes[name].model_dump(include=_FIGURES) for name in names if self.has(name)}
        if any(kept.get(name) != figures for name, figures in used.items()):
            self._memory.put(_KEPT, {**kept, **used})

    def _recall(self, name: str) -> ComputeSize | None:
        kept: dict[str, Any] = (self._memory.get(_KEPT) if self._memory else None) or {}
        if (figures := kept.get(name)) is None:
            return None
        size = self._seen[name] = ComputeSize(name=name, **figures)
        return size

    def _guess(self, name: str, run: RunView | None) -> ComputeSize:
        """Removed before any manager remembered it: what runs tells what it has; until then it is like most others."""
        if name not in self._unknown:
            self._unknown.add(name)
            log.error("size_unknown", size=name, remedy="put it back into sizes.yaml")
        if run is not None and run.memory_mb:
            size = ComputeSize(name=name, memory_mb=run.memory_mb, cpus=run.cores or 1.0, dedicated=run.cores > 0)
            self._seen[name] = size
            return size
        shared = sorted((size.memory_mb, size.cpus) for size in self._catalog.sizes.values() if not size.dedicated)
        memory_mb, cpus = shared[len(shared) // 2] if shared else (1024, 1.0)
        return ComputeSize(name=name, memory_mb=memory_mb, cpus=cpus)
