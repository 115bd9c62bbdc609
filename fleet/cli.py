"""The `fleet` command."""

import asyncio
import os
import subprocess
import sys
from typing import Annotated, Literal

import typer
from rich.console import Console

from fleet.cli_api import ShowKeys, register, show_project_keys, show_table
from fleet.cli_demo import ask_command, demo
from fleet.cli_node import node
from fleet.cli_nodes import nodes
from fleet.cli_projects import projects
from fleet.cli_secrets import secrets
from fleet.cli_simulate import simulate
from fleet.cli_tls import tls
from fleet.cli_usage import usage
from fleet.client import Unreachable
from fleet.errors import FleetError
from fleet.ops.home import Home, OpsError, find_home, open_home, read_access
from fleet.settings import SIMULATED, FleetSettings, get_settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="An open, self-hosted game-server cloud.",
)
keys = typer.Typer(no_args_is_help=True, help="The API keys of the default project, and the admin key.")
console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def _settings() -> FleetSettings:
    """The settings, with the home folder made absolute for every process started from here."""
    settings = get_settings()
    os.environ["FLEET_HOME"] = str(settings.home)
    return settings


def _step(text: str) -> None:
    console.print(f"[dim]·[/dim] {text}", markup=True)


@app.command()
def up(show_keys: ShowKeys = False) -> None:
    """Start the fleet in the background and wait until it answers."""
    from fleet.ops.up import bring_up

    settings = _settings()
    home = open_home(settings.home)
    started = bring_up(home, settings, _step)
    _summary(home, "Fleet is up" if started else "Fleet is already running", show_keys=show_keys)


def _summary(home: Home, title: str, *, show_keys: bool) -> None:
    access = read_access(home)
    console.print(f"[bold green]{title}[/bold green]")
    if access is None:
        console.print(f"{home.access_file} is missing: make new keys with 'fleet keys rotate server'.")
        return
    console.print(f"  API         {access.url}")
    show_project_keys(access, shown=home.shows_keys("up", asked=show_keys))
    console.print(f"  logs        {home.logs}")
    if _simulated(home):
        console.print(f"  [bold yellow]{SIMULATED}[/bold yellow]")


def _simulated(home: Home) -> bool:
    from fleet.ops.head import read_head

    head = read_head(home)
    return head is not None and head.environment.get("FLEET_RUNTIME") == "simulated"


@app.command()
def run(report_fd: Annotated[int | None, typer.Option(hidden=True)] = None) -> None:
    """Start the fleet and keep it running in the foreground (for systemd and containers)."""
    from fleet.ops.supervisor import AlreadyRunning, Supervisor, take_lock
    from fleet.ops.up import pipe_report
    from fleet.telemetry.logs import setup_logging

    settings = _settings()
    home = open_home(settings.home)
    setup_logging("supervisor", home.path)
    try:
        with take_lock(home):
            report = _step if report_fd is None else pipe_report(report_fd)
            raise typer.Exit(asyncio.run(Supervisor(home, settings, report).run()))
    except AlreadyRunning:
        raise OpsError("The fleet is already running. 'fleet status' tells more.") from None


@app.command()
def down() -> None:
    """Stop everything that this fleet started, and only that. Builds, history and keys are kept."""
    from fleet.ops.down import bring_down
    from fleet.telemetry.logs import setup_logging

    settings = _settings()
    setup_logging("cli", settings.home)
    home = find_home(settings.home)
    if home is None:
        console.print(f"There is no fleet in {settings.home}.")
        return
    stopped = bring_down(home, settings, _step)
    console.print("[bold]Fleet is down.[/bold]" if stopped else "Fleet was not running.")


@app.command()
def status() -> None:
    """Whether the fleet runs, where, and what it holds."""
    from fleet.ops import api
    from fleet.ops.engine import engine_answers
    from fleet.ops.head import read_head
    from fleet.ops.supervisor import lock_holder

    settings = _settings()
    home = find_home(settings.home)
    if home is None:
        console.print(f"There is no fleet in {settings.home}. Start one with 'fleet up'.")
        raise typer.Exit(3)
    access, head, supervisor = read_access(home), read_head(home), lock_holder(home)
    url = access.url if access else api.local_url(settings)
    answers = api.healthy(url)
    engine = "answers" if engine_answers() else "none (games run as plain processes, without isolation)"
    if _simulated(home):
        engine = SIMULATED
    rows = [
        ["API", f"{url} {'answers' if answers else 'does not answer'}"],
        ["Ray", head.address if head and head.alive else "does not run"],
        ["supervisor", f"process {supervisor}" if supervisor else "does not run"],
        ["engine", engine],
        ["metrics", f"{url}/metrics"],
        ["home", str(home.path)],
        ["logs", str(home.logs)],
    ]
    show_table(["", ""], rows)
    if not answers:
        raise typer.Exit(3)


@keys.command("rotate")
def rotate(
    kind: Annotated[Literal["server", "client", "admin"], typer.Argument(help="server, client or admin")],
    overlap: Annotated[int, typer.Option(help="Seconds that the old admin key works yet")] = 0,
) -> None:
    """Replace a key of the default project, or the fleet's admin key. The old one stops working within seconds."""
    from fleet.ops.keys import rotate_admin_key, rotate_key

    settings = _settings()
    home = find_home(settings.home)
    if home is None:
        raise OpsError(f"There is no fleet in {settings.home}. Start one with 'fleet up'.")
    if kind == "admin":
        console.print(asyncio.run(rotate_admin_key(home, settings, overlap)))
    else:
        console.print(asyncio.run(rotate_key(home, settings, kind)))


register(app)
app.command()(demo)
app.command("ask")(ask_command)
app.command("usage")(usage)
app.add_typer(keys, name="keys")
app.add_typer(nodes, name="nodes")
app.add_typer(projects, name="projects")
app.add_typer(secrets, name="secrets")
app.add_typer(node, name="node")
app.add_typer(simulate, name="simulate")
app.add_typer(tls, name="tls")


def main() -> None:
    """Run a command; an expected failure is one clear message and exit code 1."""
    try:
        app()
    except FleetError as error:
        errors.print(f"[bold red]{error.error}:[/bold red] ", end="")
        hint = " Is the fleet up? Try 'fleet status'." if isinstance(error, Unreachable) else ""
        errors.print(f"{error.detail}{hint}", markup=False)
        sys.exit(1)
    except (OSError, subprocess.SubprocessError) as error:  # no room, no right, too many processes
        errors.print("[bold red]Operation failed:[/bold red] ", end="")
        errors.print(f"{error}. Is there room on the disk, and the right to write there?", markup=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
