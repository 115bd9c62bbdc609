"""The `api-key` header: who calls, and whether that kind of key may."""

from typing import Annotated

from fastapi import Depends, Security
from fastapi.security import APIKeyHeader
from starlette.requests import Request

from fleet.errors import Forbidden
from fleet.projects.model import Principal
from serve_app.context import AppContext

_header = APIKeyHeader(
    name="api-key",
    auto_error=False,
    description="The project's server key (`pf_…`, everything) or client key (`pfclient_…`, safe to ship, limited).",
)


def context_of(request: Request) -> AppContext:
    """The replica's services."""
    context: AppContext = request.app.state.context
    return context


async def _context(request: Request) -> AppContext:
    """As a coroutine, since FastAPI hands plain functions to another thread, which costs more than most requests."""
    return context_of(request)


async def _any_key(request: Request, key: Annotated[str | None, Security(_header)]) -> Principal:
    return await context_of(request).projects.authenticate(key)


async def _server_key(caller: Annotated[Principal, Depends(_any_key)]) -> Principal:
    if not caller.is_server:
        raise Forbidden("A client key may not do this; use the project's server key, from a server of yours.")
    return caller


AnyKey = Annotated[Principal, Depends(_any_key)]
ServerKey = Annotated[Principal, Depends(_server_key)]
Context = Annotated[AppContext, Depends(_context)]
