"""The commands that speak to the API: servers, builds, logs."""

import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn
from rich.table import Column, Table

from fleet.errors import BadRequest, FleetError
from fleet.ops.pack import pack
from fleet.ops.rest import Rest
from fleet.settings import get_settings

# What goes into a pipe is not cut to the width of a terminal.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 240)
builds = typer.Typer(no_args_is_help=True, help="Builds: list them, push a new one.")
PROCESS_TIMEOUT_S = 900.0
MAX_LOG_PAGE = 1000

ServerId = Annotated[str, typer.Argument(metavar="ID", help="A server's instance_id, or the beginning of it")]


def connect() -> Rest:
    return Rest.of(get_settings())


def servers(
    everything: Annotated[bool, typer.Option("--all", help="Also launching, stopped, pool servers")] = False,
) -> None:
    """List the servers that run."""
    query: dict[str, Any] = {"limit": 100, "include_pool": everything}
    if everything:
        query["status"] = ["launching", "running", "stopped"]
    with connect() as rest:
        answer = rest.call("GET", "/servers", params=query)
    rows = [
        [s["instance_id"], s["name"], s["status"], s["region"], s["compute_size"], ports_of(s)]
        for s in answer["servers"]
    ]
    show_table(["id", "name", "status", "region", "size", "players connect to"], rows)
    if answer["total"] > len(rows):
        console.print(f"[dim]… and {answer['total'] - len(rows)} more[/dim]")


def pools() -> None:
    """List the warm pools: what stands ready, what is wanted, how often a start found one."""
    with connect() as rest:
        found = rest.call("GET", "/pools")["pools"]
    titles = ["region", "size", "build", "mode", "warm", "booting", "claimed", "target", "hits", "misses", "lead", ""]
    rows = [
        [
            pool["region"],
            pool["compute_size"],
            pool["build"],
            pool["mode"],
            *(pool["stock"][name] for name in ("warm", "booting", "claimed")),
            f"{pool['target']} ({pool['floor']}-{pool['ceiling']})",
            *(pool["demand"][name] for name in ("hits", "misses")),
            f"{pool['lead_seconds']:.2f} s",
            f"does not boot: {pool['blocked']['last']}" if pool["blocked"] else "",
        ]
        for pool in found
    ]
    show_table(titles, rows)


def ports_of(server: dict[str, Any]) -> str:
    return ", ".join(f"{p['host']}:{p['external_port']}/{p['protocol']}" for p in server["network_ports"])


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
    body: dict[str, Any] = {"name": name, "region": region, "version_tag": build, "compute_size": size}
    if args is not None:
        body["startup_args"] = args
    if port:
        body["port_configs"] = [parse_port(text) for text in port]
    with connect() as rest:
        server = rest.call("POST", "/servers/start", json=body, params={"wait_for": "running", "timeout": 60})
    console.print(f"{server['instance_id']}  {server['status']}  {ports_of(server)}")
    if server["status"] != "running":
        console.print(f"It does not run (yet). See: fleet logs {server['instance_id']}")
        raise typer.Exit(1)


def parse_port(text: str) -> dict[str, Any]:
    """`game:7777/udp` as the API has it."""
    name, _, rest = text.partition(":")
    number, _, protocol = rest.partition("/")
    if not (name and number.isdigit()):
        raise BadRequest(f"'{text}' is no port. Write it as name:number/udp or name:number/tcp.")
    return {"name": name, "internal_port": int(number), "protocol": protocol or "udp"}


def stop(instance_id: ServerId) -> None:
    """Stop a server gracefully."""
    with connect() as rest:
        found = full_id(rest, instance_id)
        rest.call("DELETE", f"/servers/{found}")
    console.print(f"{found}  stopped")


def full_id(rest: Rest, start_of_id: str) -> str:
    """The one listed server whose id begins so; the text itself if none does (it may have stopped)."""
    if len(start_of_id) >= 36:
        return start_of_id
    query = {"limit": 100, "include_launching": True, "include_pool": True}
    ids = [s["instance_id"] for s in rest.call("GET", "/servers", params=query)["servers"]]
    found = [candidate for candidate in ids if candidate.startswith(start_of_id)]
    if len(found) > 1:
        raise BadRequest(f"'{start_of_id}' fits several servers: {', '.join(found)}")
    return found[0] if found else start_of_id


def logs(
    instance_id: ServerId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the server ends")] = False,
) -> None:
    """Show what a server wrote; it stays readable after the server has stopped."""
    with connect() as rest:
        path = f"/servers/{full_id(rest, instance_id)}/logs"
        if follow:
            for line in rest.lines(path, params={"follow": True}):
                print_line(line)
            return
        token: str | None = None
        while True:
            query = {"limit": MAX_LOG_PAGE} | ({"start_time": token} if token else {})
            page = rest.call("GET", path, params=query)
            for line in page["logs"]:
                print_line(line)
            token = page["next_token"]
            if not token or len(page["logs"]) < MAX_LOG_PAGE:
                return


def print_line(line: dict[str, Any]) -> None:
    console.print(f"[dim]{line['timestamp']}[/dim] ", end="")
    console.print(line["message"], markup=False, style="red" if line["level"] == "error" else None)


@builds.command("list")
def list_builds(name: Annotated[str | None, typer.Option(help="Only builds of this name")] = None) -> None:
    """The newest builds."""
    with connect() as rest:
        answer = rest.call("GET", "/builds", params={"name": name} if name else {})
    rows = [
        [b["build_id"], b["name"], b["version"], b["status"], b["build_type"], b["created_at"]]
        for b in answer["builds"]
    ]
    show_table(["id", "name", "version", "status", "type", "created"], rows)


@builds.command("push")
def push(
    source: Annotated[Path, typer.Argument(help="The game's folder, or a ZIP of it", exists=True)],
    name: Annotated[str, typer.Option(help="Name of the build")] = "default",
    executable: Annotated[str, typer.Option(help="What to run, inside the folder")] = "Server.x86_64",
) -> None:
    """Upload a game and wait until it is ready to start."""
    with connect() as rest:
        build = push_build(rest, source, name, executable)
    console.print(f"{build['name']} version {build['version']} is ready  [dim]{build['build_id']}[/dim]")


def push_build(rest: Rest, source: Path, name: str, executable: str) -> dict[str, Any]:
    """Pack, upload, wait; the ready build. FleetError with the pipeline's log if it failed."""
    query = {"name": name, "executable_path": executable}
    with tempfile.TemporaryDirectory(prefix="fleet-push-") as folder:
        archive = source
        if source.is_dir():
            archive = Path(folder) / "build.zip"
            pack(source, archive)
        begun = rest.call("POST", "/builds/upload-url", params=query)
        columns = ("· Uploading", BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=archive.stat().st_size)
            rest.upload(begun["upload_url"], archive, lambda sent: progress.advance(task, sent))
    return wait_processed(rest, begun["build_id"])


def wait_processed(rest: Rest, build_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + PROCESS_TIMEOUT_S
    query = {"wait_for": "ready", "timeout": 30}
    while (build := rest.call("GET", f"/builds/{build_id}", params=query))["status"] in ("uploading", "processing"):
        if time.monotonic() > deadline:
            raise FleetError(f"Build {build_id} is still {build['status']}.", error="Still processing")
    if build["status"] != "ready":
        lines = rest.call("GET", f"/builds/{build_id}/logs", params={"limit": 500})["logs"]
        text = "\n".join(f"  {line['level']:7} {line['message']}" for line in lines)
        raise FleetError(f"{build['failure_reason'] or build['status']}\n{text}", error="The build failed")
    return build


def register(app: typer.Typer) -> None:
    """Add these commands to the `fleet` command."""
    for command in (servers, pools, start, stop, logs):
        app.command()(command)
    app.add_typer(builds, name="builds")
