"""A pool's decision in words and numbers, for people: `GET /api/v3/pools`."""

from typing import Any

from fleet.pools.pool import Pool
from fleet.times import iso


def explain(region: str, pool: Pool, now: int, cost_per_hour: float = 0.0) -> dict[str, Any]:
    """Everything that a person needs to see why the pool is as big as it is."""
    spec, decision, wish = pool.spec or "", pool.decision, pool.wish
    shelf, total = pool.shelf, pool.total
    warm, booting = shelf.count(spec, "warm"), shelf.count(spec, "booting")
    stale = len(shelf) - sum(shelf.count(spec, state) for state in ("warm", "booting", "ailing", "unsure"))
    blocked = now < pool.blocked_until
    return {
        "region": region,
        "compute_size": wish.compute_size,
        "build": wish.build_name,
        "build_version": pool.product.version if pool.product else None,
        "mode": wish.policy.mode,
        "slo": wish.policy.slo,
        "floor": wish.floor,
        "ceiling": wish.ceiling,
        "target": pool.levels.target,
        "keep": pool.levels.keep,
        "auto_target": decision.auto_target if decision else None,
        "stock": {
            "booting": booting,
            "warm": warm,
            "frozen": sum(entry.frozen for entry in shelf.entries()),
            "leaving": warm - shelf.staying(spec),
            "ailing": shelf.count(spec, "ailing"),
            "unsure": shelf.count(spec, "unsure"),
            "stale": stale,
            "claimed": pool.claimed,
        },
        "demand": {
            "arrivals": total.arrivals,
            "hits": total.hits,
            "misses": total.misses,
            "boots": total.boots,
            "boot_failures": total.boot_failures,
        },
        "lead_seconds": round(pool.lead_s, 3),
        "hit_rate": {
            "expected": round(decision.expected_hit_rate, 6) if decision else None,
            "observed": round(total.hits / total.arrivals, 6) if total.arrivals else None,
        },
        "cost_per_hour": round(cost_per_hour * (warm + booting), 6),
        "blocked": {"until": iso(pool.blocked_until), "failures": pool.failures, "last": pool.last_failure}
        if blocked or pool.failures
        else None,
        "explanation": decision.explanation if decision else {},
    }
