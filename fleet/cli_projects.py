"""The commands of the fleet's operator: projects, their plans and keys. They need the home folder, and no key."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer

from fleet.cli_api import console, show_table
from fleet.ops.home import OpsError, find_home
from fleet.ops.keys import CLI, open_admin
from fleet.projects.admin_service import AdminService, status_of
from fleet.projects.model import KeyKind
from fleet.settings import get_settings
from fleet.store.tables import Project
from fleet.times import iso

projects = typer.Typer(no_args_is_help=True, help="Projects: make, suspend, delete them; their plans and keys.")
_PAGE = 1000

ProjectId = Annotated[str, typer.Argument(metavar="PROJECT", help="A project's id, or the beginning of it")]


def _with_admin(work: Callable[[AdminService], Awaitable[Any]]) -> Any:
    settings = get_settings()
    if find_home(settings.home) is None:
        raise OpsError(f"There is no fleet in {settings.home}. Start one with 'fleet up'.")

    async def run() -> Any:
        async with open_admin(settings) as (admin, _):
            return await work(admin)

    return asyncio.run(run())


async def _find(admin: AdminService, start_of_id: str) -> str:
    """The one project whose id begins so; the text itself if none or several do."""
    found = [one.id for one in (await admin.page(_PAGE, 0, deleted=True))[0] if one.id.startswith(start_of_id)]
    return found[0] if len(found) == 1 else start_of_id


def _say(project: Project) -> None:
    console.print(f"{project.id}  {project.name}  {project.plan or '-'}  {status_of(project)}", markup=False)


def _act(work: Callable[[AdminService, str], Awaitable[Project]], project: str) -> None:
    async def run(admin: AdminService) -> Project:
        return await work(admin, await _find(admin, project))

    _say(_with_admin(run))


@projects.command("list")
def list_projects(
    everything: Annotated[bool, typer.Option("--all", help="Also those that were deleted")] = False,
) -> None:
    """Every project, oldest first."""

    async def run(admin: AdminService) -> list[Project]:
        return (await admin.page(_PAGE, 0, deleted=everything))[0]

    rows = [[one.id, one.name, one.plan or "-", status_of(one), iso(one.created_at)] for one in _with_admin(run)]
    show_table(["id", "name", "plan", "status", "created"], rows)


@projects.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What the project is called")],
    plan: Annotated[str, typer.Option(help="Its plan, of configs/plans.yaml")] = "pro",
) -> None:
    """Make a project. Its keys are shown this once."""

    async def run(admin: AdminService) -> Any:
        return await admin.create(CLI, name, plan)

    project, made = _with_admin(run)
    _say(project)
    console.print(f"  server key  {made.server_key}\n  client key  {made.client_key}", markup=False)


@projects.command("rename")
def rename(project: ProjectId, name: Annotated[str, typer.Argument(help="Its new name")]) -> None:
    """Give a project another name."""
    _act(lambda admin, found: admin.change(CLI, found, name=name, plan=None), project)


@projects.command("plan")
def plan(project: ProjectId, plan: Annotated[str, typer.Argument(help="Its new plan")]) -> None:
    """Move a project to another plan. What runs goes on."""
    _act(lambda admin, found: admin.change(CLI, found, name=None, plan=plan), project)


@projects.command("suspend")
def suspend(
    project: ProjectId,
    drain: Annotated[bool, typer.Option("--drain", help="Stop its servers too")] = False,
    reason: Annotated[str | None, typer.Option(help="For the audit log")] = None,
) -> None:
    """Refuse a project's keys until it is resumed."""
    _act(lambda admin, found: admin.suspend(CLI, found, drain=drain, reason=reason), project)


@projects.command("resume")
def resume(project: ProjectId) -> None:
    """Let a suspended project go on."""
    _act(lambda admin, found: admin.resume(CLI, found), project)


@projects.command("delete")
def delete(
    project: ProjectId,
    grace: Annotated[int, typer.Option(help="Seconds that its servers may go on")] = 0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
) -> None:
    """Stop its servers, export its data to exports/ in the home, delete it. The running fleet does it."""
    if not yes:
        typer.confirm(f"Delete project {project} and all that it has?", abort=True)
    _act(lambda admin, found: admin.delete(CLI, found, grace_s=grace), project)


@projects.command("rotate")
def rotate(
    project: ProjectId,
    kind: Annotated[KeyKind, typer.Argument(help="server or client")],
    overlap: Annotated[int, typer.Option(help="Seconds that the old key works yet")] = 0,
) -> None:
    """Replace one of a project's keys. The new one is shown this once."""

    async def run(admin: AdminService) -> str:
        return (await admin.rotate(CLI, await _find(admin, project), kind, overlap))[0]

    console.print(_with_admin(run), markup=False)


@projects.command("audit")
def audit(
    project: Annotated[str | None, typer.Option(help="Only of this project")] = None,
    limit: Annotated[int, typer.Option(help="So many, newest first")] = 50,
) -> None:
    """Who administered what."""

    async def run(admin: AdminService) -> Any:
        found = await _find(admin, project) if project else None
        return (await admin.audit(limit, None, found, None))[0]

    rows = [[iso(one.at), one.actor, one.action, one.project_id or "", one.data or ""] for one in _with_admin(run)]
    show_table(["at", "who", "did", "project", "what"], rows)
