"""What the operator's calls take and give."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from fleet.projects.admin_service import status_of
from fleet.projects.plans import Plan
from fleet.store.tables import AdminEvent, ApiKey, Project
from fleet.times import iso
from serve_app.v3.common import NUMBER, Flag

Name = Annotated[str, StringConstraints(min_length=1, max_length=256, strip_whitespace=True, pattern=r"\S")]
PlanName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MAX_GRACE_S = 7 * 86_400
MAX_OVERLAP_S = 90 * 86_400


class ProjectIn(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "My Studio", "plan": "pro"}]})
    name: Name
    plan: PlanName = "pro"


class ProjectChange(BaseModel):
    name: Name | None = None
    plan: PlanName | None = None


class SuspendIn(BaseModel):
    drain: Flag = Field(default=False, description="Stop its servers too")
    reason: Annotated[str, StringConstraints(max_length=500)] | None = Field(default=None, description="For the log")


class RotateIn(BaseModel):
    overlap_seconds: Annotated[int, Field(ge=0, le=MAX_OVERLAP_S), NUMBER] = Field(
        default=0, description="How long the old key works yet"
    )


class ProjectOut(BaseModel):
    project_id: str
    name: str
    plan: str
    status: Literal["active", "suspended", "deleting", "deleted"]
    created_at: str
    updated_at: str
    suspended_at: str | None
    deleted_at: str | None


class NewProjectOut(ProjectOut):
    server_key: str = Field(description="Shown this once")
    client_key: str = Field(description="Shown this once")


class ProjectListOut(BaseModel):
    projects: list[ProjectOut]
    total: int
    limit: int
    offset: int
    has_more: bool


class KeyOut(BaseModel):
    kind: Literal["server", "client"]
    hint: str | None = Field(description="Its kind and last characters")
    created_at: str
    expires_at: str | None


class KeyListOut(BaseModel):
    keys: list[KeyOut]


class NewKeyOut(BaseModel):
    kind: Literal["server", "client"]
    key: str = Field(description="Shown this once")
    previous: list[KeyOut] = Field(description="Those that still work, and until when")


class PlanOut(BaseModel):
    """A limit that is null does not exist."""

    name: str
    max_servers: int | None
    ttl: int | None = Field(description="Forced on every server")
    sizes: list[str] | None
    pools: bool


class PlanListOut(BaseModel):
    plans: list[PlanOut]


class AuditEntry(BaseModel):
    id: int
    at: str
    actor: str = Field(description="The admin key's hint, or `cli`")
    action: str = Field(examples=["project.suspend"])
    project_id: str | None
    request_id: str | None
    data: dict[str, Any] | None


class AuditOut(BaseModel):
    entries: list[AuditEntry]
    total: int
    next_before: int | None = Field(description="Send it as `before` for what is older; null: there is nothing older")


def project_view(project: Project) -> dict[str, Any]:
    return {
        "project_id": project.id,
        "name": project.name,
        "plan": project.plan,
        "status": status_of(project),
        "created_at": iso(project.created_at),
        "updated_at": iso(project.updated_at),
        "suspended_at": iso(project.suspended_at),
        "deleted_at": iso(project.deleted_at),
    }


def key_view(key: ApiKey) -> dict[str, Any]:
    return {"kind": key.kind, "hint": key.hint, "created_at": iso(key.created_at), "expires_at": iso(key.expires_at)}


def plan_view(plan: Plan) -> dict[str, Any]:
    sizes = None if plan.sizes is None else sorted(plan.sizes)
    return plan.model_dump() | {"sizes": sizes}


def entry_view(entry: AdminEvent) -> dict[str, Any]:
    return {
        "id": entry.id,
        "at": iso(entry.at),
        "actor": entry.actor,
        "action": entry.action,
        "project_id": entry.project_id,
        "request_id": entry.request_id,
        "data": entry.data,
    }
