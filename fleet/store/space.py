"""Space that SQLite no longer needs goes back to the file system (`PRAGMA auto_vacuum = INCREMENTAL`).

A new database is made so. An older one is written anew once, when the fleet starts: that needs as much room again as
the file has, and some seconds for each gigabyte. One that is too big for that, or has no room, stays as it is; its free
pages are used again, and `docs/operations.md` says how to do it by hand.
"""

import os
import shutil
import sqlite3
from contextlib import suppress
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

INCREMENTAL = 2
FREE_PAGES_KEPT = 1_000  # 4 MB: what is deleted now is written again soon
PAGES_AT_ONCE = 500
REWRITE_MOST_BYTES = 2 * 1024**3
_ROOM = 2.5  # times the file: the copy, and the write-ahead log while it is put in place
_LOCK_WAIT_S = 5.0


def make_private(path: Path) -> None:
    """Only its owner may read the database, whatever the umask is; SQLite gives the files beside it the same mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    for end in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + end).chmod(0o600)


def prepare(path: Path) -> None:
    """Have the database give pages back from now on, if it does not yet and can be made to here and now."""
    connection = sqlite3.connect(path, timeout=_LOCK_WAIT_S, isolation_level=None)
    try:
        if connection.execute("PRAGMA auto_vacuum").fetchone()[0] == INCREMENTAL:
            return
        size = path.stat().st_size
        if size > REWRITE_MOST_BYTES or shutil.disk_usage(path.parent).free < _ROOM * size:
            log.warning("database_keeps_its_size", bytes=size)
            return
        connection.execute(f"PRAGMA auto_vacuum = {INCREMENTAL}")
        connection.execute("VACUUM")
    except sqlite3.OperationalError as error:  # somebody writes; the next start tries again
        log.warning("database_keeps_its_size", error=repr(error))
    finally:
        connection.close()


def give_back(path: Path, keep: int, most: int) -> tuple[int, int]:
    """Make the file smaller by its free pages beyond `keep`, at most so many: (pages given, pages still to give)."""
    connection = sqlite3.connect(path, timeout=_LOCK_WAIT_S, isolation_level=None)
    try:
        if connection.execute("PRAGMA auto_vacuum").fetchone()[0] != INCREMENTAL:
            return 0, 0
        before = _free(connection)
        if before > keep:
            # A script is carried out to its end; `execute` would give one page.
            connection.executescript(f"PRAGMA incremental_vacuum({min(most, before - keep):d})")
        after = _free(connection)
        return before - after, max(0, after - keep)
    finally:
        connection.close()


def _free(connection: sqlite3.Connection) -> int:
    return connection.execute("PRAGMA freelist_count").fetchone()[0]
