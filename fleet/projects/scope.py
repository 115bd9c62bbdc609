"""The one place where rows are tied to a project. A query of tenant data starts here, so none forgets the tenant."""

from typing import Any, TypeVar

from sqlmodel import SQLModel, col, func, select
from sqlmodel.sql.expression import SelectOfScalar

Owned = TypeVar("Owned", bound=SQLModel)


def owned(model: type[Owned], project_id: str) -> SelectOfScalar[Owned]:
    """Select the rows of `model` that belong to the project."""
    mine: Any = model
    return select(model).where(col(mine.project_id) == project_id)


def count_of(query: SelectOfScalar[Any]) -> SelectOfScalar[int]:
    """The number of rows that `query` would give without limit and order."""
    return select(func.count()).select_from(query.order_by(None).subquery())
