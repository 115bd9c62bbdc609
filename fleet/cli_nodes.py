"""`fleet nodes …`: the machines that regions lease."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from fleet.cli_api import show_table
from fleet.errors import NotFound

if TYPE_CHECKING:
    from fleet.admin import NodeInfo

nodes = typer.Typer(invoke_without_command=True, help="The nodes that regions lease: list, drain, undrain.")


@nodes.callback()
def listing(context: typer.Context) -> None:
    """The nodes that regions lease now, and those that were asked for."""
    if context.invoked_subcommand is not None:
        return
    from fleet.admin import Fleet

    with Fleet("auto") as fleet:
        found = [one for region in fleet.regions() if region.live for one in fleet.nodes(region.region)]
    rows = [
        [
            one.node_id,
            one.region,
            one.node_class,
            one.state,
            one.runtime,
            one.runs,
            f"{one.memory_free_mb}/{one.memory_mb} MB" if one.memory_free_mb is not None else "",
            f"{one.lead_s:.1f} s",
        ]
        for one in found
    ]
    show_table(["node", "region", "class", "state", "runtime", "servers", "free memory", "lead time"], rows)
    for warning, of in warnings_of(found).items():
        typer.echo(f"WARNING: {warning} ({', '.join(of)})")


def warnings_of(found: "Iterable[NodeInfo]") -> dict[str, list[str]]:
    """Each warning with the nodes that give it."""
    warnings: dict[str, list[str]] = {}
    for one in found:
        for warning in one.warnings:
            warnings.setdefault(warning, []).append(one.node_id)
    return warnings


@nodes.command()
def drain(node_id: Annotated[str, typer.Argument(help="as `fleet nodes` shows it")]) -> None:
    """Place nothing more on a node. What runs there goes on; idle pool servers move. It stays until `undrain`."""
    _drain(node_id, draining=True)


@nodes.command()
def undrain(node_id: Annotated[str, typer.Argument(help="as `fleet nodes` shows it")]) -> None:
    """Let a drained node take servers again."""
    _drain(node_id, draining=False)


def _drain(node_id: str, *, draining: bool) -> None:
    from fleet.admin import Fleet

    region = node_id.partition("@")[0].partition("+")[0]
    with Fleet("auto") as fleet:
        if region not in {one.region for one in fleet.regions()}:
            raise NotFound(f"'{node_id[:100]}' names no region. `fleet nodes` shows the names.", error="Node not found")
        fleet.drain(region, node_id, draining=draining)
    typer.echo(f"{node_id} {'drains' if draining else 'takes servers again'}")
