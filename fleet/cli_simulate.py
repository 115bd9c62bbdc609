"""`fleet simulate`: what-if in virtual time, through the production functions."""

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fleet.errors import FleetError
from fleet.settings import get_settings

if TYPE_CHECKING:
    from fleet.simulate.shapes import Demand

simulate = typer.Typer(no_args_is_help=True, help="What-if in virtual time.")


@simulate.callback()
def _group() -> None:
    """What-if in virtual time, through the functions that run in production."""


@simulate.command("pools")
def pools(
    arrivals: Annotated[Path | None, typer.Option(help="CSV of start times: epoch seconds or ISO 8601")] = None,
    column: Annotated[str | None, typer.Option(help="the column to read, by name or number")] = None,
    counts: Annotated[bool, typer.Option(help="rows are a minute and how many starts came in it")] = False,
    pool: Annotated[str | None, typer.Option(help="recorded demand of a pool here: REGION/SIZE[/BUILD]")] = None,
    lead_time: Annotated[float, typer.Option(min=0.1, max=86_400, help="seconds from order to warm")] = 30.0,
    lead_times: Annotated[Path | None, typer.Option(help="file of measured lead times, drawn by chance")] = None,
    slo: Annotated[float, typer.Option(min=0.5, max=0.9999, help="share of starts that shall find a server")] = 0.99,
    session: Annotated[float, typer.Option(min=1, help="seconds a game lasts, for the percentage policy")] = 1200.0,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    plot: Annotated[Path | None, typer.Option(help="write a plot, .svg or .png")] = None,
    synthetic: Annotated[str | None, typer.Option(help="a synthetic week instead of a file; 'list' names them")] = None,
    per_minute: Annotated[float, typer.Option(min=0.001, max=10_000, help="mean starts of a synthetic week")] = 6.0,
    days: Annotated[float, typer.Option(min=0.05, max=70, help="length of the synthetic time")] = 7.0,
    seed: Annotated[int, typer.Option(min=0, help="of the synthetic week")] = 0,
) -> None:
    """Replay demand through our pool policy and others: hit rate, pool, idle hours, wait."""
    from fleet.simulate.arrivals import read_arrivals, read_leads
    from fleet.simulate.compare import Terms, compare
    from fleet.simulate.recorded import recorded
    from fleet.simulate.show import as_json as json_of
    from fleet.simulate.show import as_table, draw

    try:
        if [arrivals, synthetic, pool].count(None) != 2:
            raise FleetError("Give one of --arrivals FILE.csv, --pool and --synthetic SHAPE.", error="No demand")
        if pool is not None:
            demand = recorded(get_settings(), pool)
        elif arrivals is not None:
            demand = read_arrivals(arrivals, column, counts=counts)
        else:
            demand = _synthetic(str(synthetic), seed, per_minute, days)
        leads = read_leads(lead_times) if lead_times else (lead_time,)
        if plot is not None and plot.suffix not in (".svg", ".png"):
            raise FleetError(f"{plot} should end in .svg or .png.", error="Bad plot name")
        terms = Terms(leads=leads, slo=slo, session_s=session, seed=seed)
        found = compare(demand, terms)
        title = f"{len(demand.times)} starts, lead {terms.lead_s:g} s, {slo:.2%} wanted"
        if plot is not None:
            draw(found, plot, title, slo)
    except FleetError as error:
        typer.echo(f"{error.error}: {error.detail}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(json_of(found)))
    else:
        Console(highlight=False).print(as_table(found, title))


@simulate.command("month")
def month(
    seed: Annotated[int, typer.Option(min=0)] = 0,
    matches: Annotated[int, typer.Option(min=0, max=5000)] = 200,
    entries: Annotated[int, typer.Option(min=0, max=5000, help="pool servers")] = 150,
    worlds: Annotated[int, typer.Option(min=0, max=500, help="persistent servers")] = 20,
) -> None:
    """A month of a project with restarts, crashes and lost nodes: its statement beside a count of its own."""
    from fleet.simulate.audit import as_table, audit

    found = asyncio.run(audit(seed, matches, entries, worlds))
    Console(highlight=False).print(as_table(found))
    if not found.agrees:
        typer.echo("The statement and the count differ.", err=True)
        raise typer.Exit(1)


@simulate.command("matchmaking")
def matchmaking(
    mode: Annotated[str, typer.Option(help="a sample mode, or a JSON file with a mode's config")] = "5v5",
    per_minute: Annotated[float, typer.Option(min=0.1, max=20_000, help="lobbies that queue")] = 120.0,
    minutes: Annotated[float, typer.Option(min=0.5, max=1_440, help="length of the virtual time")] = 20.0,
    curve: Annotated[str, typer.Option(help="how they come: steady, day or rush")] = "steady",
    parties: Annotated[bool, typer.Option(help="some queue together")] = True,
    skill_sd: Annotated[float, typer.Option(min=0, max=100, help="spread of skills")] = 6.0,
    seed: Annotated[int, typer.Option(min=0, help="of the population")] = 0,
    exact: Annotated[bool, typer.Option(help="compare snapshots with an exact solver, too (needs scipy)")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    plot: Annotated[Path | None, typer.Option(help="write a plot, .svg or .png")] = None,
) -> None:
    """Let a population queue: waits, skill, latency; our matcher beside first come first served and fixed windows."""
    from fleet.simulate import match_compare, match_show

    try:
        if plot is not None and plot.suffix not in (".svg", ".png"):
            raise FleetError(f"{plot} should end in .svg or .png.", error="Bad plot name")
        terms = match_compare.Terms(mode, per_minute, minutes * 60, curve, parties, skill_sd, seed)
        found = match_compare.compare(terms)
        solved = match_compare.against_exact(terms) if exact else []
        if plot is not None:
            match_show.draw(found, plot, terms.title)
    except FleetError as error:
        typer.echo(f"{error.error}: {error.detail}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(match_show.as_json(found, solved)))
        return
    console = Console(highlight=False)
    console.print(match_show.as_table(found, terms.title))
    if solved:
        console.print(match_show.solver_table(solved))


def _synthetic(shape: str, seed: int, per_minute: float, days: float) -> "Demand":
    from fleet.simulate.shapes import SHAPES, synthetic

    if shape not in SHAPES:
        raise FleetError(f"'{shape[:40]}' is no shape; there are {', '.join(SHAPES)}.", error="Unknown shape")
    return synthetic(shape, seed, per_minute, days)
