"""Who may call what: each module of routes says it in a table `MAY_CALL`, by the names of its functions.

The routes' own dependencies (`ServerKey`, `ThePlayer`, …) see to it. `tests/contract/test_route_matrix.py` holds the
two against each other, by reading the dependencies and by calling every route as everybody; a route without a line
fails.
"""

import sys
from enum import StrEnum
from typing import Any

from fastapi.routing import APIRoute


class Caller(StrEnum):
    """The least that a caller has to have."""

    ANYONE = "anyone"  # no key
    CLIENT = "client"  # a key of a project: it sees what its client may see, of its own project
    PLAYER = "player"  # the same, and the proof of being the player that is named; the server key needs none
    SERVER = "server"  # the project's server key
    ADMIN = "admin"  # the fleet's admin key
    SIGNED = "signed"  # no key, but a signature or secret of its own
    OPERATOR = "operator"  # this machine, or the metrics' token


Policy = dict[str, Caller]


def may_call(route: APIRoute) -> Caller | None:
    """What the route's module says; None if it says nothing."""
    table: Policy = getattr(sys.modules[route.endpoint.__module__], "MAY_CALL", {})
    return table.get(route.endpoint.__name__)


def callees(dependant: Any) -> set[Any]:
    """Everything that a route depends on, and what that depends on."""
    found = {dependant.call}
    for part in dependant.dependencies:
        found |= callees(part)
    return found
