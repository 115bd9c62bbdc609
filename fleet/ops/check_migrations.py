"""Fails if the tables in code and the newest migration differ: `python -m fleet.ops.check_migrations`."""

import tempfile

from fleet.store import migrate

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite+aiosqlite:///{folder}/check.db"
        migrate.upgrade(url)
        migrate.check(url)
