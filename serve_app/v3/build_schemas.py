"""What build calls give, with the names of the API page."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints

from fleet.builds.service import ReadyBy
from fleet.store.tables import Build, BuildLog
from fleet.times import iso
from serve_app.v3.common import Body, Flag

BuildName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
READY_BY_MEANS = (
    "When a server counts as running: once its ports are open, or once the game itself has said so as well "
    "(an extension; docs/game-contract.md)"
)
ExecutablePath = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class UploadOut(BaseModel):
    build_id: str
    name: str
    upload_url: str = Field(description="PUT the ZIP here, without a key, before it expires")
    message: str


class UploadedOut(BaseModel):
    status: Literal["uploaded"]
    build_id: str
    message: str


class AcceptedOut(BaseModel):
    status: Literal["accepted"]
    build_id: str
    message: str


class DeletedOut(BaseModel):
    status: Literal["success"]
    message: str


class RegistryCredentials(BaseModel):
    username: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    password: Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class DockerImageIn(Body):
    image_url: Annotated[str, StringConstraints(min_length=1, max_length=512)] = Field(
        description="Image with its tag", examples=["registry.example.com/my/game:1.4"]
    )
    name: BuildName = "default"
    executable_path: ExecutablePath | None = Field(default=None, description="Path inside the image")
    registry_credentials: RegistryCredentials | None = None
    writable: Flag = Field(default=False, description="The game may write into its own folder (an extension)")
    ready_by: ReadyBy = Field(default="ports", description=READY_BY_MEANS)


class BuildOut(BaseModel):
    build_id: str
    name: str
    version: int
    status: Literal["uploading", "processing", "ready", "failed", "deleted"]
    created_at: str
    updated_at: str | None
    build_type: Literal["zip", "docker_image"]
    executable_path: str | None
    image_url: str | None
    failure_reason: str | None = Field(description="Why it is `failed`, in words for the game's developer")


class BuildListOut(BaseModel):
    builds: list[BuildOut]
    total: int
    limit: int
    offset: int
    has_more: bool


class BuildLogLine(BaseModel):
    timestamp: str
    level: str
    message: str


class BuildLogsOut(BaseModel):
    build_id: str
    logs: list[BuildLogLine]
    total: int
    limit: int
    offset: int
    has_more: bool


def build_view(row: Build) -> dict[str, Any]:
    return {
        "build_id": row.build_id,
        "name": row.name,
        "version": row.version,
        "status": row.status,
        "created_at": iso(row.created_at),
        "updated_at": iso(row.updated_at),
        "build_type": row.build_type,
        "executable_path": row.executable_path,
        "image_url": row.image_url,
        "failure_reason": row.error,
    }


def build_log_view(row: BuildLog) -> dict[str, Any]:
    return {"timestamp": iso(row.at), "level": row.level, "message": row.message}
