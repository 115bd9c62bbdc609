"""The region's own demand, minute by minute, and the room that should be free for what comes within a node's lead.

A node takes minutes to come, so it is asked for before anyone needs it: `fleet.pools.forecast` says for how many
servers beyond those that run there should be room, this shell says of what sizes, and the scaler sees to it.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping

from fleet.catalog import Catalog
from fleet.pools.config import PoolKey
from fleet.pools.forecast import ForecastState, NodePolicy, SlotForecast, observe, slots_ahead
from fleet.pools.plan import missing
from fleet.pools.pool import MINUTE_MS, Pool, scheduled
from fleet.region.placement import Demand
from fleet.region.region_memory import RegionMemory
from fleet.store.tables import Server
from fleet.times import now_ms

_MOST_SLOTS = 2000
_SIZES_KEPT = 500  # starts whose sizes are remembered


class Forecasting:
    """`lead_s()`: how long a node takes to come, as measured."""

    def __init__(
        self, memory: RegionMemory, catalog: Catalog, pools: Mapping[PoolKey, Pool], lead_s: Callable[[], float]
    ) -> None:
        self._memory = memory
        self._catalog = catalog
        self._pools = pools
        self._lead_s = lead_s
        self._state = ForecastState()
        self._sizes: deque[str] = deque(maxlen=_SIZES_KEPT)
        self._arrivals = 0
        self._minute = now_ms() // MINUTE_MS
        self.last: SlotForecast | None = None

    def load(self) -> None:
        """What an earlier manager has learned."""
        self._state = ForecastState.from_json(self._memory.get("forecast") or {})
        self._sizes.extend(Counter(self._memory.get("sizes") or {}).elements())

    def started(self, size: str, count: int = 1) -> None:
        """Starts have come, hot or cold."""
        self._arrivals += count
        self._sizes.extend([size] * count)

    def pass_time(self, live: Iterable[Server]) -> None:
        """At the end of a minute: note it, and forecast anew."""
        now = now_ms()
        if now // MINUTE_MS == self._minute:
            return
        ended, self._minute = self._minute, now // MINUTE_MS
        used = sum(s.status != "stopped" and not (s.is_pool_server and s.pool_claimed_at is None) for s in live)
        self._state = observe(self._state, ended * MINUTE_MS / 1000, self._arrivals, used)
        self._arrivals = 0
        lead_s = self._lead_s()
        events = [at for pool in self._pools.values() for at in scheduled(pool.wish, now, lead_s)]
        queued = sum(count for pool in self._pools.values() for _, count in pool.announced)
        self._state, self.last = slots_ahead(self._state, now / 1000, lead_s, events, queued, NodePolicy())
        self._memory.put("forecast", self._state.to_json())
        self._memory.put("sizes", dict(Counter(self._sizes)))

    def headroom(self) -> list[Demand]:
        """Servers for which there should be room now, in the sizes that are usual here. None where nobody plays."""
        found = self.last
        if found is None or not self._sizes or not (found.mean or found.explanation["running"]):
            return []
        stock = sum(pool.shelf.staying(pool.spec or "") for pool in self._pools.values())
        slots = min(_MOST_SLOTS, round(found.upper) - stock)  # claims of what stands ready need no room
        sizes = sorted(size for size in self._sizes if size in self._catalog.sizes)
        if not sizes:
            return []
        return [self._demand(f"headroom-{i}", sizes[i * len(sizes) // slots]) for i in range(slots)]

    def orders(self) -> list[Demand]:
        """What the pools want and have not ordered yet, since only so many boot at once."""
        wanted: list[Demand] = []
        for (_, size, build), pool in self._pools.items():
            if size not in self._catalog.sizes:
                continue  # removed: nothing new is started of it
            for i in range(missing(pool.shelf, pool.spec, pool.levels.target, now_ms())):
                wanted.append(self._demand(f"order-{size}-{build}-{i}", size))
        return wanted

    def _demand(self, name: str, size_name: str) -> Demand:
        size = self._catalog.size(size_name)
        shares = 0.0 if size.dedicated else size.cpus
        return Demand(name, size.memory_mb, size.cpus if size.dedicated else 0.0, shares, 1)
