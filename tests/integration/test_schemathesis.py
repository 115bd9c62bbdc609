"""Generated requests against the running fleet: no 5xx, and every answer as our own document says."""

import pytest
import schemathesis

from tests.integration.test_api_live import RunningFleet
from tests.unit.schema_kit import check_operations

pytestmark = [pytest.mark.fleet, pytest.mark.slow]


@pytest.mark.parametrize(("document", "least"), [("/api/doc", 16), ("/api/v2/doc", 14)])
def test_every_operation_of_the_running_fleet_answers_as_documented(
    fleet: RunningFleet, document: str, least: int, subtests: pytest.Subtests
) -> None:
    schema = schemathesis.openapi.from_url(f"{fleet.url}{document}")
    labels = check_operations(schema, {"api-key": fleet.server_key}, 15, subtests)
    assert len(labels) >= least
