"""Every route says who may call it, and its dependencies say the same."""

import sys
from collections.abc import Iterator

import pytest
from fastapi.routing import APIRoute, iter_route_contexts

from serve_app import auth, http, players
from serve_app.admin import routes as admin
from serve_app.limits import LOBBIES
from serve_app.metrics import _operator  # pyright: ignore[reportPrivateUsage]
from serve_app.policy import Caller, callees, may_call
from serve_app.v2 import lobby_desk

# What a route may depend on, by what it says of itself. The rest is refused inside, which the matrix of calls looks at.
DEPENDS = {
    Caller.CLIENT: (auth._any_key,),
    Caller.PLAYER: (players._player, lobby_desk._desk),
    Caller.SERVER: (auth._server_key, lobby_desk._desk),
    Caller.ADMIN: (admin._admin,),
    Caller.OPERATOR: (_operator,),
}
GUARDS = (auth._any_key, auth._server_key, admin._admin, players._player, lobby_desk._desk, _operator)


def routes() -> Iterator[APIRoute]:
    seen: set[int] = set()
    for found in iter_route_contexts(http._api.routes):
        route = getattr(found, "original_route", found)
        if isinstance(route, APIRoute) and id(route) not in seen:
            seen.add(id(route))
            yield route


@pytest.mark.parametrize("route", list(routes()), ids=lambda route: route.endpoint.__name__)
def test_a_route_depends_on_what_it_says(route: APIRoute) -> None:
    said = may_call(route)
    assert said is not None, f"{route.endpoint.__module__} needs a line for {route.endpoint.__name__} in MAY_CALL"
    found = callees(route.dependant)
    guards = [guard for guard in GUARDS if guard in found]
    if said in (Caller.ANYONE, Caller.SIGNED):
        assert guards == []
        return
    assert any(guard in found for guard in DEPENDS[said]), f"{said} is not what its dependencies say: {guards}"
    if said is not Caller.SERVER:
        assert auth._server_key not in found


def test_the_tables_name_nothing_that_is_gone() -> None:
    named: dict[str, set[str]] = {}
    for route in routes():
        named.setdefault(route.endpoint.__module__, set()).add(route.endpoint.__name__)
    assert len(named) > 15
    for module, names in named.items():
        assert set(sys.modules[module].MAY_CALL) == names


def test_who_plays_is_asked_only_where_idempotency_keys_are_players() -> None:
    for route in routes():
        if {players._player, lobby_desk._desk} & callees(route.dependant):
            assert route.path_format.startswith(LOBBIES), route.path_format
