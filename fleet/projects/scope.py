"""The one place where rows are tied to a project. A query of tenant data starts here, so none forgets the tenant."""

from typing import TypeVar

from sqlmodel import col, func, select
from sqlmodel.sql.expression import SelectOfScalar

from fleet.store.tables import Build, Server, ServerEvent

Owned = TypeVar("Owned", Server, Build, ServerEvent)


def owned(model: type[Owned], project_id: str) -> SelectOfScalar[Owned]:
    """Select the rows of `model` that belong to the project."""
    return select(model).where(col(model.project_id) == project_id)


def count_of(query: SelectOfScalar[Owned]) -> SelectOfScalar[int]:
    """The number of rows that `query` would give without limit and order."""
    return select(func.count()).select_from(query.order_by(None).subquery())
