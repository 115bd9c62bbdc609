"""Fails if the tables in code and the newest migration differ: `python -m fleet.ops.check_migrations [URL]`.

Without a URL on a fresh SQLite file. A URL names an empty database for the purpose: it is migrated first.
"""

import sys
import tempfile

from fleet.store import migrate


def check(url: str) -> None:
    migrate.upgrade(url)
    migrate.check(url)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        check(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            check(f"sqlite+aiosqlite:///{folder}/check.db")
