"""The clock of a process: it does not jump, and comes closer to the wall clock."""

from hypothesis import given
from hypothesis import strategies as st

from fleet.times import SteadyClock

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
