"""Many rows through one statement of SQLite, with as little Python for each as can be.

SQLAlchemy builds a dictionary and walks all columns for every row of an executemany; that was half of what a claim
cost. Here a statement's text and its columns' conversions are looked up once, and a row becomes a tuple.
"""

from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple, cast

from sqlalchemy import Connection, Executable
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.compiler import SQLCompiler

from fleet.store.engine import dump_json

WORTHWHILE = 4  # rows: below that, making the text anew for a statement seen once costs more than it saves

_dialect = sqlite.dialect(json_serializer=dump_json)
Row = tuple[Any, ...]


class Prepared(NamedTuple):
    """`convert`: places in the row whose value the driver does not take as it is."""

    sql: str
    pick: Callable[[dict[str, Any]], Row]
    convert: list[tuple[int, Callable[[Any], Any]]]


def execute_rows(connection: Connection, statement: Executable, rows: list[dict[str, Any]]) -> None:
    """All rows have the same keys."""
    sql, pick, convert = _prepared(statement, tuple(sorted(rows[0])))
    connection.exec_driver_sql(sql, [_converted(pick(row), convert) for row in rows])


def _converted(row: Row, convert: list[tuple[int, Callable[[Any], Any]]]) -> Row:
    values = list(row)
    for place, conversion in convert:
        values[place] = conversion(values[place])
    return tuple(values)


@lru_cache(128)
def _prepared(statement: Executable, keys: tuple[str, ...]) -> Prepared:
    compiled = cast(SQLCompiler, statement.compile(dialect=_dialect, column_keys=list(keys)))  # pyright: ignore
    names = compiled.positiontup or []
    convert: list[tuple[int, Callable[[Any], Any]]] = []
    for place, name in enumerate(names):
        conversion = compiled.binds[name].type.dialect_impl(_dialect).bind_processor(_dialect)
        if conversion is not None:
            convert.append((place, conversion))
    return Prepared(str(compiled), _picker(names), convert)


def _picker(names: list[str]) -> Callable[[dict[str, Any]], Row]:
    if len(names) == 1:
        return lambda row: (row[names[0]],)
    return itemgetter(*names)
