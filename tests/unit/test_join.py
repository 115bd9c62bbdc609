"""Joining the fleet's Ray head."""

from typing import Any

import pytest
import structlog.testing

from fleet.ops import join
from fleet.ops.head import Head
from fleet.ops.processes import ProcessId


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | None]:
    """What the next tries to connect end with."""
    left: list[BaseException | None] = []

    def init(**_how: Any) -> None:
        if (error := left.pop(0)) is not None:
            raise error

    monkeypatch.setattr(join.ray, "init", init)
    monkeypatch.setattr(join, "_AGAIN_AFTER_S", (0.0, 0.0))
    monkeypatch.setattr(join.os, "environ", {})
    return left


HEAD = Head("127.0.0.2:1", ProcessId(1, 0.0), ProcessId(2, 0.0), {})


def test_a_busy_head_is_asked_again_and_it_is_said(tries: list[BaseException | None]) -> None:
    tries += [ConnectionError("busy"), None]
    with structlog.testing.capture_logs() as lines:
        join.join_head(HEAD, "fleet")
    assert tries == []
    assert [line["log_level"] for line in lines] == ["warning"]


def test_a_head_that_is_gone_is_told_and_other_faults_at_once(tries: list[BaseException | None]) -> None:
    tries += [ConnectionError("gone")] * 3
    with pytest.raises(ConnectionError, match="gone"):
        join.join_head(HEAD, "fleet")
    assert tries == []
    tries += [RuntimeError("twice"), None]
    with pytest.raises(RuntimeError, match="twice"):
        join.join_head(HEAD, "fleet")
