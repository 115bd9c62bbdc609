"""The manager's parts, made and connected in one place."""

import os
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import structlog

from fleet.builds.secrets import registry_credentials
from fleet.catalog import load_catalog
from fleet.node.model import Hello, RunView
from fleet.region.agents import agents_of
from fleet.region.attention import Attention
from fleet.region.books import Books
from fleet.region.build_refs import BuildRefs
from fleet.region.capacity import CapacityPolicy
from fleet.region.deadlines import Deadlines
from fleet.region.execute import Executor
from fleet.region.feed import StatusBell
from fleet.region.forecasting import Forecasting
from fleet.region.leases import Leases
from fleet.region.log_desk import LogDesk
from fleet.region.metrics import RegionMetrics
from fleet.region.model import Policy
from fleet.region.nodes_config import load_nodes_config
from fleet.region.pool_desk import PoolDesk
from fleet.region.preparing import Preparation
from fleet.region.region_memory import RegionMemory
from fleet.region.report import Report
from fleet.region.runs import Runs
from fleet.region.scaling import Scaler
from fleet.region.secrets import SecretsOf
from fleet.region.silence import SilencePolicy
from fleet.settings import FleetSettings
from fleet.store.commit import GroupCommit
from fleet.store.engine import Store
from fleet.store.tables import Server
from fleet.times import now_ms

log = structlog.get_logger(__name__)


def policy_of(settings: FleetSettings) -> Policy:
    limits, restarts = settings.servers, settings.restarts
    return Policy(
        ready_deadline_ms=int(limits.ready_deadline_s * 1000),
        queue_deadline_ms=int(limits.queue_deadline_s * 1000),
        node_lost_ms=int(limits.node_lost_s * 1000),
        node_unseen_ms=int(limits.node_unseen_s * 1000),
        backoff_first_ms=int(restarts.backoff_first_s * 1000),
        backoff_max_ms=int(restarts.backoff_max_s * 1000),
        max_crashes=restarts.max_crashes,
        crash_window_ms=int(restarts.window_s * 1000),
        watching_since=now_ms(),
        prepare_deadline_ms=int(limits.prepare_deadline_s * 1000),
        create_deadline_ms=int(limits.create_deadline_s * 1000),
    )


def capacity_policy(settings: FleetSettings) -> CapacityPolicy:
    scaling = settings.scaling
    away_ms = int(settings.servers.node_lost_s * 1000)
    return CapacityPolicy(int(scaling.surplus_s * 1000), int(scaling.unneeded_s * 1000), away_ms)


def die(error: BaseException) -> None:
    """End this process: Ray starts a successor, which rebuilds from the database."""
    log.error("the manager ends; its successor rebuilds", error=repr(error), pid=os.getpid())
    os._exit(1)


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the parts call back, all of it the manager's."""

    on_sync: Callable[[Hello], Awaitable[None]]
    on_events: Callable[[tuple[RunView, ...]], Awaitable[None]]
    on_silent: Callable[[str], None]
    on_lost: Callable[[str], Awaitable[None]]
    due: Callable[[Server], None]
    status_of: Callable[[str], str | None]
    commit: Callable[[], Awaitable[None]]
    settle: Callable[[], Coroutine[Any, Any, None]]
    spawn_settle: Callable[[], None]
    plan_one: Callable[[Server], None]
    stored: Callable[[str], Awaitable[Server | None]]
    find: Callable[[str], Awaitable[Server | None]]


class Parts:
    """Made within the manager's event loop, before anything is loaded."""

    def __init__(self, region: str, settings: FleetSettings, store: Store, epoch: int, hooks: Hooks) -> None:
        catalog, nodes = load_catalog(), load_nodes_config(settings.node_config)
        self.enabled = region in nodes.enabled
        if not self.enabled:
            log.warning("region_removed_but_in_use", region=region)  # what lives here goes on; nothing new is started
            nodes = nodes.model_copy(update={"regions": (*nodes.enabled, region)})
        self._policy = policy_of(settings)
        self.metrics = RegionMetrics(region, lambda: self.report.sample())
        self.commits = GroupCommit(store, region, epoch, die, self.metrics.commit)
        self.attention = Attention(self.commits.steady_since)
        self.books = Books(self.metrics.stepped)
        self.runs = Runs()
        self.bell = StatusBell(hooks.status_of)
        self.deadlines = Deadlines(lambda: self.policy, hooks.due)
        self.leases = Leases(
            region,
            epoch,
            agents_of(settings, nodes, region),
            on_sync=hooks.on_sync,
            on_events=hooks.on_events,
            on_silent=hooks.on_silent,
            on_lost=hooks.on_lost,
            on_fenced=die,
            silence=SilencePolicy(self._policy.node_lost_ms),
        )
        if (background := getattr(self.leases, "background", None)) is not None:
            self.metrics.background = background
        self.secrets = SecretsOf(store, settings.home)
        builds = BuildRefs(store, lambda build: registry_credentials(build, settings))
        self.memory = RegionMemory(region, store, self.books)
        self.executor = Executor(
            epoch,
            settings,
            catalog,
            self.books,
            self.runs,
            self.leases,
            settle=hooks.settle,
            builds=builds,
            secrets=self.secrets,
        )
        self.preparation = Preparation(epoch, self.leases, builds)
        self.scaler = Scaler(
            region,
            nodes.node_classes(region),
            capacity_policy(settings),
            self.leases,
            self.executor.rooms,
            self.runs,
            self.executor.queued,
            self.executor.demand,
            self.preparation,
            self.memory,
            settle=hooks.spawn_settle,
            event=self.metrics.node,
        )
        self.executor.on_short = self.scaler.poke
        self.logs = LogDesk(self.runs, self.leases, hooks.find)
        self.pools = PoolDesk(
            region,
            store,
            self.books,
            self.executor,
            settings,
            self.metrics,
            commit=hooks.commit,
            settle=hooks.settle,
            plan_one=hooks.plan_one,
            stored=hooks.stored,
            draining=lambda: [name for name, view in self.leases.views().items() if view.draining],
        )
        self.forecasting = Forecasting(self.memory, catalog, self.pools.keeper.pools(), self.scaler.lead_seconds)
        self.scaler.orders = self.forecasting.orders
        if settings.scaling.ahead:
            self.scaler.headroom = self.forecasting.headroom
        kept = self.pools.keeper.pools()
        self.preparation.favourites = lambda: [p.product.build_id for p in kept.values() if p.product is not None]
        self.report = Report(
            region,
            epoch,
            books=self.books,
            runs=self.runs,
            leases=self.leases,
            executor=self.executor,
            scaler=self.scaler,
            commits=self.commits,
            pools=self.pools,
        )

    @property
    def policy(self) -> Policy:
        """What plans go by now."""
        since = self.attention.since()
        if since > self._policy.watching_since:
            self._policy = replace(self._policy, watching_since=since)
        return self._policy
