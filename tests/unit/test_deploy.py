"""Whether a deployment has failed, by what Serve says of it."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from ray.serve.schema import ApplicationStatus

from fleet.ops import deploy

RUNNING, FAILED, UNHEALTHY, DEPLOYING = (
    ApplicationStatus.RUNNING,
    ApplicationStatus.DEPLOY_FAILED,
    ApplicationStatus.UNHEALTHY,
    ApplicationStatus.DEPLOYING,
)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[ApplicationStatus]], str | None]:
    """What becomes of a deployment of which Serve says this, one after the other; each look takes 10 s."""
    clock = SimpleNamespace(
        monotonic=lambda: clock.now, sleep=lambda _: setattr(clock, "now", clock.now + 10), now=100.0
    )
    monkeypatch.setattr(deploy, "time", clock)

    def outcome(statuses: list[ApplicationStatus]) -> str | None:
        said = iter(statuses)

        def status() -> SimpleNamespace:
            app = SimpleNamespace(status=next(said), message="Serve's word")
            return SimpleNamespace(applications={"fleet": app})

        monkeypatch.setattr(deploy.serve, "status", status)
        return deploy.wait_running()

    return outcome


def test_an_application_whose_replicas_are_being_replaced_is_waited_for(
    told: Callable[[list[ApplicationStatus]], str | None],
) -> None:
    """Whoever gives it up at once replaces a head that was about to work, on a machine that is slow already."""
    assert told([UNHEALTHY] * 4 + [RUNNING]) is None
    assert told([UNHEALTHY, DEPLOYING, UNHEALTHY, UNHEALTHY, RUNNING]) is None


def test_one_that_stays_unhealthy_or_cannot_be_deployed_has_failed(
    told: Callable[[list[ApplicationStatus]], str | None],
) -> None:
    assert told([UNHEALTHY] * 6) == "Serve's word"
    assert told([DEPLOYING, FAILED]) == "Serve's word"
