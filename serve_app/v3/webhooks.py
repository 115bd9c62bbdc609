"""Webhooks: where the project's events are sent, and what became of them."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from fleet.store.tables import Webhook, WebhookDelivery
from fleet.times import iso
from serve_app.auth import Context, ServerKey
from serve_app.json import StrictJsonRoute, json_response
from serve_app.policy import Caller, Policy
from serve_app.v3.common import Body, Flag, errors

router = APIRouter(prefix="/api/v3/webhooks", route_class=StrictJsonRoute, tags=["Events"])
MAY_CALL: Policy = {
    "list_webhooks": Caller.SERVER,
    "create_webhook": Caller.SERVER,
    "get_webhook": Caller.SERVER,
    "change_webhook": Caller.SERVER,
    "delete_webhook": Caller.SERVER,
    "rotate_secret": Caller.SERVER,
    "test_webhook": Caller.SERVER,
    "list_deliveries": Caller.SERVER,
    "resend": Caller.SERVER,
    "resend_dead": Caller.SERVER,
}

Url = Annotated[str, Field(min_length=8, max_length=2048, examples=["https://studio.example/fleet-events"])]
Events = Annotated[
    list[Annotated[str, Field(max_length=100)]] | None,
    Field(max_length=64, description="Kinds or types, e.g. `server`, `build.ready`; none: all", examples=[["server"]]),
]
DeliveryId = Annotated[int, Path(ge=1, le=2**63 - 1)]


class WebhookIn(Body):
    model_config = ConfigDict(extra="forbid")
    url: Url
    events: Events = None
    enabled: Flag = True


class WebhookChange(Body):
    model_config = ConfigDict(extra="forbid")
    url: Url = ""
    events: Events = None
    enabled: Flag = True


class WebhookOut(BaseModel):
    id: str
    url: str
    events: list[str] | None
    enabled: bool
    disabled_reason: str | None
    created_at: str
    updated_at: str


class NewWebhookOut(WebhookOut):
    secret: str = Field(description="Signs what is sent (standardwebhooks.com). Shown this once")


class WebhookListOut(BaseModel):
    webhooks: list[WebhookOut]
    total: int


class DeliveryOut(BaseModel):
    id: int
    event_id: str
    type: str
    state: Literal["pending", "delivered", "dead"]
    attempts: int
    next_at: str | None = Field(description="When it is tried next")
    last_status: int | None
    last_error: str | None
    created_at: str
    updated_at: str
    payload: dict[str, Any] | None


class DeliveryListOut(BaseModel):
    deliveries: list[DeliveryOut]
    total: int
    limit: int
    offset: int
    has_more: bool


class ResentOut(BaseModel):
    resent: int


@router.get("", response_model=WebhookListOut, responses=errors(401, 403), summary="Webhooks")
async def list_webhooks(caller: ServerKey, context: Context) -> Response:
    """All of the project, oldest first (an extension, as all of these)."""
    hooks = await context.webhooks.all_of(caller.project_id)
    return json_response({"webhooks": [_view(hook) for hook in hooks], "total": len(hooks)})


@router.post(
    "", status_code=201, response_model=NewWebhookOut, responses=errors(400, 401, 403, 409), summary="Make a webhook"
)
async def create_webhook(body: WebhookIn, caller: ServerKey, context: Context) -> Response:
    """Events are sent to `url` from now on, each with an id, a time and a signature in its headers."""
    hook, secret = await context.webhooks.create(caller.project_id, body.url, body.events, body.enabled)
    return json_response(_view(hook) | {"secret": secret}, 201)


@router.get("/{webhook_id}", response_model=WebhookOut, responses=errors(401, 403, 404), summary="One webhook")
async def get_webhook(webhook_id: str, caller: ServerKey, context: Context) -> Response:
    """What it is sent, and whether it is on."""
    return json_response(_view(await context.webhooks.get(caller.project_id, webhook_id)))


@router.patch("/{webhook_id}", response_model=WebhookOut, responses=errors(400, 401, 403, 404), summary="Change it")
async def change_webhook(webhook_id: str, body: WebhookChange, caller: ServerKey, context: Context) -> Response:
    """What is left out stays. Enabled again, it goes on with what waits."""
    change = {name: getattr(body, name) for name in body.model_fields_set}
    return json_response(_view(await context.webhooks.change(caller.project_id, webhook_id, change)))


@router.delete("/{webhook_id}", status_code=204, responses=errors(401, 403, 404), summary="Delete it")
async def delete_webhook(webhook_id: str, caller: ServerKey, context: Context) -> Response:
    """With all that waits to be sent."""
    await context.webhooks.delete(caller.project_id, webhook_id)
    return Response(status_code=204)


@router.post(
    "/{webhook_id}/rotate-secret",
    response_model=NewWebhookOut,
    responses=errors(401, 403, 404),
    summary="Give it another secret",
)
async def rotate_secret(webhook_id: str, caller: ServerKey, context: Context) -> Response:
    """The old one signs nothing from now on."""
    hook, secret = await context.webhooks.rotate(caller.project_id, webhook_id)
    return json_response(_view(hook) | {"secret": secret})


@router.post(
    "/{webhook_id}/test",
    status_code=202,
    response_model=DeliveryOut,
    responses=errors(401, 403, 404, 409),
    summary="Send a test message",
)
async def test_webhook(webhook_id: str, caller: ServerKey, context: Context) -> Response:
    """A message of type `webhook.test`; what becomes of it is in the deliveries."""
    return json_response(_delivery(await context.webhooks.test(caller.project_id, webhook_id)), 202)


@router.get(
    "/{webhook_id}/deliveries",
    response_model=DeliveryListOut,
    responses=errors(401, 403, 404),
    summary="What was sent, waits, or was given up",
)
async def list_deliveries(
    webhook_id: str,
    caller: ServerKey,
    context: Context,
    state: Literal["pending", "delivered", "dead"] | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> Response:
    """Newest first. Delivered ones are kept for three days, dead ones for thirty."""
    found, total = await context.webhooks.deliveries(caller.project_id, webhook_id, state, limit, offset)
    return json_response(
        {
            "deliveries": [_delivery(one) for one in found],
            "total": total,
            "limit": limit,
            "offset": offset,
            "has_more": offset + len(found) < total,
        }
    )


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/resend",
    status_code=202,
    response_model=DeliveryOut,
    responses=errors(401, 403, 404),
    summary="Send one again",
)
async def resend(webhook_id: str, delivery_id: DeliveryId, caller: ServerKey, context: Context) -> Response:
    """With as many attempts as a new one, and the same id."""
    return json_response(_delivery(await context.webhooks.resend(caller.project_id, webhook_id, delivery_id)), 202)


@router.post(
    "/{webhook_id}/resend-dead",
    status_code=202,
    response_model=ResentOut,
    responses=errors(401, 403, 404),
    summary="Send all again that were given up",
)
async def resend_dead(webhook_id: str, caller: ServerKey, context: Context) -> Response:
    """All that has been given up, again from the first attempt."""
    return json_response({"resent": await context.webhooks.resend_dead(caller.project_id, webhook_id)}, 202)


def _view(hook: Webhook) -> dict[str, Any]:
    return {
        "id": hook.id,
        "url": hook.url,
        "events": hook.events,
        "enabled": hook.enabled,
        "disabled_reason": hook.disabled_reason,
        "created_at": iso(hook.created_at),
        "updated_at": iso(hook.updated_at),
    }


def _delivery(sent: WebhookDelivery) -> dict[str, Any]:
    return {
        "id": sent.id,
        "event_id": sent.event_id,
        "type": sent.type,
        "state": sent.state,
        "attempts": sent.attempts,
        "next_at": iso(sent.next_at) if sent.state == "pending" else None,
        "last_status": sent.last_status,
        "last_error": sent.last_error,
        "created_at": iso(sent.created_at),
        "updated_at": iso(sent.updated_at),
        "payload": sent.payload,
    }
