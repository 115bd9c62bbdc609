"""Entries of the project journal: what happened to things that are not servers.

An entry is added in the transaction that makes the change it tells of, so there is none without the other.
"""

from collections.abc import Iterable
from typing import Any, Literal

from sqlalchemy import insert

from fleet.store.tables import Build, ProjectEvent
from fleet.store.transact import Statement
from fleet.times import now_ms

Kind = Literal["build", "pool", "lobby", "budget", "project"]


def project_event(
    project_id: str, kind: Kind, subject: str, type: str, data: dict[str, Any] | None = None, at: int | None = None
) -> ProjectEvent:
    """An entry for `session.add`. `type` is `kind.what`, e.g. `build.ready`; `subject` the thing's id in its kind."""
    return ProjectEvent(
        project_id=project_id, kind=kind, subject=subject, type=type, data=data, at=now_ms() if at is None else at
    )


def build_event(build: Build, what: str) -> ProjectEvent:
    """`build.<what>`, with what a reader needs to know the build by."""
    data: dict[str, Any] = {"name": build.name, "version": build.version, "build_type": build.build_type}
    if what == "failed":
        data["error"] = build.error
    return project_event(build.project_id, "build", build.build_id, f"build.{what}", data)


def event_statement(events: Iterable[ProjectEvent]) -> Statement:
    """The same for a group commit."""
    rows = [
        {name: getattr(event, name) for name in ("project_id", "kind", "subject", "type", "at", "data")}
        for event in events
    ]
    return insert(ProjectEvent), rows
