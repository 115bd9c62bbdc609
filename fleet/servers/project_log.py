"""The logs of all of a project's servers, as one, in the order of time.

Each server's log is read where it is, a piece at a time, and the pieces are merged. A server is asked only when the
merge has come to the time when it was made, so a page costs about as many questions as servers were alive in the time
that it shows, and never more than `MAX_OPEN`: where that does not reach, the page ends early, and its position goes on.
"""

import asyncio
import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from sqlmodel import col

from fleet.errors import BadRequest, Unavailable
from fleet.node.log_tokens import format_ns, unix_ns
from fleet.node.runtime import LogLine
from fleet.projects.scope import owned
from fleet.servers.model import LogPage
from fleet.store.engine import Store
from fleet.store.tables import Server, ended, live

log = structlog.get_logger(__name__)

MAX_OPEN = 200
_AT_ONCE = 16
_PIECE = 100
# A node's clock may differ from the head's, and a game may speak a while after it was told to stop.
SKEW_MS, LATE_MS = 5_000, 120_000


@dataclass(frozen=True, slots=True)
class Position:
    """Everything after this line (of that server, with that token); without a server everything from `at`.

    `at` is a time as log lines have it: text order is time order.
    """

    at: str
    instance_id: str = ""
    token: str = ""

    @classmethod
    def since(cls, ms: int) -> "Position":
        return cls(format_ns(ms * 1_000_000))

    @property
    def ms(self) -> int:
        return unix_ns(self.at) // 1_000_000


Said = tuple[Server, LogLine]


class LogReader(Protocol):
    """The part of the regions that this needs."""

    async def logs(self, server: Server, after: str | None, since_ms: int | None, limit: int) -> LogPage: ...


@dataclass(slots=True)
class _Lane:
    """One server's log, from the position on."""

    server: Server
    after: str | None
    since_ms: int | None
    lines: deque[LogLine] = field(default_factory=deque[LogLine])
    more: bool = True

    @property
    def key(self) -> tuple[str, str]:
        return self.lines[0].at, self.server.instance_id


class ProjectLog:
    def __init__(self, store: Store, regions: LogReader) -> None:
        self._store = store
        self._regions = regions

    async def page(
        self, project_id: str, start: Position, end_ms: int, limit: int
    ) -> tuple[list[Said], Position | None]:
        """Up to `limit` lines, and where to go on; None if nothing more is there now."""
        servers = await self._servers(project_id, start, end_ms)
        return await _Merge(self._regions, start, end_ms, servers).page(limit)

    async def _servers(self, project_id: str, start: Position, end_ms: int) -> list[Server]:
        """Those alive at some time of it, oldest first; one more than may be opened tells that there are more."""
        # Two look-ups by index: as one condition, each page would walk over all that the project ever had.
        for_long = owned(Server, project_id).where(live())
        till_then = owned(Server, project_id).where(ended(), col(Server.stopped_at) >= start.ms - LATE_MS)
        found: list[Server] = []
        async with self._store.read() as session:
            for rows in (for_long, till_then):
                made = rows.where(col(Server.created_at) <= end_ms + SKEW_MS)
                ordered = made.order_by(col(Server.created_at), col(Server.instance_id)).limit(MAX_OPEN + 1)
                found += (await session.exec(ordered)).all()
        return sorted(found, key=lambda server: (server.created_at, server.instance_id))[: MAX_OPEN + 1]


class _Merge:
    """One page's work."""

    def __init__(self, regions: LogReader, start: Position, end_ms: int, servers: list[Server]) -> None:
        self._regions = regions
        self._start = start
        self._end = format_ns(end_ms * 1_000_000 + 999_999)
        self._unopened = deque(servers)
        self._may_open = MAX_OPEN
        self._heap: list[tuple[tuple[str, str], _Lane]] = []
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._silent: set[str | None] = set()

    async def page(self, limit: int) -> tuple[list[Said], Position | None]:
        said: list[Said] = []
        await self._open_until(self._start.at)
        while len(said) < limit:
            await self._open_until(self._heap[0][0][0] if self._heap else None)
            horizon = self._begins(self._unopened[0]) if self._unopened else self._end
            if not self._heap or self._heap[0][0][0] > min(horizon, self._end):
                return said, self._rest(horizon)
            _, lane = heapq.heappop(self._heap)
            line = lane.lines.popleft()
            said.append((lane.server, line))
            await self._push(lane)
        server, line = said[-1]
        return said, Position(line.at, server.instance_id, line.token)

    def _rest(self, horizon: str) -> Position | None:
        """Where the next page begins, when this one could open no more servers."""
        if not self._unopened or horizon > self._end:
            return None
        if horizon <= self._start.at:
            raise BadRequest(
                f"More than {MAX_OPEN} servers were alive at that time, too many to be shown as one. Ask for the logs "
                "of single servers: GET /api/v3/servers/{instance_id}/logs.",
                error="Too many servers",
            )
        return Position(horizon)

    @staticmethod
    def _begins(server: Server) -> str:
        return format_ns((server.created_at - SKEW_MS) * 1_000_000)

    async def _open_until(self, at: str | None) -> None:
        """Open the logs that may have a line as old as `at`; None: the next ones, until there is any line."""
        while self._unopened and self._may_open and (at is None or self._begins(self._unopened[0]) <= at):
            if at is None and self._heap:
                return
            batch: list[_Lane] = []
            while self._unopened and self._may_open > 0 and len(batch) < _AT_ONCE:
                if at is not None and self._begins(self._unopened[0]) > at:
                    break
                batch.append(self._lane(self._unopened.popleft()))
                self._may_open -= 1
            await asyncio.gather(*(self._push(lane) for lane in batch))

    def _lane(self, server: Server) -> _Lane:
        if server.instance_id == self._start.instance_id:
            return _Lane(server, self._start.token, None)
        return _Lane(server, None, self._start.ms)

    async def _push(self, lane: _Lane) -> None:
        """Back among the lanes with its next line, if it has one."""
        while not lane.lines and lane.more:
            await self._read(lane)
        if lane.lines:
            heapq.heappush(self._heap, (lane.key, lane))

    async def _read(self, lane: _Lane) -> None:
        server = lane.server
        if server.status == "stopped" and server.node_id in self._silent:
            lane.more = False
            return
        try:
            async with self._gate:
                page = await self._regions.logs(server, lane.after, lane.since_ms, _PIECE)
        except Unavailable as error:
            if server.status != "stopped":
                raise
            # Its node is gone, and its log with it: that must not hide what the others said.
            log.warning("log_of_a_stopped_server_not_there", server=server.instance_id, error=error.detail)
            self._silent.add(server.node_id)
            lane.more = False
            return
        lane.more = len(page.lines) >= _PIECE
        if page.lines:
            lane.after, lane.since_ms = page.lines[-1].token, None
        lane.lines += [line for line in page.lines if self._is_new(line, server)]

    def _is_new(self, line: LogLine, server: Server) -> bool:
        start = self._start
        if not start.instance_id or server.instance_id == start.instance_id:
            return line.at >= start.at or server.instance_id == start.instance_id
        return (line.at, server.instance_id) > (start.at, start.instance_id)
