"""`fleet node …`: this machine as a node of a fleet whose head is elsewhere."""

import os
import time
from typing import Annotated

import typer
from rich.console import Console

from fleet.node.facts import default_node_home
from fleet.ops.home import Home, OpsError, find_home, open_home
from fleet.settings import FleetSettings, get_settings
from fleet.telemetry.logs import setup_logging

node = typer.Typer(no_args_is_help=True, help="This machine as a node of a fleet whose head is elsewhere.")
console = Console(highlight=False, soft_wrap=True)

Address = Annotated[str, typer.Option(help="The head's Ray address, such as 10.0.0.5:6379")]
_REGIONS = typer.Option("--region", envvar="FLEET_NODE_REGIONS", help="Region this node serves; may be repeated")
Regions = Annotated[list[str] | None, _REGIONS]
NodeIp = Annotated[str | None, typer.Option("--node-ip", help="This machine's address within the cluster")]


def _own() -> FleetSettings:
    """The settings, with a home of this machine's own made absolute for every process started from here."""
    settings = get_settings()
    home = settings.home if "home" in settings.model_fields_set and "FLEET_HOME" in os.environ else default_node_home()
    os.environ["FLEET_HOME"] = str(home.resolve())
    return settings.model_copy(update={"home": home.resolve()})


def _open() -> tuple[Home, FleetSettings]:
    settings = _own()
    home = open_home(settings.home)
    setup_logging("node", home.path)
    return home, settings


def _step(text: str) -> None:
    console.print(f"[dim]·[/dim] {text}", markup=True)


@node.command("join")
def join_command(address: Address, region: Regions = None, node_ip: NodeIp = None) -> None:
    """Join in the background. Under `ray up` the node's type says its regions."""
    from fleet.ops.node import join

    home, settings = _open()
    join(home, settings, address, region or [], node_ip, _step)
    console.print(f"[bold green]This machine is a node now.[/bold green]\n  logs  {home.logs}")


@node.command("run")
def run_command(address: Address, region: Regions = None, node_ip: NodeIp = None) -> None:
    """Join and stay joined, in the foreground (for systemd): again after every restart of the head."""
    from fleet.ops.node import join, keep_joined, known_by_head, stop_on_signals
    from fleet.ops.processes import end_supervised

    home, settings = _open()
    stop = stop_on_signals()
    keep_joined(
        lambda: join(home, settings, address, region or [], node_ip, _step),
        lambda: known_by_head(home, settings, address),
        home,
        stop,
    )
    end_supervised(home, grace_s=3.0)  # games go on: the next run adopts them


@node.command("leave")
def leave_command() -> None:
    """Stop this node's games and its part of Ray."""
    from fleet.ops.node import leave

    settings = _own()
    home = find_home(settings.home)
    if home is None:
        raise OpsError(f"No node was ever joined from {settings.home}.")
    setup_logging("node", home.path)
    left = leave(home, settings, _step)
    console.print("[bold]This machine has left.[/bold]" if left else "This machine was no node.")


@node.command("notice")
def notice_command(
    seconds: Annotated[int | None, typer.Option("--in", min=0, help="until the machine goes, if that is known")] = None,
) -> None:
    """Say that this machine will be taken away: it drains, and its regions look for another at once."""
    from fleet.node.notice import send

    until = None if seconds is None else int((time.time() + seconds) * 1000)
    told = send(_own().home / "agents", until)
    if not told:
        raise OpsError("No agent listens on this machine. FLEET_HOME names the node's home.")
    console.print(f"Told {', '.join(told)}.")
