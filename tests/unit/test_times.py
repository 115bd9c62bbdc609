"""The clock of a process: it does not jump, and comes closer to the wall clock."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import times
from fleet.times import SteadyClock, keep_clock, kept_reading

S = 1_000_000_000
HOUR = 3600 * S


class Machine:
    wall = 1_800_000_000 * S
    boot = 5 * S

    def pass_(self, ns: int, step: int = 0) -> None:
        self.wall += ns + step
        self.boot += ns


def clock_of(machine: Machine) -> SteadyClock:
    return SteadyClock(lambda: machine.wall, lambda: machine.boot)


def test_it_is_the_wall_clock_as_long_as_that_does_not_step() -> None:
    machine = Machine()
    clock = clock_of(machine)
    for _ in range(100):
        machine.pass_(7 * S)
        assert clock() == machine.wall


def test_a_step_of_an_hour_is_no_jump_and_is_caught_up_with() -> None:
    for step in (HOUR, -HOUR):
        machine = Machine()
        clock = clock_of(machine)
        before = clock()
        machine.pass_(10 * S, step)
        assert 9 * S <= clock() - before <= 11 * S
        for _ in range(11 * 60):
            machine.pass_(60 * S)
            clock()
        assert clock() == machine.wall


@given(st.lists(st.tuples(st.integers(0, HOUR), st.integers(-10 * HOUR, 10 * HOUR))))
def test_it_never_goes_back_and_runs_at_most_a_tenth_off(steps: list[tuple[int, int]]) -> None:
    machine = Machine()
    clock = clock_of(machine)
    seen = clock()
    for passed, step in steps:
        machine.pass_(passed, step)
        now = clock()
        assert passed * 9 // 10 <= now - seen <= passed * 11 // 10 + 1
        seen = now


def test_a_process_that_starts_while_the_clock_is_wrong_shows_what_the_others_do() -> None:
    """Also after the step is undone: what one writes, the other reads."""
    for step in (HOUR, -HOUR):
        machine = Machine()
        watcher = clock_of(machine)
        machine.pass_(10 * S)
        reading = watcher.reading()
        machine.pass_(5 * S, step)
        late = SteadyClock(lambda machine=machine: machine.wall, lambda machine=machine: machine.boot, reading)
        assert abs(late() - watcher()) < S
        machine.pass_(5 * S, -step)
        assert abs(late() - machine.wall) < 2 * S


def test_a_reading_is_kept_for_those_that_start_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of another boot, or a torn one, is none."""
    assert kept_reading(tmp_path, 1) is None
    keep_clock(tmp_path)
    mine, at = times._steady_clock.reading()
    kept = kept_reading(tmp_path, at)
    assert kept is not None
    assert kept[0] <= mine
    assert kept_reading(tmp_path, kept[1] - 1) is None
    monkeypatch.setattr(times, "_boot_id", lambda: "another")
    assert kept_reading(tmp_path, at) is None
    (tmp_path / "clock.json").write_text("{")
    assert kept_reading(tmp_path, at) is None
