"""For Prometheus: `/metrics`, and where Ray's own metrics are.

Meant for the operator, not for users of the API: without a token in the settings only this machine may ask.
"""

import hmac
import ipaddress
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from fleet.errors import Forbidden, Unauthorized
from fleet.proxy_secret import CLIENT_HEADER
from fleet.ray_calls import ray_call
from fleet.settings import FleetSettings
from serve_app.auth import context_of
from serve_app.json import json_response
from serve_app.policy import Caller, Policy

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FORWARDED = ("x-forwarded-for", "x-real-ip", "forwarded")
Targets = Callable[[], list[dict[str, Any]]]


def _operator(request: Request) -> None:
    """Raises unless the caller has the token, or none is set and the call begins on this machine."""
    settings: FleetSettings = context_of(request).settings
    if settings.metrics_token:
        sent = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(sent, f"Bearer {settings.metrics_token}".encode()):
            raise Unauthorized("Send the header 'authorization: Bearer <FLEET_METRICS_TOKEN>'.")
    elif not settings.metrics_public and not is_local(request):
        raise Forbidden(
            "Metrics are for this machine only. To scrape from another, start the fleet with FLEET_METRICS_TOKEN "
            "(Prometheus sends it as authorization credentials) or FLEET_METRICS_PUBLIC=true."
        )


def is_local(request: Request) -> bool:
    """Whether the call came from this machine, through our proxy or straight, and through no other proxy."""
    peer = request.client.host if request.client else ""
    seen_by_proxy = request.headers.get(CLIENT_HEADER, peer)
    forwarded = any(name in request.headers for name in FORWARDED)
    return not forwarded and _loopback(peer) and _loopback(seen_by_proxy)


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


router = APIRouter(include_in_schema=False, dependencies=[Depends(_operator)])
MAY_CALL: Policy = {
    "metrics": Caller.OPERATOR,
    "ray_targets": Caller.OPERATOR,
}


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus' text format, the same numbers whichever replica answers. Carries no ids and no keys."""
    return Response(await request.app.state.scrape.text(), media_type=CONTENT_TYPE)


def _targets(request: Request) -> Targets:
    return request.app.state.ray_targets


@router.get("/metrics/ray")
async def ray_targets(find: Annotated[Targets, Depends(_targets)]) -> Response:
    """Prometheus' HTTP service discovery for Ray's metrics, one target a node."""
    return json_response(await ray_call("the nodes", find))
