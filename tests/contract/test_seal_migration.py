"""Variables that lie plain in a database of before are sealed by its migration, and plain again if that is undone."""

import json
import sqlite3
from pathlib import Path

from alembic import command

from fleet.sealing import Variables
from fleet.store import migrate

PLAIN = {"PASSWORD": "hunter2-lies-there"}
NOT_NULL = {"type", "notnull", "dflt_value"}


def fill(file: Path) -> None:
    """A project and 1,200 servers, every third without variables of its own."""
    with sqlite3.connect(file) as database:
        settings = json.dumps({"environment_variables": PLAIN, "unique_match": True})
        database.execute(
            "INSERT INTO project (id, name, plan, settings, created_at, updated_at) VALUES ('p', 'p', 'pro', ?, 1, 1)",
            (settings,),
        )
        database.execute("INSERT INTO project (id, name, plan, created_at, updated_at) VALUES ('q', 'q', 'pro', 1, 1)")
        rows = [(f"s-{number:04}", None if number % 3 == 0 else json.dumps(PLAIN)) for number in range(1200)]
        database.executemany(
            "INSERT INTO server (instance_id, environment, project_id, region, name, status, step, compute_size,"
            " build_id, version_tag, auto_restart, is_pool_server, generation, created_at, updated_at,"
            " launched_at, step_at)"
            " VALUES (?, ?, 'p', 'us-east', 'n', 'stopped', 'stopped', 'small', 'b', 'v', 0, 0, 1, 1, 1, 1, 1)",
            rows,
        )
    database.close()


def found(file: Path) -> tuple[dict[str, object], list[object]]:
    with sqlite3.connect(file) as database:
        settings = json.loads(database.execute("SELECT settings FROM project WHERE id = 'p'").fetchone()[0])
        rows = database.execute("SELECT environment FROM server ORDER BY instance_id").fetchall()
    database.close()
    return settings, [row[0] and json.loads(row[0]) for row in rows]


def test_what_is_there_is_sealed_and_can_be_opened_again(tmp_path: Path) -> None:
    file = tmp_path / "fleet.db"
    url = f"sqlite+aiosqlite:///{file}"
    config = migrate._config(url, tmp_path)
    command.upgrade(config, "0006")
    fill(file)
    migrate.upgrade(url, tmp_path)
    settings, rows = found(file)
    variables = Variables(tmp_path)
    assert isinstance(settings["environment_variables"], str)
    assert settings["unique_match"] is True
    assert variables.open(settings["environment_variables"]) == PLAIN
    assert [variables.open(row) for row in rows] == [{} if n % 3 == 0 else PLAIN for n in range(1200)]
    assert all(row is None or isinstance(row, str) for row in rows)
    with sqlite3.connect(file) as database:
        database.execute("VACUUM")
    database.close()
    assert b"hunter2" not in file.read_bytes()
    migrate.upgrade(url, tmp_path)  # again, and nothing changes
    assert found(file) == (settings, rows)
    command.downgrade(config, "0006")
    settings, rows = found(file)
    assert settings["environment_variables"] == PLAIN
    assert rows == [None if n % 3 == 0 else PLAIN for n in range(1200)]
