"""HAProxy sheds floods before they reach Python: a refusal costs a replica a third of a millisecond, the proxy a
hundredth of that, and a key that asks at twenty times its limit would otherwise slow everybody.

The proxy's count is rough and errs on the side of letting in: it lets in ALLOWANCE times the highest limit of any plan,
and replicas count exactly (fleet/limits/). Only what was let in counts, so a flooding key still gets all of its limit.
Why twice and a little: HAProxy estimates a sliding second from two fixed ones, which for lawful bursts at the seconds'
edges is up to twice the truth.
"""

import json
from dataclasses import dataclass

from fleet.projects.plans import plan_book
from fleet.settings import FleetSettings

ALLOWANCE = 2.2
# As serve_app/limits.py: these are not counted. All players of a game share its client key, so calls to lobbies are
# counted by player, which replicas do.
_FREE = (
    "{ path_beg /upload/ /api/health /health /metrics /api/doc /api/reference /api/admin/ "
    "/api/v3/lobbies /api/v2/lobbies /v2/lobbies /lobbies /api/v2/matchmaker /v2/matchmaker /matchmaker }"
)
_V2 = "{ path_beg /v2/ /api/v2/ }"


@dataclass(frozen=True, slots=True)
class Flood:
    """What passes of one class of requests. `told`: the limit to name, if it is one for all keys."""

    what: str
    counter: int
    passes: int
    told: int | None


def floods(settings: FleetSettings) -> list[Flood]:
    """The classes that have a limit for every key."""
    book, limits = plan_book(settings.plans_config), settings.limits
    plans = book.every()
    reads = {limits.reads_per_s if plan.reads_per_s is None else plan.reads_per_s for plan in plans}
    writes = {limits.writes_per_s if plan.writes_per_s is None else plan.writes_per_s for plan in plans}
    return [
        Flood(what, counter, round(max(found) * ALLOWANCE), max(found) if len(found) == 1 else None)
        for counter, (what, found) in enumerate((("reads", reads), ("writes", writes)))
        if found and 0 not in found
    ]


def shed_lines(settings: FleetSettings) -> list[str]:
    """Lines for the frontend that everything comes through."""
    found = floods(settings)
    if not found:
        return []
    lines = [
        "stick-table type binary len 20 size 100k expire 10s store gpc0_rate(1s),gpc1_rate(1s)",
        "acl fleet_keyed req.fhdr(api-key,1) -m found",
        f"acl fleet_free {_FREE[2:-2]}",
        "acl fleet_reads method GET HEAD OPTIONS",
        "http-request track-sc0 req.fhdr(api-key,1),sha1 if fleet_keyed !fleet_free",
    ]
    for flood in found:
        mine = f"fleet_keyed !fleet_free {'' if flood.what == 'reads' else '!'}fleet_reads"
        over = f"{mine} {{ sc0_gpc{flood.counter}_rate gt {flood.passes} }}"
        lines += [
            f"{_refusal(flood, v2=True)} if {over} {_V2}",
            f"{_refusal(flood, v2=False)} if {over}",
            f"http-request sc-inc-gpc{flood.counter}(0) if {mine}",
        ]
    return lines


def _refusal(flood: Flood, *, v2: bool) -> str:
    error, detail = "Too many requests", f"This key sends far too many {flood.what}. Try again in 1 s."
    body: dict[str, object] = {"error": error, "detail": detail, "status": 429}
    if v2:
        body["message"] = f"{error}: {detail}"
    headers = {"retry-after": 1, "x-ratelimit-remaining": 0, "x-ratelimit-reset": 1}
    if flood.told is not None:
        headers["x-ratelimit-limit"] = flood.told
    told = " ".join(f"hdr {name} {value}" for name, value in headers.items())
    text = json.dumps(body, separators=(",", ":"))
    safe = "hdr x-content-type-options nosniff hdr access-control-allow-origin *"
    return f"http-request return status 429 content-type application/json {told} {safe} string '{text}'"
