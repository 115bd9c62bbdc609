"""What a request holds of its project's shares while it is answered (`fleet/limits/shares.py`)."""

from collections.abc import Coroutine
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

from fleet.actors.tasks import first_done
from fleet.limits.names import ShareName
from fleet.limits.shares import Hold
from fleet.projects.model import Principal
from serve_app.auth import context_of

_REPEATABLE = "idempotency-key"


def hold(request: Request, caller: Principal, name: ShareName) -> Hold:
    """A place for a stream, which releases it. `TooMany` if the project, or the key, has as many as it may."""
    shares = context_of(request).shares
    return shares.take(caller.project_id, caller.plan, name, request.headers.get("api-key", ""))


def held(request: Request, caller: Principal, name: ShareName) -> AbstractContextManager[None]:
    """A place while inside."""
    shares = context_of(request).shares
    return shares.held(caller.project_id, caller.plan, name, request.headers.get("api-key", ""))


async def while_there(request: Request, work: Coroutine[Any, Any, None]) -> None:
    """Until the work is done, or the client is gone: nobody waits for an answer that nobody reads. Not where the
    answer is kept for who asks again."""
    if _REPEATABLE in request.headers:
        await work
    else:
        await first_done(work, _gone(request))


async def _gone(request: Request) -> None:
    await request.body()
    while (await request.receive())["type"] != "http.disconnect":
        pass


class HeldFile(FileResponse):
    """A file on its way; its place is released at the end."""

    def __init__(self, place: Hold, path: Path, **how: Any) -> None:
        super().__init__(path, **how)
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._place.release()
