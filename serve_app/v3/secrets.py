"""A project's secrets: what its games are told and nobody is shown."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from fleet.projects.secrets import MAX_FILE_BYTES, NAME_PATTERN, GivenAs
from fleet.store.tables import Secret
from fleet.times import iso
from serve_app.auth import Context, ServerKey
from serve_app.json import StrictJsonRoute, json_response
from serve_app.policy import Caller, Policy
from serve_app.v3.common import errors

router = APIRouter(prefix="/api/v3/projects/secrets", route_class=StrictJsonRoute, tags=["Projects"])
MAY_CALL: Policy = {
    "list_secrets": Caller.SERVER,
    "put_secret": Caller.SERVER,
    "delete_secret": Caller.SERVER,
}

Name = Annotated[str, Path(alias="secret_name", pattern=NAME_PATTERN, description="The variable's, or the file's name")]


class SecretIn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    value: Annotated[str, Field(min_length=1, max_length=MAX_FILE_BYTES, description="Never shown again")]
    given_as: GivenAs = Field(default="file", description="A file of this name in /run/secrets, or a variable")


class SecretOut(BaseModel):
    """Nothing of it says what is in it."""

    name: str
    given_as: Literal["file", "variable"]
    created_at: str
    updated_at: str
    last_used_at: str | None = Field(description="When a server was last launched with it, to the minute")


class SecretListOut(BaseModel):
    secrets: list[SecretOut]
    total: int


@router.get("", response_model=SecretListOut, responses=errors(401, 403), summary="Secrets")
async def list_secrets(caller: ServerKey, context: Context) -> Response:
    """Their names, and when each was last used; values are never shown."""
    found = await context.secrets.all_of(caller.project_id)
    return json_response({"secrets": [_view(one) for one in found], "total": len(found)})


@router.put(
    "/{secret_name}", response_model=SecretOut, responses=errors(400, 401, 403, 409, 413), summary="Set a secret"
)
async def put_secret(name: Name, body: SecretIn, caller: ServerKey, context: Context) -> Response:
    """Make it, or replace its value. Servers that are launched from now on have it; warm ones are replaced."""
    return json_response(_view(await context.secrets.put(caller.project_id, name, body.value, body.given_as)))


@router.delete("/{secret_name}", status_code=204, responses=errors(401, 403, 404), summary="Delete a secret")
async def delete_secret(name: Name, caller: ServerKey, context: Context) -> Response:
    """Servers that run keep what they were launched with."""
    await context.secrets.delete(caller.project_id, name)
    return Response(status_code=204)


def _view(secret: Secret) -> dict[str, Any]:
    return {
        "name": secret.name,
        "given_as": secret.given_as,
        "created_at": iso(secret.created_at),
        "updated_at": iso(secret.updated_at),
        "last_used_at": iso(secret.last_used_at),
    }
