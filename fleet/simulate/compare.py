"""All policies beside each other on the same arrivals."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from fleet.pools.stock import StockPolicy
from fleet.simulate import baselines
from fleet.simulate.baselines import Script, by_hindsight, run
from fleet.simulate.ours import Ours
from fleet.simulate.replay import LeadOf, Outcome, replay
from fleet.simulate.shapes import Demand, Floats, estimated

OURS = "ours"
SESSION_S = 1200.0


@dataclass(frozen=True, slots=True)
class Terms:
    """Under which terms the policies compete. Several lead times: each boot takes one of them by chance."""

    leads: tuple[float, ...] = (30.0,)
    slo: float = 0.99
    session_s: float = SESSION_S
    seed: int = 0

    @property
    def lead_s(self) -> float:
        return sum(self.leads) / len(self.leads)

    def lead_of(self) -> LeadOf:
        """A fresh source of lead times; always the same ones."""
        if len(self.leads) == 1:
            only = self.leads[0]
            return lambda: only
        chance = random.Random(self.seed)
        return lambda: chance.choice(self.leads)


def run_ours(demand: Demand, terms: Terms, *, slo: float | None = None, announced_s: float = 0.0) -> Outcome:
    """The production functions, with one set of defaults."""
    times: Sequence[float] = demand.times.tolist()
    policy = StockPolicy(slo=terms.slo if slo is None else slo)
    several = len(terms.leads) > 1
    ours = Ours(terms.lead_s, policy, learn_lead=several, announced_s=announced_s, times=times)
    return replay(times, ours, terms.lead_of(), demand.begins, demand.ends)


def true_rate(demand: Demand, lead_s: float) -> Floats:
    """What the oracle knows: the rate that made the arrivals, or for recorded ones its smoothed estimate."""
    return estimated(demand, lead_s) if demand.rate is None else demand.rate


def compare(demand: Demand, terms: Terms) -> dict[str, Outcome]:
    """Every policy's outcome, ours first."""
    script, slo, lead_s = Script.of(demand), terms.slo, terms.lead_s
    peak = 4.0

    def table(targets: baselines.Targets) -> Outcome:
        return run(script, targets, terms.lead_of())

    def best_fixed(size: float) -> Outcome:
        return table(baselines.fixed(script, size))

    def best_share(share: float) -> Outcome:
        return table(baselines.percentage(script, share, terms.session_s))

    def best_refill(size: float) -> Outcome:
        return run(script, baselines.refill_5min(script, size), terms.lead_of(), drops=False)

    return {
        OURS: run_ours(demand, terms),
        "oracle": table(baselines.oracle(script, true_rate(demand, lead_s), lead_s, slo)),
        "best fixed (hindsight)": by_hindsight(best_fixed, slo, 0, 8 * peak, 1),
        "percentage (hindsight)": by_hindsight(best_share, slo, 0.0, 0.25, 0.004),
        "refill every 5 min (hindsight)": by_hindsight(best_refill, slo, 0, 16 * peak, 1),
        "Holt-Winters": table(baselines.holt_winters(script, lead_s, slo)),
        "reactive quantile": table(baselines.reactive(script, lead_s, slo)),
    }
