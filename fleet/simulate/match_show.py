"""The comparison of matchmaking as tables, as JSON and as a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from fleet.simulate.match_compare import OURS, Solved
from fleet.simulate.matchmaking import Result

COLUMNS = (
    ("matched", "matched", "{:.1%}"),
    ("timed out", "timed_out", "{:.1%}"),
    ("wait p50", "wait_p50", "{:.1f} s"),
    ("p95", "wait_p95", "{:.1f} s"),
    ("p99", "wait_p99", "{:.1f} s"),
    ("tails p95", "tail_wait_p95", "{:.1f} s"),
    ("crowded role p95", "crowded_role_wait_p95", "{:.1f} s"),
    ("skill spread", "skill_spread", "{:.2f}"),
    ("team difference", "team_skill_difference", "{:.2f}"),
    ("|P(win)-1/2|", "win_chance_off", "{:.3f}"),
    ("worst ping", "worst_latency", "{:.0f} ms"),
    ("worth", "worth_per_player", "{:.3f}"),
)


def as_json(found: Mapping[str, Result], solved: Sequence[Solved]) -> dict[str, Any]:
    return {
        "strategies": {name: one.as_json() for name, one in found.items()},
        "ours": OURS,
        "exact": [asdict(one) for one in solved],
    }


def as_table(found: Mapping[str, Result], title: str) -> Table:
    """A strategy per column: there are more measures than strategies."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right", style="bold" if name == OURS else "")
    for title_of, name, form in COLUMNS:
        table.add_row(title_of, *(form.format(getattr(one, name)) for one in found.values()))
    faults = [fault for one in found.values() for fault in one.faults]
    table.add_row("broken rules", faults[0] if faults else "none")
    return table


def solver_table(solved: Sequence[Solved]) -> Table:
    title = "snapshots against the exact solver"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("tickets", "possible matches", "proved", "worth of the best", "matches of the best"):
        table.add_column(name, justify="right")
    for one in solved:
        table.add_row(
            str(one.tickets),
            str(one.groups),
            "yes" if one.proved else "no",
            f"{one.worth / one.best_worth:.1%}",
            f"{one.matches} of {one.best_matches}",
        )
    return table


def draw(found: Mapping[str, Result], path: Path, title: str) -> None:
    """Waiting against skill spread, one mark a strategy: lower left is better; lines reach from p50 to p99."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for number, (name, one) in enumerate(found.items()):
        waits = [max(0.01, one.wait_p50), max(0.01, one.wait_p95), max(0.01, one.wait_p99)]
        label = f"{name}: worst ping {one.worst_latency:.0f} ms, |P(win)-1/2| {one.win_chance_off:.3f}"
        axes.plot(waits, [one.skill_spread] * 3, "*-" if name == OURS else "osD"[number % 3] + "-", label=label)
    axes.set_xscale("log")
    axes.set_xlabel("wait p50, p95, p99 (seconds)")
    axes.set_ylabel("skill spread of a match")
    axes.set_ylim(bottom=0)
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(True, which="both", linewidth=0.3)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
