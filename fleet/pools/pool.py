"""One pool in memory: its wish, what it runs now, its shelf, its policy's state and its counters."""

from dataclasses import dataclass, field
from typing import Any

from fleet.pools.config import PoolWish
from fleet.pools.lead import LeadState, lead_seconds
from fleet.pools.notices import Told
from fleet.pools.plan import Levels
from fleet.pools.season import Season
from fleet.pools.shelf import Shelf
from fleet.pools.stock import StockDecision, StockPolicy, StockState, arrived, decide
from fleet.store.tables import PoolMinute

MINUTE_MS = 60_000
BACKOFF_FIRST_MS, BACKOFF_MAX_MS = 2_000, 300_000
STEP_S = 10.0


@dataclass(frozen=True, slots=True)
class Product:
    """What the pool's servers are now: the newest ready build with the project's environment and ports."""

    spec: str
    build_id: str
    version: int
    environment: str | None = field(repr=False)  # sealed
    port_configs: list[dict[str, Any]]


@dataclass(slots=True)
class Counts:
    """Of the present minute, or of this manager's life."""

    arrivals: int = 0
    hits: int = 0
    misses: int = 0
    boots: int = 0
    boot_failures: int = 0

    def __bool__(self) -> bool:
        return bool(self.arrivals or self.boots or self.boot_failures)


@dataclass(slots=True)
class Pool:
    """`product` None: no build of that name is ready, so nothing is ordered."""

    wish: PoolWish
    state: StockState
    lead: LeadState
    season: Season = field(default_factory=Season)
    product: Product | None = None
    shelf: Shelf = field(default_factory=Shelf)
    levels: Levels = field(default_factory=lambda: Levels(0, 0))
    decision: StockDecision | None = None
    claimed: int = 0
    failures: int = 0  # in a row
    blocked_until: int = 0
    last_failure: str = ""
    minute: Counts = field(default_factory=Counts)
    total: Counts = field(default_factory=Counts)
    announced: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    told: Told = field(default_factory=Told)

    @property
    def spec(self) -> str | None:
        return self.product.spec if self.product else None

    @property
    def lead_s(self) -> float:
        return lead_seconds(self.lead)

    @property
    def policy(self) -> StockPolicy:
        wish, policy = self.wish, self.wish.policy
        return StockPolicy(
            slo=policy.slo,
            floor=wish.floor,
            ceiling=wish.ceiling,
            hold_s=policy.hold_seconds,
            miss_cost=policy.miss_cost,
            idle_cost_per_hour=policy.idle_cost_per_hour,
            mode=policy.mode,
        )

    def came(self, now: int, hits: int, misses: int) -> None:
        """Claims that arrived together, by what they met."""
        for counts in (self.minute, self.total):
            counts.arrivals += hits + misses
            counts.hits += hits
            counts.misses += misses
        self.state = arrived(self.state, now / 1000, hits + misses, misses, self.lead_s, self.policy)

    def decide(self, now: int) -> None:
        """Ask the policy for new levels."""
        known = [*self.announced, *scheduled(self.wish, now, self.lead_s)]
        self.state, self.decision = decide(self.state, now / 1000, self.lead_s, known, self.policy, self.season)
        self.levels = Levels(self.decision.target, self.decision.keep)

    def failed(self, now: int, why: str) -> None:
        """An entry ended before anyone had it: order again later, and later still if it goes on."""
        self.failures += 1
        self.last_failure = why
        self.minute.boot_failures += 1
        self.total.boot_failures += 1
        self.blocked_until = now + min(BACKOFF_FIRST_MS * 2 ** min(self.failures - 1, 20), BACKOFF_MAX_MS)

    def booted(self) -> None:
        """An entry became warm."""
        self.failures, self.blocked_until = 0, 0
        self.minute.boots += 1
        self.total.boots += 1

    def row(self, region: str, at: int) -> PoolMinute:
        """The minute that ends now, and a new one begins."""
        counts, self.minute = self.minute, Counts()
        self.season.observe(at / 1000, counts.arrivals, MINUTE_MS / 1000)
        spec = self.spec or ""
        return PoolMinute(
            region=region,
            project_id=self.wish.project_id,
            compute_size=self.wish.compute_size,
            build_name=self.wish.build_name,
            at=at,
            arrivals=counts.arrivals,
            hits=counts.hits,
            misses=counts.misses,
            boots=counts.boots,
            boot_failures=counts.boot_failures,
            lead_ms=int(self.lead_s * 1000),
            warm=self.shelf.count(spec, "warm"),
            booting=self.shelf.count(spec, "booting"),
            claimed=self.claimed,
            target=self.levels.target,
        )


def scheduled(wish: PoolWish, now: int, lead_s: float) -> list[tuple[float, float]]:
    """The scheduled events' starts that fall into the time that an order made now, or soon, is for.

    A pair is (time in epoch seconds, expected number), one for each ten seconds of an event.
    """
    begins, ends = now / 1000, now / 1000 + 2 * lead_s + 2 * STEP_S
    found: list[tuple[float, float]] = []
    for event in wish.schedule:
        first, last = event.at.timestamp(), event.at.timestamp() + event.duration_seconds
        at = max(first, first + (begins - first) // STEP_S * STEP_S)
        while at < min(last, ends):
            share = min(STEP_S, last - at) / event.duration_seconds
            found.append((at, event.count * share))
            at += STEP_S
    return found
