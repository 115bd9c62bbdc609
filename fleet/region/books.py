"""The region's books: its live rows in memory, and every change to them as statements for the group commit.

A change is made in memory at once and is on disk when the commit that follows is done. Nothing is told to anyone
before that. If a commit cannot be done the manager ends, and its successor reads the rows again. Changes of one row
between two commits become one statement.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import structlog
from sqlalchemy import BindParameter, Update, bindparam, insert, update
from sqlmodel import col

from fleet.store.commit import Statement, row_values
from fleet.store.tables import Server, ServerEvent
from fleet.telemetry.request_id import current_request_id

log = structlog.get_logger(__name__)


def _unheard(_server: Server, _before: str, _took_ms: int) -> None:
    """Nobody counts the steps."""


class Batch(NamedTuple):
    """`touched`: ids whose row changed; `told`: those of them whom somebody may wait for, by status or end."""

    statements: list[Statement]
    touched: list[str]
    told: list[str]


class Books:
    """`live`: rows whose step is not `stopped`. `take()` gives what must be committed and told.

    `on_step(server, before, milliseconds)` hears of each step that a server enters.
    """

    def __init__(self, on_step: Callable[[Server, str, int], None] = _unheard) -> None:
        self._on_step = on_step
        self.moved: Callable[[str], None] | None = None  # told of every row that is new or has changed
        self.watch: Callable[[Server], None] | None = None  # told of every change of a pool server's row
        self.live: dict[str, Server] = {}
        self._new: dict[str, Server] = {}
        self._dirty: dict[str, tuple[Server, set[str]]] = {}
        self._journal: list[dict[str, Any]] = []
        self._requests: list[str] = []  # for each entry of the journal, which request it was made for
        self._others: list[Statement] = []
        self._settings: dict[str, Any] = {}

    def load(self, rows: list[Server]) -> None:
        self.live = {row.instance_id: self._lean(row) for row in rows}
        if self.moved is not None:
            for row in rows:
                self.moved(row.instance_id)

    def add(self, row: Server, at: int) -> None:
        """A new server, `queued` from `at` on."""
        self.live[row.instance_id] = self._new[row.instance_id] = self._lean(row)
        self.note(row, at, "queued")
        self._tell(row)

    def note(
        self, server: Server, at: int, event: str, data: dict[str, Any] | None = None, request_id: str = ""
    ) -> None:
        """An entry of the journal. `request_id`: whom it was made for, if that is not what this task works for."""
        if server.is_pool_server and server.pool_claimed_at is None:
            data = {**(data or {}), "pool": True}  # nobody's yet: its life is not the project's business
        entry = {
            "instance_id": server.instance_id,
            "project_id": server.project_id,
            "region": server.region,
            "generation": server.generation,
            "at": at,
            "type": event,
            "data": data,
        }
        self._journal.append(entry)
        self._requests.append(request_id or current_request_id())

    def change(self, server: Server, at: int, **values: Any) -> None:
        """New values for columns of a row."""
        values["updated_at"] = at
        # Rows in the books belong to no session: what SQLAlchemy does beside the assignment would serve nobody.
        vars(server).update(values)
        self._dirty.setdefault(server.instance_id, (server, set()))[1].update(values)
        if server.step == "stopped":
            self.live.pop(server.instance_id, None)
        self._tell(server)

    def _lean(self, row: Server) -> Server:
        """Thousands of rows say the same words: they share them. Such values are replaced, never changed."""
        values = vars(row)
        for name in _SAME_WORDS:
            if type(word := values.get(name)) is str:
                values[name] = sys.intern(word)
        for name in _SAME_SETTINGS:
            if (setting := values.get(name)) is not None:
                values[name] = self._settings.setdefault(repr(setting), setting)
        if len(self._settings) > _MAX_SETTINGS:
            self._settings.clear()
        return row

    def _tell(self, server: Server) -> None:
        if self.moved is not None:
            self.moved(server.instance_id)
        if server.is_pool_server and self.watch is not None:
            self.watch(server)

    def step(
        self,
        server: Server,
        at: int,
        step: str,
        data: dict[str, Any] | None = None,
        **values: Any,
    ) -> None:
        """The server enters a step: journal entry with the milliseconds that the step before took."""
        before, took_ms = server.step, max(0, at - server.step_at)
        self.change(server, at, step=step, step_at=at, **values)
        self.note(server, at, step, {"after": before, "ms": took_ms, **(data or {})})
        self._on_step(server, before, took_ms)

    def write(self, statements: list[Statement]) -> None:
        """Statements of other tables, for the same commit as the changes so far."""
        self._others += statements

    def take(self) -> Batch:
        """What has gathered; the books are clean afterwards."""
        statements: list[Statement] = []
        if self._new:
            statements.append((_INSERT_SERVERS, [row_values(row) for row in self._new.values()]))
        statements += _updates(change for name, change in self._dirty.items() if name not in self._new)
        if self._journal:
            statements.append((_INSERT_EVENTS, self._journal))
            log.info("servers", steps=list(map(_step, self._journal, self._requests)), request_id=None)
        statements += self._others
        told = [name for name, (row, columns) in self._dirty.items() if "status" in columns or row.step == "stopped"]
        batch = Batch(statements, list({**self._new, **self._dirty}), told)
        self._new, self._dirty, self._journal, self._requests, self._others = {}, {}, [], [], []
        return batch


_SAME_WORDS = (
    "project_id",
    "region",
    "status",
    "step",
    "compute_size",
    "build_id",
    "version_tag",
    "pool_spec",
    "node_id",
)
_SAME_SETTINGS = ("port_configs", "environment")
_MAX_SETTINGS = 1000
_INSERT_SERVERS = insert(Server)
_INSERT_EVENTS = insert(ServerEvent)
_LOGGED = ("instance_id", "generation", "at", "type", "data")
_ID = "of"  # names of parameters must differ from those of columns


def _step(entry: dict[str, Any], request_id: str) -> dict[str, Any]:
    """An entry of the journal as it is logged; many requests may have made those of one line."""
    shown = {key: entry[key] for key in _LOGGED}
    return {**shown, "request_id": request_id} if request_id else shown


def _updates(changes: Iterable[tuple[Server, set[str]]]) -> list[Statement]:
    """One statement for all rows of which the same columns change: its text is made once, its rows go in together."""
    groups: defaultdict[frozenset[str], list[dict[str, Any]]] = defaultdict(list)
    for server, columns in changes:
        row = vars(server)
        values = {f"new_{column}": row[column] for column in columns}
        values[_ID] = server.instance_id
        groups[frozenset(columns)].append(values)
    return [(_update_of(columns), rows) for columns, rows in groups.items()]


@lru_cache(256)
def _update_of(columns: frozenset[str]) -> Update:
    new: dict[str, BindParameter[Any]] = {column: bindparam(f"new_{column}") for column in sorted(columns)}
    return update(Server).where(col(Server.instance_id) == bindparam(_ID)).values(new)
