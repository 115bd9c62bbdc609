"""The comparison as a table, as JSON and as a plot."""

from pathlib import Path
from typing import Any

from rich.table import Table

from fleet.simulate.compare import OURS
from fleet.simulate.replay import Outcome


def as_json(found: dict[str, Outcome]) -> dict[str, Any]:
    return {"policies": {name: one.as_json() for name, one in found.items()}, "ours": OURS}


def as_table(found: dict[str, Outcome], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("policy")
    for name in ("hit rate", "mean pool", "idle server hours", "p99 wait", "worst hour"):
        table.add_column(name, justify="right")
    for name, one in found.items():
        numbers = (
            f"{one.hit_rate:.4f}",
            f"{one.mean_pool:.2f}",
            f"{one.idle_server_hours:.1f}",
            f"{one.p99_wait:.1f} s",
            f"{one.worst_hour_hit_rate:.3f}",
        )
        table.add_row(name, *numbers, style="bold" if name == OURS else "")
    return table


def draw(found: dict[str, Outcome], path: Path, title: str, slo: float) -> None:
    """Hit rate against mean pool, one mark a policy: up is better, left is cheaper."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for number, (name, one) in enumerate(found.items()):
        ours = name == OURS
        axes.scatter(
            one.mean_pool,
            max(1 - one.hit_rate, 1e-5),
            s=130 if ours else 60,
            marker="*" if ours else "osD^vPX"[number % 7],
            zorder=3 if ours else 2,
            label=f"{name}: {one.hit_rate:.2%}, pool {one.mean_pool:.1f}",
        )
    axes.axhline(1 - slo, color="0.6", linewidth=0.8, linestyle="--")
    axes.set_yscale("log")
    axes.set_xscale("log")
    axes.invert_yaxis()
    for axis, text in ((axes.xaxis, "{x:g}"), (axes.yaxis, "{x:.3%}")):
        axis.set_major_formatter(StrMethodFormatter(text))
        few = max(axis.get_view_interval()) < 20 * min(axis.get_view_interval())
        axis.set_minor_formatter(StrMethodFormatter(text) if few else NullFormatter())
        axis.set_tick_params(which="minor", labelsize=7)
    axes.set_xlabel("mean pool (ready + booting servers)")
    axes.set_ylabel("share of starts that found no warm server")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(True, which="both", linewidth=0.3)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
