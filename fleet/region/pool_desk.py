"""The manager's counter for warm servers: takes batches of claims, has them committed, and tells nodes and games.

The strategy of a claim: replicas send what has gathered while their last call was under way, so one call carries many
claims. All of a batch are decided in memory, without waiting; their rows (and those of the replacements) go into one
transaction with whatever else the manager has to write; then all are answered. A claim so costs its share of an actor
call and of a commit, and no two claims can meet in between.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from fleet.catalog import load_catalog
from fleet.errors import FleetError
from fleet.faults import crash_point
from fleet.node.model import RunView
from fleet.pools.claim import ClaimCall
from fleet.pools.explain import explain
from fleet.pools.pool import Pool
from fleet.projects.plans import plan_book
from fleet.region.books import Books
from fleet.region.execute import Executor
from fleet.region.metrics import RegionMetrics
from fleet.region.plan import current
from fleet.region.pool_keeper import Given, PoolKeeper
from fleet.region.pool_metrics import PoolSample
from fleet.region.pool_notices import notice_statements
from fleet.region.pool_store import PoolStore
from fleet.settings import FleetSettings
from fleet.store.commit import row_values
from fleet.store.engine import Store
from fleet.store.tables import Server
from fleet.times import now_ms

log = structlog.get_logger(__name__)

_THAW_S = 5.0


class PoolDesk:
    """`commit` writes the books and tells; `settle` also launches what is queued; `plan_one` plans a server; `stored`
    reads an ended row."""

    def __init__(
        self,
        region: str,
        store: Store,
        books: Books,
        executor: Executor,
        settings: FleetSettings,
        metrics: RegionMetrics,
        *,
        commit: Callable[[], Awaitable[None]],
        settle: Callable[[], Coroutine[Any, Any, None]],
        plan_one: Callable[[Server], None],
        stored: Callable[[str], Awaitable[Server | None]],
        draining: Callable[[], list[str]],
    ) -> None:
        self._region = region
        self._books = books
        self._executor = executor
        self._commit = commit
        self._settle = settle
        self._stored = stored
        self._draining = draining
        self._plan_one = plan_one
        self._metrics = metrics
        self.starting: Callable[[str], bool] = lambda _: False  # whether a cold start of that id is under way
        plans = plan_book(settings.plans_config)
        self.keeper = PoolKeeper(
            region, PoolStore(store, region, plans, settings.home), books, settings.pools, self, executor.queued.append
        )

    async def load(self) -> None:
        """Before the first command: the pools, and where each of their servers stands."""
        await self.keeper.load()

    async def claim(self, calls: list[ClaimCall]) -> list[dict[str, Any] | None]:
        """The row of the warm server that each call has now, on disk; None where none fits."""
        began = time.perf_counter()
        ended = {call.op_id for call in calls if call.once and await self._stored(call.op_id) is not None}
        given = self._claim(calls, ended)
        crash_point("claim.decided")
        await self._commit()
        crash_point("claim.committed")
        rows = await asyncio.gather(*(self._hand_over(call, one) for call, one in zip(calls, given, strict=True)))
        crash_point("claim.told")
        self._executor.spawn(self._settle())
        for one, row in zip(given, rows, strict=True):
            if one is not None and row is not None:
                self._metrics.started("hot")
                self._metrics.claimed("frozen" if one.frozen else "hot", time.perf_counter() - began)
        return rows

    def _claim(self, calls: list[ClaimCall], ended: set[str]) -> list[Given | None]:
        """Nothing for those that have gone cold: their server is the one of their own id."""
        if not any(call.once for call in calls):
            return self.keeper.claim(calls, now_ms())
        cold = {
            call.op_id
            for call in calls
            if call.once and (call.op_id in ended or call.op_id in self._books.live or self.starting(call.op_id))
        }
        given = iter(self.keeper.claim([call for call in calls if call.op_id not in cold], now_ms()))
        return [None if call.op_id in cold else next(given) for call in calls]

    async def claimed_by(self, op_id: str) -> dict[str, Any] | None:
        """The row of the warm server that a start of this id has been given, if it has."""
        instance_id = self.keeper.claims.get(op_id)
        if instance_id is None:
            return None
        server = self._books.live.get(instance_id) or await self._stored(instance_id)
        return row_values(server) if server is not None else None

    async def _hand_over(self, call: ClaimCall, given: Given | None) -> dict[str, Any] | None:
        """Wake the game if it is frozen, and tell it whose it is.

        Telling may fail and is then only late: a game is told again when its node says hello.
        """
        if given is None:
            return None
        server = self._books.live.get(given.instance_id)
        if server is None:  # claimed by an earlier call of the same op, and ended since
            stored = await self._stored(given.instance_id)
            return row_values(stored) if stored is not None else None
        if given.frozen and not await self._wake(server):
            self.keeper.give_up(call.op_id)
            return None
        self._executor.tell_game(server)
        return row_values(server)

    async def _wake(self, server: Server) -> bool:
        try:
            async with asyncio.timeout(_THAW_S):
                await self._executor.ask(server.node_id or "", "thaw", current(server))
        except (FleetError, TimeoutError) as error:
            log.error("a frozen game did not wake", server=server.instance_id, error=repr(error))
            detail = "It was frozen and could not be woken."
            self._executor.end(server, now_ms(), "start_failed", "SHUTDOWN_SIGNAL", detail, None, gone=False)
            self._plan_one(server)
            await self._commit()
            return False
        return True

    async def refresh(self, project_id: str | None) -> None:
        """A project's settings or builds have changed."""
        await self.keeper.refresh(project_id)
        await self._settle()

    async def round(self) -> None:
        """Builds and wishes again, decisions, upkeep, the minute's row. Begun again every few seconds."""
        await self.keeper.refresh()
        now = now_ms()
        for server in self.keeper.strays():
            self.retire(server, now, "pool_replaced", "Its pool is not wished any more.")
        self.keeper.plan(now, draining=self._draining())
        self._books.write(self.keeper.minute(now) + notice_statements(self._region, self.keeper.pools(), now))
        await self._settle()

    def observe(self, view: RunView) -> None:
        """A node has told of a run."""
        server = self._books.live.get(view.key.instance_id)
        if server is None or not server.is_pool_server or server.pool_claimed_at is not None:
            return
        if server.status == "running" and current(server) == view.key and not view.state.ended:
            self.keeper.watch(server, health="warm" if view.well else "ailing", frozen=view.frozen)

    def refill(self) -> None:
        self.keeper.refill(now_ms())

    def views(self, project_id: str) -> list[dict[str, Any]]:
        """Every pool of the project with its inputs, decision and stock."""
        now = now_ms()
        pools = [pool for key, pool in self.keeper.pools().items() if key[0] == project_id]
        return [explain(self._region, pool, now, _cost_per_hour(pool)) for pool in pools]

    def samples(self) -> list[PoolSample]:
        """The pools for Prometheus."""
        return [_sample(pool) for pool in self.keeper.pools().values()]

    # Hands of the keeper ----------------------------------------------------------------------------------------

    def retire(self, server: Server, now: int, reason: str, detail: str) -> None:
        """End an unclaimed server; its container follows when that is on disk."""
        if server.pool_claimed_at is not None or server.status == "stopped":
            return
        self._executor.end(server, now, reason, "SHUTDOWN_SIGNAL", detail, None, gone=False)
        self._plan_one(server)

    def freeze(self, server: Server, frozen: bool) -> None:
        """Pause or wake an idle game."""
        if server.node_id:
            method = "freeze" if frozen else "thaw"
            self._executor.command([(server.node_id, method, (current(server),))])


def _sample(pool: Pool) -> PoolSample:
    wish, spec, decision, total = pool.wish, pool.spec or "", pool.decision, pool.total
    return PoolSample(
        size=wish.compute_size,
        build_tag=wish.build_name,
        target=pool.levels.target,
        warm=pool.shelf.count(spec, "warm"),
        booting=pool.shelf.count(spec, "booting"),
        claimed=pool.claimed,
        frozen=sum(entry.frozen for entry in pool.shelf.entries()),
        forecast=decision.expected_claims if decision else 0.0,
        expected_hit_rate=decision.expected_hit_rate if decision else None,
        observed_hit_rate=total.hits / total.arrivals if total.arrivals else None,
        arrivals=total.arrivals,
        hits=total.hits,
        misses=total.misses,
        lead_seconds=pool.lead_s,
        cost_per_hour=_cost_per_hour(pool) * len(pool.shelf),
        project_id=wish.project_id,
        slo=wish.policy.slo,
    )


def _cost_per_hour(pool: Pool) -> float:
    """Of one idle server, by configs/prices.yaml."""
    return load_catalog().size(pool.wish.compute_size).cost_per_hour
