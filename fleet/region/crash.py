"""The crash policy: what happens when a server ends against its will.

Without auto_restart it is stopped. With it, it is launched again as a new generation after an exponential back-off
(first, doubling, up to a maximum); more than `max_crashes` within the window is a crash loop and stops it.
"""

from fleet.region.model import End, Policy, Requeue
from fleet.store.tables import Server

_SHUTDOWN = {"never_ready": "STARTUP_FAILURE_EXECUTABLE"}


def crash_verdict(
    server: Server,
    at: int,
    reason: str,
    detail: str,
    exit_code: int | None,
    policy: Policy,
    *,
    gone: bool,
    now: int,
    shutdown: str | None = None,
) -> End | Requeue:
    """End, or another attempt. `gone`: the container has ended already, at `at`, which may be long before `now`: the
    next attempt waits for a node from now on. Times in milliseconds."""
    shutdown = shutdown or _SHUTDOWN.get(reason, "PROCESS_EXITED")
    if not server.auto_restart:
        return End(server.instance_id, at, reason, shutdown, detail, exit_code, gone)
    recent = [t for t in server.crashes or [] if at - t < policy.crash_window_ms] + [at]
    if len(recent) > policy.max_crashes:
        seconds = policy.crash_window_ms // 1000
        text = f"Crash loop: {len(recent)} failed runs within {seconds} s. Last: {detail}".strip()
        return End(server.instance_id, at, reason, shutdown, text, exit_code, gone)
    return Requeue(
        server.instance_id,
        at,
        reason,
        at + backoff_ms(len(recent), policy),
        detail,
        exit_code,
        recent,
        max(at, now),
    )


def backoff_ms(attempt: int, policy: Policy) -> int:
    """Wait before attempt 1, 2, …: first · 2^(attempt - 1), at most the maximum."""
    return min(policy.backoff_first_ms * 2 ** (attempt - 1), policy.backoff_max_ms)
