"""`fleet demo`: a game from its folder to a played packet, through the public API only."""

import socket
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fleet.cli_api import ShowKeys, connect, push_build, show_project_keys
from fleet.client import FleetClient, WaitFailed
from fleet.client.models import NetworkPort, ServerOut
from fleet.client.requests import StartIn
from fleet.errors import BadRequest, FleetError
from fleet.ops.home import Access, find_home, open_home, read_access
from fleet.projects.settings import MAX_LOBBY_CONFIGS
from fleet.settings import get_settings

console = Console(highlight=False, soft_wrap=True)
REGION, BUILD = "us-east", "demo"
LOBBIES: dict[str, Any] = {
    "name": "demo",
    "maxPlayers": 2,
    "serverSettings": {
        "serverSize": "micro",
        "gameBuild": BUILD,
        "portConfigs": [
            {"name": "game", "internal_port": 7777, "protocol": "udp"},
            {"name": "web", "internal_port": 7780, "protocol": "tcp"},  # browsers have no UDP
        ],
    },
    "matchmaking": {"modes": {"1v1": {"teams": 2, "playersPerTeam": 1}}},
}
ANSWER_TIMEOUT_S = 15.0


def demo(show_keys: ShowKeys = False) -> None:
    """Upload the demo game, start a server cold and one from a warm pool, play one packet against it."""
    folder = _demo_folder()
    with connect() as fleet:
        console.print("[dim]·[/dim] Uploading the demo game")
        build = push_build(fleet, folder, BUILD, "Server.x86_64")
        console.print(f"[dim]·[/dim] Build ready: {build.name} version {build.version}")
        console.print(f"[dim]·[/dim] Starting a server in {REGION} (the first one prepares the runtime)")
        _end(fleet, _start(fleet, "demo-first", "--first")[0])
        cold, cold_ms = _start(fleet, "demo-cold", "--cold")
        _end(fleet, cold)
        console.print(f"[dim]·[/dim] Cold, from the request to open ports: [bold]{cold_ms:.0f} ms[/bold]")
        _warm_pool(fleet, build.version)
        server, hot_ms = _start(fleet, "demo", None)
        can_meet = ensure_lobbies(fleet)
    port = server.network_ports[0]
    kind = "From the warm pool" if server.start_kind == "hot" else "Cold again, since the pool was empty"
    console.print(
        f"[dim]·[/dim] {kind}: [bold green]{hot_ms:.0f} ms[/bold green] ({cold_ms / hot_ms:.0f} times faster)"
    )
    answer = ask(port.host, port.external_port, b"join you", ANSWER_TIMEOUT_S)
    console.print(f"[dim]·[/dim] Sent 'join you' by UDP, the game answers: [bold green]{answer.decode()}[/bold green]")
    _tell(server, port, _access(), can_meet, show_keys=show_keys)


def _start(fleet: FleetClient, name: str, args: str | None) -> tuple[ServerOut, float]:
    """A running server, and the milliseconds until it was. With arguments of its own it cannot be a pool's."""
    wanted: StartIn = {"name": name, "region": REGION, "version_tag": BUILD}
    if args:
        wanted["startup_args"] = args
    began = time.perf_counter()
    server = fleet.servers.start(wait_running=60, **wanted)
    if server.status != "running":
        try:
            server = fleet.servers.wait(server.instance_id, within=180)
        except WaitFailed as error:
            raise FleetError(
                f"{error.detail} See: fleet logs {server.instance_id}", error="No running server"
            ) from error
    return server, (time.perf_counter() - began) * 1000


def _end(fleet: FleetClient, server: ServerOut) -> None:
    fleet.servers.stop(server.instance_id)


def _warm_pool(fleet: FleetClient, version: int) -> None:
    """A pool of one server of the demo game, unless the project has pools already; returns when it has this version."""
    if not (fleet.projects.settings().pool_config or {}).get("enabled"):
        fleet.projects.change_settings(
            pool_config={"enabled": True, "regions": {REGION: {"small": {"count": 1, "build": BUILD}}}}
        )
        console.print(f"[dim]·[/dim] A warm pool of one server in {REGION}: pool_config in the project's settings")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        mine = [pool for pool in fleet.pools.list().pools if (pool.region, pool.build) == (REGION, BUILD)]
        if not mine or any(pool.stock["warm"] and pool.build_version == version for pool in mine):
            return
        time.sleep(0.2)


def ensure_lobbies(fleet: FleetClient) -> bool:
    """The project has a lobby config `demo`; what is configured already stays as it is. False if there is no room."""
    configured = fleet.projects.settings().lobby_configs
    if any(LOBBIES["name"] in (one.get("name"), one.get("id")) for one in configured):
        return True
    if len(configured) >= MAX_LOBBY_CONFIGS:
        return False
    fleet.projects.change_settings(lobby_configs=[*configured, LOBBIES])
    return True


def _demo_folder() -> Path:
    package = find_spec("fleet")
    root = Path(package.origin).parent.parent if package and package.origin else Path()
    folder = root / "examples" / "demo-game"
    if not folder.is_dir():
        raise FleetError(f"{folder} is missing: run this from a clone of the repository.", error="No demo game")
    return folder


def ask(host: str, port: int, packet: bytes, timeout_s: float) -> bytes:
    """Send the packet, again each second, until an answer comes; FleetError if none does."""
    deadline = time.monotonic() + timeout_s
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((host, port))
        client.settimeout(1.0)
        while time.monotonic() < deadline:
            try:
                client.send(packet)
                return client.recv(2048)
            except (TimeoutError, ConnectionRefusedError):
                continue
    raise FleetError(f"{host}:{port} sent nothing back within {timeout_s:.0f} s.", error="No answer by UDP")


def ask_command(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT")], packet: Annotated[str, typer.Argument(help="Text")]
) -> None:
    """Send one UDP packet to a game and show its answer."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        raise BadRequest(f"'{address}' is no address. Write it as host:port.")
    console.print(ask(host, int(port), packet.encode(), ANSWER_TIMEOUT_S).decode(errors="replace"), markup=False)


def _access() -> Access | None:
    home = find_home(get_settings().home)
    return read_access(home) if home else None


def play_url(access: Access) -> str:
    """The page of the demo's players. What is behind # stays in the browser."""
    return f"{access.url}/play#key={access.client_key}"


def _tell(server: ServerOut, port: NetworkPort, access: Access | None, can_meet: bool, *, show_keys: bool) -> None:
    address = f"{port.host}:{port.external_port}"
    console.print(f"\n[bold green]A game server runs at {address} (udp)[/bold green]")
    shown = open_home(get_settings().home).shows_keys("demo", asked=show_keys) if access else False
    if access:
        console.print(f"  API         {access.url}/api   reference: {access.url}/api/reference")
        show_project_keys(access, shown=shown)
    if access and can_meet:
        link = play_url(access) if shown else f"{access.url}/play#key=…"  # the client key, where it may be shown
        console.print(f"  play        {link}   (in two tabs: two players meet and play)")
    console.print(f"  logs        {get_settings().home / 'logs'}   (the game's: fleet logs {server.instance_id})")
    console.print("\nWhat to type next:")
    for command, meaning in (
        (f".venv/bin/fleet ask {address} state", "play another packet"),
        (".venv/bin/fleet servers", "what runs"),
        (".venv/bin/fleet pools", "what stands ready, and why"),
        (f".venv/bin/fleet logs -f {server.instance_id}", "what the game says"),
        (f".venv/bin/fleet stop {server.instance_id}", "end it"),
        (".venv/bin/fleet builds push DIR", "upload your own game"),
        ("make down", "stop everything"),
    ):
        console.print(f"  {command}   [dim]# {meaning}[/dim]")
