"""A month's statement as a page to read and to print. Complete in itself: no script, no other file."""

from decimal import Decimal
from html import escape
from string import Template

from fleet.billing.intervals import HOUR_MS
from fleet.billing.statement import Line, Statement
from fleet.times import iso

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Statement $month: $project</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root { --ink: #1c2330; --soft: #5d6778; --line: #d9dee7; --tint: #f5f7fa; --accent: #2456c5; }
* { box-sizing: border-box; }
body { margin: 0; padding: 48px 24px; color: var(--ink); background: var(--tint);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 820px; margin: 0 auto; padding: 48px; background: #fff; border: 1px solid var(--line);
  border-radius: 10px; }
header { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 16px;
  padding-bottom: 20px; border-bottom: 3px solid var(--accent); }
h1 { margin: 0; font-size: 26px; letter-spacing: -.01em; }
header p, footer { margin: 2px 0; color: var(--soft); font-size: 13px; }
header div:last-child { text-align: right; }
.sum { display: flex; flex-wrap: wrap; gap: 12px; margin: 28px 0; }
.sum div { flex: 1 1 150px; padding: 14px 16px; background: var(--tint); border-radius: 8px; }
.sum b { display: block; font-size: 19px; font-variant-numeric: tabular-nums; }
.sum span { color: var(--soft); font-size: 13px; }
.sum .total { color: #fff; background: var(--accent); } .sum .total span { color: #dbe5ff; }
h2 { margin: 28px 0 4px; font-size: 16px; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 8px; border-bottom: 1px solid var(--line); text-align: left; }
th { color: var(--soft); font-size: 12px; font-weight: 600; }
.n { text-align: right; white-space: nowrap; }
tfoot td { font-weight: 600; border-bottom: 0; }
footer { margin-top: 32px; padding-top: 16px; border-top: 1px solid var(--line); }
@media (max-width: 600px) { body { padding: 0; } main { padding: 24px 16px; border: 0; border-radius: 0; }
  header div:last-child { text-align: left; } table { font-size: 12px; } th, td { padding: 6px 3px; } }
@media print { @page { margin: 16mm; } body { padding: 0; background: #fff; font-size: 12px; }
  main { padding: 0; border: 0; max-width: none; } .sum div { border: 1px solid var(--line); }
  .sum .total { color: var(--ink); background: #fff; } .sum .total span { color: var(--soft); }
  tr { break-inside: avoid; } }
</style></head><body><main>
<header><div><h1>Statement</h1><p>$month</p></div><div><p><strong>$project</strong></p><p>$project_id</p></div></header>
<section class="sum"><div><span>Used</span><b>$used</b></div><div><span>Idle pool</span><b>$idle</b></div>
<div class="total"><span>Total</span><b>$total</b></div>$forecast</section>
$tables
<footer>Times from $start to $end (UTC). $note
Each line is rounded once; amounts are in $currency.</footer>
</main></body></html>
""")
_TITLES = {"used": "Servers in use", "idle": "Pool servers waiting for players"}


def invoice(statement: Statement, project: str, forecast: int | None) -> str:
    """The page of a statement of one month. `forecast`: millionths, for a month that has not ended."""
    lines = [line for period in statement.periods for line in period.lines if line.ms]
    tables = "\n".join(_table(title, [line for line in lines if line.kind == kind]) for kind, title in _TITLES.items())
    running = statement.as_of < statement.end
    guess = f"<div><span>Forecast</span><b>{_money(forecast)}</b></div>" if forecast is not None else ""
    return _PAGE.substitute(
        month=(iso(statement.start) or "")[:7],
        project=escape(project),
        project_id=escape(statement.project_id),
        used=_money(statement.amount("used"), 6),
        idle=_money(statement.amount("idle"), 6),
        total=_money(statement.amount(), 6),
        forecast=guess,
        tables=tables if lines else "<p>Nothing ran in this month.</p>",
        start=(iso(statement.start) or "")[:10],
        end=(iso(statement.end) or "")[:10],
        note=f"Running servers are counted up to {iso(statement.as_of)}." if running else "",
        currency=escape(statement.currency),
    )


def _table(title: str, lines: list[Line]) -> str:
    if not lines:
        return ""
    rows = "".join(
        f"<tr><td>{escape(line.region)}</td><td>{escape(line.size)}</td><td class=n>{_hours(line.ms)}</td>"
        f"<td class=n>{_money(line.price, 6)}</td><td class=n>{_money(line.amount, 6)}</td></tr>"
        for line in lines
    )
    ms, amount = sum(line.ms for line in lines), sum(line.amount for line in lines)
    return (
        f"<h2>{title}</h2><table><thead><tr><th>Region</th><th>Size</th><th class=n>Time (h:m:s)</th>"
        f"<th class=n>Per hour</th><th class=n>Amount</th></tr></thead><tbody>{rows}</tbody>"
        f"<tfoot><tr><td colspan=2>Sum</td><td class=n>{_hours(ms)}</td><td></td>"
        f"<td class=n>{_money(amount, 6)}</td></tr></tfoot></table>"
    )


def _hours(ms: int) -> str:
    hours, rest = divmod(ms, HOUR_MS)
    return f"{hours:,}:{rest // 60_000:02d}:{rest % 60_000 / 1000:06.3f}"


def _money(micros: int, places: int = 2) -> str:
    """Whole cents for a guess; all places where what is shown must add up."""
    return f"{Decimal(micros) / 1_000_000:,.{places}f}"
