"""Bring a database to the newest schema (alembic). Run at every start, before anything else opens it."""

from pathlib import Path

from alembic import command
from alembic.config import Config

from fleet.store.engine import database_url
from fleet.store.space import make_private, prepare


def _config(url: str, home: Path | None = None) -> Config:
    config = Config(attributes={"home": home})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def upgrade(url: str, home: Path | None = None) -> None:
    """Apply the migrations that are missing. Safe to call again; not from a running event loop.

    `home`: where the key is that seals; default: that of the settings."""
    found = database_url(url)
    file = Path(found.database) if found.get_backend_name() == "sqlite" and found.database else None
    if file is not None:
        new = not file.exists()
        make_private(file)
        if new:
            prepare(file)  # costs nothing as long as there is no table
    command.upgrade(_config(url, home), "head")
    if file is not None:
        prepare(file)


def check(url: str) -> None:
    """Raise if the tables in code and the newest migration differ."""
    command.check(_config(url))


def new_revision(url: str, message: str, number: str) -> None:
    """Write a migration for what has changed in `tables.py`."""
    command.revision(_config(url), message=message, autogenerate=True, rev_id=number)
