"""What v2 build calls give."""

from typing import Any, Literal

from pydantic import BaseModel

from fleet.store.tables import Build
from serve_app.v3.build_schemas import build_view


class LegacyBuildOut(BaseModel):
    """v2 knows no `processing`: until its end is known, a build is `uploading`."""

    build_id: str
    name: str
    version: int
    status: Literal["uploading", "ready", "failed", "deleted"]
    created_at: str
    updated_at: str | None


class LegacyBuildListOut(BaseModel):
    builds: list[LegacyBuildOut]
    total_builds: int


class LegacyBuildFoundOut(BaseModel):
    name: str
    build: LegacyBuildOut | None
    found: bool
    message: str


class LegacyUploadOut(BaseModel):
    build_id: str
    name: str
    upload_url: str
    message: str


class LegacyUploadedOut(BaseModel):
    build_id: str
    name: str
    status: Literal["upload_started"]
    message: str
    version: int
    file_size: int | None
    upload_time: str


class LegacyDeletedOut(BaseModel):
    status: Literal["success"]
    message: str


def legacy_build_view(row: Build) -> dict[str, Any]:
    whole = build_view(row)
    view = {name: whole[name] for name in LegacyBuildOut.model_fields}
    return view | ({"status": "uploading"} if row.status == "processing" else {})
