"""Compact JSON, everywhere the same: clients that parse with sed need `"key":"value"` without a space."""

import codecs
from typing import Any, cast

import orjson
from fastapi import params
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

JSON = "application/json"
CALLED = "fleet.content_type"  # in the scope: what the client called its JSON


def json_response(data: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(data), status_code=status, media_type=JSON, headers=headers)


class StrictJsonRequest(Request):
    """Reads the body with orjson: no NaN, no lone surrogates, a bounded depth. A byte order mark is skipped."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            text = (await self.body()).removeprefix(codecs.BOM_UTF8)
            if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise HTTPException(400, "The body is UTF-16. Send it as UTF-8.")
            self._json = cast(object, orjson.loads(text))
        return self._json


class StrictJsonRoute(APIRoute):
    """A FastAPI route whose body is read by `StrictJsonRequest`."""

    def get_route_handler(self) -> Any:
        handler = super().get_route_handler()
        takes_json = self.body_field is not None and not isinstance(self.body_field.field_info, params.Form)

        async def handle(request: Request) -> Response:
            if takes_json:
                _call_it_json(request)
            return await handler(StrictJsonRequest(request.scope, request.receive))

        return handle


def _call_it_json(request: Request) -> None:
    """What has a JSON body is JSON, whatever a client calls it: engines and `curl -d` send forms, octets or no type.

    Keys and tokens are never in cookies, so it opens no door to other web pages' forms.
    """
    coding = request.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise HTTPException(415, f"A body with content-encoding '{coding[:50]}' is not taken. Send it plainly.")
    named = request.headers.get("content-type", "")
    if not _is_json(named):
        others = [header for header in request.scope["headers"] if header[0] != b"content-type"]
        request.scope["headers"] = [*others, (b"content-type", JSON.encode())]
        request.scope[CALLED] = named


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == JSON or (kind.startswith("application/") and kind.endswith("+json"))
