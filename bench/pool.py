"""The pool policy against others, in virtual time: `make bench-pool`, or `python -m bench.pool --quick`.

One set of defaults, nothing tuned per shape. The constants were chosen on seed 1, on the shapes in `TUNED_ON`;
`HELD_OUT` was never looked at. Nobody looked at this seed before the version whose figures docs/pool-policy.md shows.
Writes pool.json and pool.svg into --out.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fleet.simulate import baselines
from fleet.simulate.baselines import Script, by_hindsight, run
from fleet.simulate.compare import Terms, run_ours
from fleet.simulate.replay import Outcome
from fleet.simulate.shapes import SHAPES, Demand, synthetic

TUNED_ON = ("calm", "diurnal", "launch", "flash", "streamer", "outage", "batch", "timetable")
HELD_OUT = ("drift",)
LEADS = (30.0, 180.0)
SEED = 20261
RATES = {1.0: 7.0, 6.0: 7.0, 30.0: 2.0}  # starts per minute: days from a Monday on
SLOS = (0.9, 0.95, 0.98, 0.99, 0.999)
FRONTIER_SHAPES = ("diurnal", "streamer", "flash", "outage", "launch", "drift")
ANNOUNCED_S = (0.0, 20.0, 40.0, 60.0)

Point = tuple[float, float]  # hit rate, mean pool


def main() -> None:
    arguments = _arguments()
    begun = time.process_time()
    rates = {6.0: 2.0} if arguments.quick else RATES
    want = arguments.part.split(",")
    rows = list(_table(rates)) if "table" in want else []
    frontiers = list(_frontiers(2.0 if arguments.quick else 4.0)) if "frontier" in want else []
    leading = list(_announced(1.0 if arguments.quick else 2.0)) if "announced" in want else []
    speed = _million() if "million" in want else None
    found = {"seed": SEED, "table": rows, "frontier": frontiers, "announced": leading, "million": speed}
    found["cpu_seconds"] = round(time.process_time() - begun, 1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "pool.json").write_text(json.dumps(found, indent=1))
    if frontiers:
        _draw(frontiers, arguments.out / "pool.svg")
        _draw(frontiers, arguments.out / "pool.png")
    if rows and frontiers:
        _summary(rows, frontiers)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    parser.add_argument("--part", default="table,frontier,announced,million", help="of these, with commas between")
    parser.add_argument("--quick", action="store_true", help="two days at one rate")
    return parser.parse_args()


def _table(rates: dict[float, float]) -> Iterable[dict[str, Any]]:
    _say(f"{'lead':>4} {'shape':10} {'/min':>5} {'hits':>7} {'pool':>7} {'x oracle':>8} {'x fixed':>8} worst hour")
    for lead_s in LEADS:
        for shape in SHAPES:
            for rate, days in rates.items():
                row = _row(lead_s, shape, rate, days)
                yield row
                _say(
                    f"{lead_s:4.0f} {shape:10} {rate:5.0f} {row['hit_rate']:7.4f} {row['mean_pool']:7.2f} "
                    f"{row['to_oracle']:8.3f} {row['to_fixed']:8.3f} {row['worst_hour']:10.3f}"
                    f"{'  held-out shape' if shape in HELD_OUT else ''}"
                )


def _row(lead_s: float, shape: str, rate: float, days: float) -> dict[str, Any]:
    demand, terms = synthetic(shape, SEED, rate, days), Terms(leads=(lead_s,))
    script = Script.of(demand)
    ours, oracle = run_ours(demand, terms), _oracle(demand, script, terms)
    fixed = by_hindsight(lambda size: run(script, baselines.fixed(script, size), terms.lead_of()), 0.99, 0, 32, 1)
    return {
        "lead_s": lead_s,
        "shape": shape,
        "held_out_shape": shape in HELD_OUT,
        "per_minute": rate,
        "claims": len(demand.times),
        "hit_rate": ours.hit_rate,
        "mean_pool": ours.mean_pool,
        "worst_hour": ours.worst_hour_hit_rate,
        "oracle": [oracle.hit_rate, oracle.mean_pool],
        "fixed": [fixed.hit_rate, fixed.mean_pool],
        "to_oracle": ours.mean_pool / oracle.mean_pool,
        "to_fixed": ours.mean_pool / fixed.mean_pool,
    }


def _oracle(demand: Demand, script: Script, terms: Terms) -> Outcome:
    assert demand.rate is not None
    return run(script, baselines.oracle(script, demand.rate, terms.lead_s, terms.slo), terms.lead_of())


def _frontiers(days: float) -> Iterable[dict[str, Any]]:
    _say("\nfrontier: pool of the others over ours at the same hit rate; above 1 ours is better")
    for lead_s in LEADS:
        for shape in FRONTIER_SHAPES:
            demand, terms = synthetic(shape, SEED + 1, 6.0, days), Terms(leads=(lead_s,))
            ours = [_point(run_ours(demand, terms, slo=slo)) for slo in SLOS]
            others = _sweeps(demand, Script.of(demand), terms)
            over = {name: _over(ours, points) for name, points in others.items()}
            yield {"lead_s": lead_s, "shape": shape, "ours": ours, "others": others, "over": over}
            shown = "  ".join(f"{name} {min(values):.2f}..{max(values):.2f}" for name, values in over.items() if values)
            _say(f"{lead_s:4.0f} {shape:10} {shown}")


def _sweeps(demand: Demand, script: Script, terms: Terms) -> dict[str, list[Point]]:
    mean = len(demand.times) / (demand.ends - demand.begins) * terms.lead_s
    sizes = sorted({max(1, round(mean * factor)) for factor in np.geomspace(0.8, 16, 14).tolist()})
    shares = (np.geomspace(0.3, 8, 12) * terms.lead_s / terms.session_s).tolist()

    def play(targets: baselines.Targets) -> Point:
        return _point(run(script, targets, terms.lead_of()))

    return {
        "fixed": [play(baselines.fixed(script, size)) for size in sizes],
        "percentage": [play(baselines.percentage(script, share, terms.session_s)) for share in shares],
        "Holt-Winters": [play(baselines.holt_winters(script, terms.lead_s, slo)) for slo in (*SLOS, 0.9999, 0.999999)],
        "reactive": [play(baselines.reactive(script, terms.lead_s, slo)) for slo in (*SLOS, 0.9999, 0.999999)],
    }


def _point(outcome: Outcome) -> Point:
    return outcome.hit_rate, outcome.mean_pool


def _over(ours: list[Point], theirs: list[Point]) -> list[float]:
    """At each hit rate of ours that the other can reach: its pool over ours (linear in the logarithms)."""
    known = sorted((_log_miss(hit), np.log(pool)) for hit, pool in theirs)
    places, pools = [one for one, _ in known], [one for _, one in known]
    found: list[float] = []
    for hit, pool in ours:
        place = _log_miss(hit)
        if places[0] <= place <= places[-1]:
            found.append(float(np.exp(np.interp(place, places, pools)) / pool))
    return found


def _log_miss(hit_rate: float) -> float:
    return -float(np.log(max(1 - hit_rate, 1e-6)))


def _announced(days: float) -> Iterable[dict[str, Any]]:
    _say("\nclaims announced ahead (all of them): hits and pool over the oracle's")
    for lead_s in LEADS:
        for shape in ("diurnal", "streamer", "flash", "outage"):
            demand, terms = synthetic(shape, SEED + 2, 6.0, days), Terms(leads=(lead_s,))
            base = _oracle(demand, Script.of(demand), terms)
            cells: list[str] = []
            for ahead in ANNOUNCED_S:
                ours = run_ours(demand, terms, announced_s=ahead)
                ratio = ours.mean_pool / base.mean_pool
                yield {
                    "lead_s": lead_s,
                    "shape": shape,
                    "ahead_s": ahead,
                    "hit_rate": ours.hit_rate,
                    "to_oracle": ratio,
                }
                cells.append(f"{ahead:.0f} s {ours.hit_rate:.4f} x{ratio:.2f}")
            _say(f"{lead_s:4.0f} {shape:10} " + "   ".join(cells))


def _million() -> dict[str, float]:
    """A week of a million starts through the production functions."""
    demand = synthetic("weekly", SEED, per_minute=1_000_000 / 10_080)
    wall, cpu = time.perf_counter(), time.process_time()
    ours = run_ours(demand, Terms(leads=(30.0,)))
    found = {
        "claims": float(len(demand.times)),
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "hit_rate": ours.hit_rate,
        "mean_pool": ours.mean_pool,
    }
    _say(f"\n{found['claims']:.0f} starts of a week in {found['wall_s']:.0f} s (CPU {found['cpu_s']:.0f} s)")
    return found


def _summary(rows: list[dict[str, Any]], frontiers: list[dict[str, Any]]) -> None:
    for lead_s in LEADS:
        mine = [row for row in rows if row["lead_s"] == lead_s]
        reached = sum(row["hit_rate"] >= 0.99 for row in mine)
        ratio, fixed = _median(mine, lambda row: row["to_oracle"]), _median(mine, lambda row: row["to_fixed"])
        below = sum(row["to_fixed"] < 1 for row in mine)
        over = [value for one in frontiers if one["lead_s"] == lead_s for v in one["over"].values() for value in v]
        _say(
            f"lead {lead_s:.0f} s: 99 % in {reached} of {len(mine)}; pool x{ratio:.2f} the oracle's and x{fixed:.2f} "
            f"the best fixed stock's (median), below it in {below}; "
            f"frontier better at {np.mean(np.array(over) >= 1):.0%} of points"
        )


def _median(rows: list[dict[str, Any]], of: Callable[[dict[str, Any]], float]) -> float:
    return float(np.median([of(row) for row in rows]))


def _draw(frontiers: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, grid = plt.subplots(2, len(FRONTIER_SHAPES), figsize=(20, 8), layout="constrained")
    for axes, one in zip(grid.flat, frontiers, strict=True):
        for (name, points), style in zip(one["others"].items(), ("s--", "o--", "^--", "D--"), strict=True):
            _line(axes, points, style, name, 1.0)
        _line(axes, one["ours"], "k*-", "ours", 2.0)
        axes.axhline(0.01, color="0.6", linewidth=0.8)
        axes.set(xscale="log", yscale="log", ylim=(0.4, 2e-4), title=f"{one['shape']}, lead {one['lead_s']:.0f} s")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(True, which="both", linewidth=0.3)
    grid[0][0].legend(fontsize=8)
    figure.supxlabel("mean pool (ready + booting)")
    figure.supylabel("share of starts without a warm server (up is better)")
    figure.savefig(path, dpi=80)


def _line(axes: Any, points: list[Point], style: str, name: str, width: float) -> None:
    ordered = sorted(points, key=lambda point: point[1])
    axes.plot(
        [pool for _, pool in ordered], [max(1 - hit, 1e-5) for hit, _ in ordered], style, lw=width, ms=5, label=name
    )


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
