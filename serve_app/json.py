"""Compact JSON, everywhere the same: clients that parse with sed need `"key":"value"` without a space."""

from typing import Any, cast

import orjson
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

JSON = "application/json"


def json_response(data: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(data), status_code=status, media_type=JSON, headers=headers)


class StrictJsonRequest(Request):
    """Reads the body with orjson: no NaN, no lone surrogates, a bounded depth."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = cast(object, orjson.loads(await self.body()))
        return self._json


class StrictJsonRoute(APIRoute):
    """A FastAPI route whose body is read by `StrictJsonRequest`."""

    def get_route_handler(self) -> Any:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(StrictJsonRequest(request.scope, request.receive))

        return handle
