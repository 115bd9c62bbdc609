"""Bring a database to the newest schema (alembic). Run at every start, before anything else opens it."""

from pathlib import Path

from alembic import command
from alembic.config import Config


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def upgrade(url: str) -> None:
    """Apply the migrations that are missing. Safe to call again; not from a running event loop."""
    command.upgrade(_config(url), "head")


def check(url: str) -> None:
    """Raise if the tables in code and the newest migration differ."""
    command.check(_config(url))


def new_revision(url: str, message: str, number: str) -> None:
    """Write a migration for what has changed in `tables.py`."""
    command.revision(_config(url), message=message, autogenerate=True, rev_id=number)
