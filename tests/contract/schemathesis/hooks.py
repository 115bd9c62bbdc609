"""Loaded by schemathesis: waits that nothing would end are made short."""

from typing import Any

import schemathesis
from schemathesis.generation.meta import TestPhase

from tests.unit.schema_kit import meet

MOMENT_S = 0.05
STREAMS = ("GET /api/v3/events", "GET /api/v3/lobbies/{config}/me/events")


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """A good `wait_for`, and a stream of events, last as long as they may: a moment tells as much."""
    if case.meta is None or case.meta.phase.name is not TestPhase.COVERAGE:  # that one leaves headers out on purpose
        meet(case)
    query = case.query or {}
    if "wait_for" in query or case.operation.label in STREAMS:
        try:
            longest = float(query.get("timeout", 30))
        except (TypeError, ValueError):
            return
        if 0 < longest <= 86_400:
            case.query = {**query, "timeout": MOMENT_S}
