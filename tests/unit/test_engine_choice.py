"""The start asks for the engine that the home's games have run in, and says what follows if there is none."""

from pathlib import Path

import pytest

from fleet.node.choose import Kind, write_pin
from fleet.ops import engine
from fleet.ops.engine import ensure_engine
from fleet.ops.home import Home
from fleet.settings import FleetSettings


@pytest.mark.parametrize(
    ("pin", "said"),
    [("docker", "Nodes wait for it"), ("process", None), (None, "WITHOUT isolation")],
)
def test_an_engine_that_is_away_is_waited_for_by_who_has_used_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pin: Kind | None, said: str | None
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    monkeypatch.setattr(engine, "engine_answers", lambda: False)
    monkeypatch.setattr(engine, "_install", lambda _report: pytest.fail("it may not be installed here"))
    if pin is not None:
        write_pin(tmp_path, pin)
    words = list[str]()
    assert not ensure_engine(Home(tmp_path, "f1"), FleetSettings(home=tmp_path, runtime="auto"), words.append)
    assert [said in word for word in words] == ([True] if said else [])
