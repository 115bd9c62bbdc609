"""What every operation must hold under generated input, whatever serves it."""

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fleet.players.model import is_player_id

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def check_operations(
    schema: BaseSchema, headers: dict[str, str], examples: int, subtests: pytest.Subtests
) -> list[str]:
    """Send `examples` generated requests to each operation and check each answer; the operations' labels."""
    labels: list[str] = []
    for found in schema.get_all_operations():
        operation = found.ok()
        labels.append(operation.label)
        with subtests.test(msg=operation.label):
            _check_operation(operation, headers, examples)
    return labels


def _check_operation(operation: APIOperation, headers: dict[str, str], examples: int) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode)))
    def check(case: Case) -> None:
        _wait_shortly(case)
        meet(case)
        case.call_and_validate(headers=headers, checks=CHECKS, timeout=60)

    check()


def meet(case: Case) -> None:
    """Players of made-up names in made-up configs would never be in a lobby: let there be three, in one config."""
    if not case.path.startswith("/api/v3/lobbies/") or not case.headers:
        return
    player, config = case.headers.get("x-player-id"), case.path_parameters.get("config")
    if isinstance(player, str) and is_player_id(player):
        case.headers["x-player-id"] = f"player-{len(player) % 3}"
    if isinstance(config, str) and 0 < len(config) <= 100 and config.isalnum():
        case.path_parameters["config"] = "default"


def _wait_shortly(case: Case) -> None:
    """A good `wait_for` waits as long as it may for what never comes here, and so does a stream: a moment tells as
    much."""
    query: dict[str, Any] = case.query or {}
    if (
        case.path.endswith("/events")
        and "{instance_id}" not in case.path
        and isinstance(query.get("timeout", 30), int | float)
    ):
        case.query = {**query, "timeout": min(query.get("timeout", 0.2), 0.2)}
        return
    wanted = query.get("wait_for") in ("running", "stopped", "ready")
    timeout = query.get("timeout", 30)
    if wanted and isinstance(timeout, int | float) and 0 < timeout <= 120:
        case.query["timeout"] = 0.2
