"""What the manager tells of itself: `fleet nodes` and `fleet status` for operators, a sample for Prometheus."""

import os
from typing import Any

from fleet.region.books import Books
from fleet.region.execute import Executor
from fleet.region.leases import Leases
from fleet.region.metrics import RegionSample, node_samples
from fleet.region.pool_desk import PoolDesk
from fleet.region.runs import Runs
from fleet.store.commit import GroupCommit


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
        commits: GroupCommit,
        pools: PoolDesk,
    ) -> None:
        self._region = region
        self._epoch = epoch
        self._books = books
        self._runs = runs
        self._leases = leases
        self._executor = executor
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
            "nodes": self._nodes(),
        }

    def _nodes(self) -> list[dict[str, Any]]:
        rooms = {room.node_id: room for room in self._executor.rooms.rooms()}
        return [
            {
                "node_id": h.node_id,
                "host": h.host,
                "runtime": h.runtime,
                "memory_mb": h.share.memory_mb,
                "memory_free_mb": rooms[h.node_id].memory_mb if h.node_id in rooms else None,
                "draining": view.draining,
                "synced": view.synced,
                "runs": sum(not self._runs[key].state.ended for key in self._runs.on(h.node_id)),
            }
            for h in self._leases.hellos()
            if (view := self._leases.views().get(h.node_id))
        ]

    def sample(self) -> RegionSample:
        """The gauges of a scrape."""
        views, rooms = self._leases.views().values(), self._executor.rooms.rooms()
        return RegionSample(
            pools=self._pools.samples(),
            nodes=node_samples(views, rooms, pending=int(self._leases.pending)),
            queued=sum(server.step == "queued" for server in self._books.live.values()),
            journal_lag_seconds=self._commits.lag_s(),
        )
