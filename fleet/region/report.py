"""What the manager tells of itself: `fleet nodes` and `fleet status` for operators, a sample for Prometheus."""

import os
from typing import Any

from fleet.region.books import Books
from fleet.region.execute import Executor
from fleet.region.leases import Leases
from fleet.region.metrics import RegionSample, node_samples
from fleet.region.pool_desk import PoolDesk
from fleet.region.runs import Runs
from fleet.region.scaling import Scaler
from fleet.store.commit import GroupCommit
from fleet.times import now_ms


class Report:
    """Reads the manager's parts; changes nothing."""

    def __init__(
        self,
        region: str,
        epoch: int,
        *,
        books: Books,
        runs: Runs,
        leases: Leases,
        executor: Executor,
        scaler: Scaler,
        commits: GroupCommit,
        pools: PoolDesk,
    ) -> None:
        self._region = region
        self._epoch = epoch
        self._books = books
        self._runs = runs
        self._leases = leases
        self._executor = executor
        self._scaler = scaler
        self._commits = commits
        self._pools = pools

    def status(self) -> dict[str, Any]:
        """Epoch, nodes with what they hold, live servers, commits."""
        return {
            "region": self._region,
            "epoch": self._epoch,
            "pid": os.getpid(),
            "live": len(self._books.live),
            "commits": self._commits.batches,
            "writes": self._commits.writes,
            "nodes": self._scaler.rows(),
        }

    def sample(self) -> RegionSample:
        """The gauges of a scrape."""
        views, rooms = self._leases.views().values(), self._executor.rooms.rooms()
        return RegionSample(
            pools=self._pools.samples(),
            nodes=node_samples(views, rooms, pending=self._leases.asked(), costs=self._scaler.costs),
            queued=sum(server.step == "queued" for server in self._books.live.values()),
            journal_lag_seconds=self._commits.lag_s(),
            node_lead_seconds={name: self._scaler.leads.seconds(name) for name in self._scaler.costs},
            node_pending_seconds=self._leases.oldest_ask_ms(now_ms()) / 1000,
        )
