"""What a database does when it is in trouble, and which of it passes: the limits of every wait, and the errors.

`may_pass` says whether the same work may go through later. A writer that must not give up tries again for ever, with
`retry_s` between; whoever has a caller lets him try again (503).
"""

import socket
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from fleet.actors.tasks import backoff_s

# Each limit has its row in docs/timeouts.md.
LOCK_WAIT_S = 5.0  # for SQLite's lock, PostgreSQL's locks, or a turn among the writers of this process
CONNECT_S = 5.0
READ_CONNECTION_S = 10.0  # for one of the connections that read, while all are in use
STATEMENT_S = 30.0  # one statement on PostgreSQL
COMMIT_TRY_S = 15.0  # one transaction of a group commit on PostgreSQL
IDLE_TRANSACTION_S = 30.0  # a writer that hangs does not hold its locks for ever
SILENCE_S = 10.0  # a peer that does not take what was sent, or answer probes, is gone: the connection is closed
_RETRY_FIRST_S, _RETRY_MOST_S = 0.05, 2.0

# Connection trouble, deadlock, no resources, lock timeout, server starting or stopping.
_PASSING_STATES = ("08", "40", "53", "55P03", "57")
_PASSING_CODES = frozenset({
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL,
})  # fmt: skip
_PRIMARY = 0xFF  # of SQLite's extended codes
DATABASE_UNAVAILABLE = "Database unavailable"


class OutcomeUnknown(Exception):
    """The commit itself broke: it may or may not be done, so it must not be repeated blindly."""


class OutOfReach(PoolTimeout):
    """The database did not answer in time, or there is no way to it."""


def may_pass(error: BaseException) -> bool:
    """Whether the same work may go through later: the database was locked, restarting or out of reach, its disk full
    or read-only. Not so: a statement that is wrong, a constraint, a database that is damaged."""
    if isinstance(error, OSError | PoolTimeout):
        return True
    cause: Any = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(cause, "sqlite_errorcode", None)
    if code is not None:
        return code & _PRIMARY in _PASSING_CODES
    broken = isinstance(error, DBAPIError) and error.connection_invalidated
    passing = isinstance(error, OperationalError) or isinstance(cause, sqlite3.OperationalError)
    return broken or passing or str(getattr(cause, "sqlstate", None) or "-").startswith(_PASSING_STATES)


def lost_on_disk(error: BaseException) -> bool:
    """SQLite could not bring a commit from the system's memory to the disk. What the file holds then is only known
    when it is read anew: a second try may report what the first has lost."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_IOERR_FSYNC


def retry_s(failures: int) -> float:
    """The pause after so many tries in a row. Waiting for a lock takes its time already; the rest is mostly short."""
    return backoff_s(failures, _RETRY_FIRST_S, _RETRY_MOST_S)


@contextmanager
def reaching() -> Generator[None]:
    """Errors of the way to the database become `OutOfReach`; those of files stay what they are."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OutOfReach(f"The database does not answer: {error!r}") from error


def watch_for_silence(connection: Any) -> None:
    """Have the kernel close a connection of asyncpg whose peer has vanished without a word (a cut cable, a machine
    without power). Else a statement waits until its own limit, and an idle connection is found dead one by one."""
    transport = getattr(connection, "_transport", None)
    found = transport.get_extra_info("socket") if transport is not None else None
    if found is None or found.family not in (socket.AF_INET, socket.AF_INET6):
        return
    third = max(1, int(SILENCE_S / 3))
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, third)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, third)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SILENCE_S * 1000))
