"""How much more room a region will want within the time that a new node takes: minutes, so it must look ahead.

Expected is how the number of running servers usually moves from now on (time-of-week profile, scaled to today), or how
it has moved in the last minutes where that is more. On top come scheduled events, the matchmaking queue as it stands,
and a margin. The margin is what has been enough so far in all but a share 1 - slo of the minutes: each forecast is
compared, when its time has come, with what really happened (adaptive conformal inference). What was wanted is held for
a while, so that nodes are ordered at once and given back slowly. Pure: state in, state out (changed in place).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

from fleet.pools.season import Season

MINUTE_S = 60.0
_RECENT = 30  # minutes that are remembered one by one
_PENDING = 60  # forecasts that wait for their outcome
_FIRST_MARGIN, _MOST_MARGIN = 2.5, 25.0  # in standard deviations of the arrivals of one lead time
_STEP = 0.25  # how fast the margin follows; a breach at slo 0.99 widens it by a quarter of a deviation
_FOLLOW = 0.7  # share of a recent climb that is expected to go on
_GAP_S = 900.0
_MOST_LEAD_S = 3600.0

Events = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class NodePolicy:
    """`slo`: share of the minutes in which the room foreseen is to be enough. `hold_s`: how long a want stays."""

    slo: float = 0.99
    hold_s: float = 900.0
    most: float | None = None


@dataclass(slots=True)
class ForecastState:
    """What a region has learned. Its size is bounded: about 6 KB as JSON."""

    busy: Season = field(default_factory=Season)  # running servers, as a level
    recent: list[list[float]] = field(default_factory=list[list[float]])  # [minute, arrivals, running at its end]
    margin: float = _FIRST_MARGIN
    pending: list[list[float]] = field(default_factory=list[list[float]])  # [made, due, running then, upper]
    wanted: list[list[float]] = field(default_factory=list[list[float]])  # [when, upper], for the hold
    rate: float = 0.0  # arrivals per second, over about ten minutes
    checked: float = 0.0
    enough: float = 0.0

    def to_json(self) -> dict[str, Any]:
        rows = {name: getattr(self, name) for name in ("recent", "pending", "wanted")}
        numbers = {name: getattr(self, name) for name in ("margin", "rate", "checked", "enough")}
        return {"busy": self.busy.to_json(), **rows, **numbers}

    @staticmethod
    def from_json(stored: dict[str, Any]) -> "ForecastState":
        """What cannot be read begins anew."""
        try:
            found = ForecastState(busy=Season.from_json(stored["busy"]))
            for name in ("recent", "pending", "wanted"):
                setattr(found, name, [[float(x) for x in row] for row in stored[name]])
            for name in ("margin", "rate", "checked", "enough"):
                setattr(found, name, float(stored[name]))
        except (KeyError, TypeError, ValueError, AttributeError):
            return ForecastState()
        return found


@dataclass(frozen=True, slots=True)
class SlotForecast:
    """Servers to be placed beyond those that run now: `mean` is expected, `upper` is what to have room for."""

    mean: float
    upper: float
    explanation: dict[str, float]


def observe(state: ForecastState, minute_at: float, arrivals: int, concurrent: int) -> ForecastState:
    """A minute has ended: `arrivals` starts came in it, and `concurrent` servers run (or are being started) now."""
    if state.recent and not 0 <= minute_at - state.recent[-1][0] <= _GAP_S:
        state.recent, state.pending, state.wanted = [], [], []  # the clock jumped, or nobody looked
    state.recent.append([minute_at, float(arrivals), float(concurrent)])
    del state.recent[:-_RECENT]
    state.rate += 0.1 * (arrivals / MINUTE_S - state.rate)
    state.busy.observe(minute_at, concurrent * MINUTE_S, MINUTE_S)
    _check(state, minute_at + MINUTE_S, concurrent)
    return state


def slots_ahead(
    state: ForecastState, at: float, lead_s: float, events: Events, queue_depth: float, policy: NodePolicy
) -> tuple[ForecastState, SlotForecast]:
    """`events`: (time, expected starts) known ahead. `queue_depth`: servers that the matchmaking queue will ask for."""
    lead_s = min(max(lead_s, 1.0), _MOST_LEAD_S)
    running = state.recent[-1][2] if state.recent else 0.0
    usual, climb = _usual_growth(state, at, lead_s, running), _climb(state, lead_s)
    known = sum(count for when, count in events if at - MINUTE_S < when <= at + lead_s) + max(0.0, queue_depth)
    mean = max(0.0, usual, climb) + known
    spread = sqrt(max(1.0, state.rate * lead_s, mean))
    upper = mean + state.margin * spread
    if len(state.pending) < _PENDING and (not state.pending or at - state.pending[-1][0] >= MINUTE_S * 0.9):
        state.pending.append([at, at + lead_s, running, upper])
    held = _held(state, at, upper, policy.hold_s)
    upper = held if policy.most is None else min(held, policy.most)
    explanation = {
        "running": running,
        "usual_growth": usual,
        "climb": climb,
        "known_ahead": known,
        "margin": state.margin,
        "deviation": spread,
        "starts_per_minute": 60 * state.rate,
        "lead_seconds": lead_s,
        "observed_coverage": state.enough / state.checked if state.checked else 1.0,
    }
    return state, SlotForecast(mean, upper, explanation)


def _usual_growth(state: ForecastState, at: float, lead_s: float, running: float) -> float:
    """The largest growth within the lead time, as the profile has it, in proportion to what runs now."""
    now = state.busy.rate(at)
    later = [state.busy.rate(at + lead_s * part / 4) for part in (1, 2, 3, 4)]
    if now is None:
        return 0.0
    most = max((one for one in later if one is not None), default=now)
    today = (running + 3) / (now + 3)
    return max(0.0, (most - now) * min(today, 5.0))


def _climb(state: ForecastState, lead_s: float) -> float:
    """What a climb of the last minutes, if it is one beyond chance, would add within the lead time."""
    most = 0.0
    for minutes in (1, 3, 8):
        if len(state.recent) > minutes:
            rise = state.recent[-1][2] - state.recent[-1 - minutes][2]
            came = sum(row[1] for row in state.recent[-minutes:])
            if rise > 2 * sqrt(max(came, 1.0)):
                most = max(most, _FOLLOW * rise * min(lead_s / MINUTE_S / minutes, 3.0))
    return most


def _check(state: ForecastState, now: float, concurrent: int) -> None:
    """Compare forecasts with what has come of them: at once if it is already more, else when they are due."""
    left: list[list[float]] = []
    for made, due, running, upper in state.pending:
        breached = concurrent - running > upper
        if not breached and now < due:
            left.append([made, due, running, upper])
            continue
        state.checked = state.checked * 0.999 + 1
        state.enough = state.enough * 0.999 + (not breached)
        state.margin += _STEP if breached else -_STEP * 0.01
        state.margin = min(_MOST_MARGIN, max(1.0, state.margin))
    state.pending = left


def _held(state: ForecastState, at: float, upper: float, hold_s: float) -> float:
    step = hold_s / 10
    if state.wanted and 0 <= at - state.wanted[-1][0] < step:
        state.wanted[-1][1] = max(state.wanted[-1][1], upper)
    else:
        state.wanted.append([at, upper])
    state.wanted = [row for row in state.wanted if 0 <= at - row[0] <= hold_s][-12:]
    return max((row[1] for row in state.wanted), default=upper)
