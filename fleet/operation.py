"""The id of the write that is being served. What it makes is named after it, so that repeating it has one effect.

Whoever knows that a write may come again (an Idempotency-Key) binds the id that the first try had. Ids are then the
same in every try, and commands that carry them are one effect however often they are sent.
"""

import uuid
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class _Operation:
    op_id: str
    repeated: bool
    made: int = 0

    def id(self, number: int) -> str:
        return str(uuid.uuid5(uuid.UUID(self.op_id), str(number)))


_current: ContextVar[_Operation | None] = ContextVar("operation", default=None)


@contextmanager
def operation(op_id: str, *, repeated: bool = False) -> Generator[None]:
    """Ids made in this block, and in what it awaits, follow from `op_id` (a UUID) and their order. `repeated`: an
    earlier try may have had its effect already."""
    token = _current.set(_Operation(op_id, repeated))
    try:
        yield
    finally:
        _current.reset(token)


def new_id() -> str:
    """A UUID for a thing or command that the present write makes: random, unless the write may be repeated."""
    current = _current.get()
    if current is None:
        return str(uuid.uuid4())
    current.made += 1
    return current.id(current.made)


def repeatable() -> bool:
    """Whether the present write may come again, even while it is being carried out."""
    return _current.get() is not None


def made_before() -> str | None:
    """The id that `new_id` gives next, if an earlier try of this write may have made a thing of it already."""
    current = _current.get()
    return current.id(current.made + 1) if current is not None and current.repeated else None
