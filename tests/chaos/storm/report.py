"""What came of it: a JSON file per run, and one table over any number of runs."""

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

from tests.chaos.storm.kinds import KINDS
from tests.chaos.storm.schedule import Fault

WRONG = ("lost", "twice", "leaked")


@dataclass
class Done:
    """A fault that was done. `what`: whom it hit, "" if there was nobody. Seconds; `over_at` by the monotonic clock."""

    fault: Fault
    what: str = ""
    over_at: float = 0.0
    recovery_s: float | None = None
    alone: bool = False


@dataclass
class Wave:
    number: int
    faults: list[int]
    counts: dict[str, int] = field(default_factory=dict[str, int])
    findings: list[str] = field(default_factory=list[str])
    acknowledged: int = 0
    canary_s: float | None = None
    late: bool = False
    load: float = 0.0  # of the machine, over the last minute, when all was well again


@dataclass
class Result:
    seed: int
    database: str
    machines: int
    revision: str = ""
    waves: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    faults: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    broken: list[str] = field(default_factory=list[str])
    seconds: float = 0.0
    logs: Path | None = None
    file: Path | None = None
    began: float = field(default_factory=time.monotonic)

    def add(self, wave: Wave, done: list[Done]) -> None:
        self.waves.append(asdict(wave))
        for one in done:
            if one.what:
                self.faults.append(
                    asdict(one.fault) | {"what": one.what, "recovery_s": one.recovery_s, "alone": one.alone}
                )
        self.write()

    def write(self) -> None:
        """After each wave, so that a run that is broken off counts as far as it came."""
        if self.file is not None:
            self.seconds = round(time.monotonic() - self.began, 1)
            content = {name: value for name, value in asdict(self).items() if name not in ("logs", "file", "began")}
            self.file.write_text(json.dumps(content, indent=1))

    @property
    def failed(self) -> bool:
        return bool(self.broken) or any(
            wave["late"] or any(wave["counts"].get(name) for name in WRONG) for wave in self.waves
        )


def read(path: Path) -> Result:
    return Result(**json.loads(path.read_text()))


def table(results: list[Result]) -> str:
    """Markdown. Acknowledged effects and wrongs count for every kind that was in their wave."""
    lines = [
        "| Fault | times | alone | acknowledged | lost | twice | leaked | late "
        "| back p50 | p95 | max | alone p50 | bound | page |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    total: Counter[str] = Counter()
    for name, kind in KINDS.items():
        row = _row(name, results)
        if row["times"]:
            times = [_s(row[key]) for key in ("p50", "p95", "max", "alone_p50")]
            counts = [str(row[key]) for key in ("times", "alone", "acknowledged", *WRONG, "late")]
            lines.append(f"| {name} | {' | '.join([*counts, *times])} | {kind.bound_s:.0f} s | {kind.says} |")
    for result in results:
        for wave in result.waves:
            total["waves"] += 1
            total["acknowledged"] += wave["acknowledged"]
            total["late"] += wave["late"]
            for kind in WRONG:
                total[kind] += wave["counts"].get(kind, 0)
        total["faults"] += len(result.faults)
        total["together"] += _together(result)
    canaries = [wave["canary_s"] for result in results for wave in result.waves if wave["canary_s"] is not None]
    lines += [
        "",
        f"{total['faults']} faults ({total['together']} of them within a second of another) in {total['waves']} waves; "
        f"{total['acknowledged']} effects acknowledged; lost {total['lost']}, twice {total['twice']}, "
        f"leaked {total['leaked']}, waves beyond their bound {total['late']}. A start in every region, from request to "
        f"played, right after each recovery: p50 {_s(_share(canaries, 50))}, p95 {_s(_share(canaries, 95))}, "
        f"max {_s(max(canaries, default=None))}.",
    ]
    for result in results:
        lines.append(
            f"Run: {result.database}, {result.machines} machine(s), seed {result.seed}, {len(result.faults)} faults, "
            f"{result.seconds:.0f} s, load of the machine {_loads(result)}, {result.revision}"
        )
    return "\n".join(lines)


def _row(name: str, results: list[Result]) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(("times", "alone", "acknowledged", *WRONG, "late"), 0)
    recoveries: list[float] = []
    alone: list[float] = []
    for result in results:
        mine = [fault for fault in result.faults if fault["kind"] == name]
        row["times"] += len(mine)
        row["alone"] += sum(fault["alone"] for fault in mine)
        recoveries += [fault["recovery_s"] for fault in mine if fault["recovery_s"] is not None]
        alone += [fault["recovery_s"] for fault in mine if fault["recovery_s"] is not None and fault["alone"]]
        numbers = {fault["number"] for fault in mine}
        for wave in result.waves:
            if numbers & set(wave["faults"]):
                row["acknowledged"] += wave["acknowledged"]
                row["late"] += wave["late"]
                for kind in WRONG:
                    row[kind] += wave["counts"].get(kind, 0)
    times = {"p50": _share(recoveries, 50), "p95": _share(recoveries, 95), "max": max(recoveries, default=None)}
    return row | times | {"alone_p50": _share(alone, 50)}


def _loads(result: Result) -> str:
    loads = [wave.get("load", 0.0) for wave in result.waves]
    return f"{min(loads):.0f} to {max(loads):.0f}" if loads else "-"


def _together(result: Result) -> int:
    by_wave: dict[int, list[float]] = {}
    for fault in result.faults:
        by_wave.setdefault(fault["wave"], []).append(fault["at"])
    return sum(
        any(place != other and abs(at - beside) <= 1 for other, beside in enumerate(moments))
        for moments in by_wave.values()
        for place, at in enumerate(moments)
    )


def _share(values: list[float], percent: int) -> float | None:
    if len(values) < 2:
        return values[0] if values else None
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def _s(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
