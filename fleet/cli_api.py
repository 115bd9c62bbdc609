"""The commands that speak to the API: servers, builds, logs."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn
from rich.table import Column, Table

from fleet.client import FleetClient, RetryPolicy
from fleet.client.models import BuildOut, LogOut, ServerOut
from fleet.client.requests import PortIn, StartIn
from fleet.errors import BadRequest, Unavailable
from fleet.ops.home import Access, find_home, read_access
from fleet.settings import get_settings

# What goes into a pipe is not cut to the width of a terminal.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 240)
builds = typer.Typer(no_args_is_help=True, help="Builds: list them, push a new one.")

Status = Literal["launching", "running", "stopped"]
ServerId = Annotated[str, typer.Argument(metavar="ID", help="A server's instance_id, or the beginning of it")]


ShowKeys = Annotated[bool, typer.Option("--show-keys", help="Show the project's keys again")]


def show_project_keys(access: Access, *, shown: bool) -> None:
    if shown:
        console.print(f"  server key  {access.server_key}\n  client key  {access.client_key}")
    else:
        console.print("  keys        in fleet.json of the home; --show-keys shows them here")


def connect() -> FleetClient:
    """FLEET_URL and FLEET_API_KEY if set, else the fleet of the home folder."""
    url, key = os.environ.get("FLEET_URL"), os.environ.get("FLEET_API_KEY")
    settings = get_settings()
    home = find_home(settings.home)
    access = read_access(home) if home else None
    if access is None and not (url and key):
        raise Unavailable(
            f"No fleet is known here ({settings.home} has no fleet.json). "
            "Start one with 'fleet up', or set FLEET_URL and FLEET_API_KEY.",
            error="No fleet",
        )
    # Whoever types a command does not wait a minute for a fleet that is down.
    retry = RetryPolicy(total_s=10.0)
    return FleetClient(url or (access.url if access else ""), key or (access.server_key if access else ""), retry=retry)


def servers(
    everything: Annotated[bool, typer.Option("--all", help="Also launching, stopped, pool servers")] = False,
) -> None:
    """List the servers that run."""
    with connect() as fleet:
        status: list[Status] | None = ["launching", "running", "stopped"] if everything else None
        answer = fleet.servers.list(include_pool=everything, status=status)
    rows = [
        [one.instance_id, one.name, one.status, one.region, one.compute_size, ports_of(one)] for one in answer.servers
    ]
    show_table(["id", "name", "status", "region", "size", "players connect to"], rows)
    if answer.total > len(rows):
        console.print(f"[dim]… and {answer.total - len(rows)} more[/dim]")


def pools() -> None:
    """List the warm pools: what stands ready, what is wanted, how often a start found one."""
    with connect() as fleet:
        found = fleet.pools.list().pools
    titles = ["region", "size", "build", "mode", "warm", "booting", "claimed", "target", "hits", "misses", "lead", ""]
    rows = [
        [
            pool.region,
            pool.compute_size,
            pool.build,
            pool.mode,
            *(pool.stock[name] for name in ("warm", "booting", "claimed")),
            f"{pool.target} ({pool.floor}-{pool.ceiling})",
            *(pool.demand[name] for name in ("hits", "misses")),
            f"{pool.lead_seconds:.2f} s",
            f"does not boot: {pool.blocked['last']}" if pool.blocked else "",
        ]
        for pool in found
    ]
    show_table(titles, rows)


def ports_of(server: ServerOut) -> str:
    return ", ".join(f"{port.host}:{port.external_port}/{port.protocol}" for port in server.network_ports)


def show_table(titles: list[str], rows: list[list[Any]]) -> None:
    table = Table(*(Column(title, overflow="fold") for title in titles), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table if rows else "[dim]none[/dim]")


def start(
    name: Annotated[str, typer.Argument(help="What the server is called")],
    region: Annotated[str, typer.Option(help="Where it runs")] = "us-east",
    build: Annotated[str, typer.Option(help="Name of the build")] = "default",
    size: Annotated[str, typer.Option(help="Compute size")] = "small",
    args: Annotated[str | None, typer.Option(help="Command line of the game")] = None,
    port: Annotated[list[str] | None, typer.Option(help="Port as name:number/udp or /tcp, again for each")] = None,
) -> None:
    """Start a server and wait until players can connect."""
    wanted: StartIn = {"name": name, "region": region, "version_tag": build, "compute_size": size}
    if args is not None:
        wanted["startup_args"] = args
    if port:
        wanted["port_configs"] = [parse_port(text) for text in port]
    with connect() as fleet:
        server = fleet.servers.start(wait_running=60, **wanted)
    console.print(f"{server.instance_id}  {server.status}  {ports_of(server)}")
    if server.status != "running":
        console.print(f"It does not run (yet). See: fleet logs {server.instance_id}")
        raise typer.Exit(1)


def parse_port(text: str) -> PortIn:
    """`game:7777/udp` as the API has it."""
    name, _, rest = text.partition(":")
    number, _, protocol = rest.partition("/")
    if not (name and number.isdigit() and protocol in ("", "udp", "tcp")):
        raise BadRequest(f"'{text}' is no port. Write it as name:number/udp or name:number/tcp.")
    return {"name": name, "internal_port": int(number), "protocol": "tcp" if protocol == "tcp" else "udp"}


def stop(instance_id: ServerId) -> None:
    """Stop a server gracefully."""
    with connect() as fleet:
        found = full_id(fleet, instance_id)
        fleet.servers.stop(found)
    console.print(f"{found}  stopped")


def full_id(fleet: FleetClient, start_of_id: str) -> str:
    """The one server that is alive and whose id begins so; the text itself if none does (it may have stopped)."""
    if len(start_of_id) >= 36:
        return start_of_id
    alive = fleet.servers.iterate(include_launching=True, include_pool=True)
    found = [one.instance_id for one in alive if one.instance_id.startswith(start_of_id)]
    if len(found) > 1:
        raise BadRequest(f"'{start_of_id}' fits several servers: {', '.join(found)}")
    return found[0] if found else start_of_id


def logs(
    instance_id: ServerId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the server ends")] = False,
) -> None:
    """Show what a server wrote; it stays readable after the server has stopped."""
    with connect() as fleet:
        found = full_id(fleet, instance_id)
        for line in fleet.servers.follow_logs(found) if follow else fleet.servers.all_logs(found):
            print_line(line)


def print_line(line: LogOut) -> None:
    console.print(f"[dim]{line.timestamp}[/dim] ", end="")
    console.print(line.message, markup=False, style="red" if line.level == "error" else None)


@builds.command("list")
def list_builds(name: Annotated[str | None, typer.Option(help="Only builds of this name")] = None) -> None:
    """The newest builds."""
    with connect() as fleet:
        found = fleet.builds.list(name=name).builds
    rows = [[one.build_id, one.name, one.version, one.status, one.build_type, one.created_at] for one in found]
    show_table(["id", "name", "version", "status", "type", "created"], rows)


@builds.command("push")
def push(
    source: Annotated[Path, typer.Argument(help="The game's folder, or a ZIP of it", exists=True)],
    name: Annotated[str, typer.Option(help="Name of the build")] = "default",
    executable: Annotated[str, typer.Option(help="What to run, inside the folder")] = "Server.x86_64",
    ready_by: Annotated[
        Literal["ports", "game"], typer.Option(help="A server runs when its ports are open, or when the game says so")
    ] = "ports",
) -> None:
    """Upload a game and wait until it is ready to start."""
    with connect() as fleet:
        build = push_build(fleet, source, name, executable, ready_by)
    console.print(f"{build.name} version {build.version} is ready  [dim]{build.build_id}[/dim]")


def push_build(
    fleet: FleetClient, source: Path, name: str, executable: str, ready_by: Literal["ports", "game"] = "ports"
) -> BuildOut:
    """Pack, upload, wait; the ready build. `WaitFailed` with the pipeline's log if it failed."""
    columns = ("· Uploading", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as shown:
        task = shown.add_task("", total=None)
        begun = fleet.builds.upload(
            source,
            name=name,
            executable_path=executable,
            ready_by=ready_by,
            progress=lambda sent, total: shown.update(task, completed=sent, total=total),
        )
    return fleet.builds.wait_ready(begun.build_id)


def register(app: typer.Typer) -> None:
    """Add these commands to the `fleet` command."""
    for command in (servers, pools, start, stop, logs):
        app.command()(command)
    app.add_typer(builds, name="builds")
