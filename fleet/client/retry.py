"""When a request is repeated, and after how long. Pure.

Every write carries an Idempotency-Key, so a repeated write has one effect (docs/limits.md).
"""

import math
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

_PASSING = frozenset({429, 502, 503, 504})
_CONFLICT = 409


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Waits double from `first_s` to `most_s`, spread by chance; a Retry-After counts up to `asked_most_s`.

    No repetition begins later than `total_s` after the first try. `attempts=1`: none at all.
    """

    attempts: int = 8
    first_s: float = 0.2
    most_s: float = 10.0
    asked_most_s: float = 30.0
    total_s: float = 60.0


NO_RETRIES = RetryPolicy(attempts=1)


def passes(status: int, *, asked: bool = False) -> bool:
    """Whether the same request may be answered differently soon. `asked`: the answer has a Retry-After.

    A conflict that has one is a write whose first try is still served.
    """
    return status in _PASSING or (status == _CONFLICT and asked)


def retry_after_s(header: str | None, now: float) -> float | None:
    """The seconds of a Retry-After header (a number, or an HTTP date); None if there is none to be read."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def wait_s(policy: RetryPolicy, attempt: int, chance: float, asked_s: float | None) -> float:
    """How long to wait after the `attempt`-th try. `chance` in [0, 1) spreads clients that failed together."""
    backoff = min(policy.first_s * 2.0 ** min(attempt - 1, 60), policy.most_s)
    spread = backoff * (0.5 + 0.5 * chance)
    if asked_s is None:
        return spread
    # Not before the time that was asked for, and not all at once then.
    return max(spread, min(asked_s, policy.asked_most_s) + policy.first_s * chance)
